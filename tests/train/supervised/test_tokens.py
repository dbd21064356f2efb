"""Sequences of all cells, kept in memory or in a file, and batches of some of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from scfm.train.supervised.inputs import CellTargets, TokenInputs, TokenTargets
from scfm.train.supervised.tokens import batches_of, encoded_cells

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from scfm._types import TokenBlock
    from scfm.model import FoundationModel


def sequences(block: TokenBlock) -> list[list[int]]:
    ends = zip(block.offsets[:-1], block.offsets[1:], strict=True)
    return [block.tokens[a:b].tolist() for a, b in ends]


def test_a_file_holds_what_memory_does(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    with tiny.session(cells) as session, encoded_cells(session) as inside:
        expected = sequences(inside)
        assert not isinstance(inside.tokens, np.memmap)
    assert len(expected) == cells.n_obs
    for limit in (0, 1000):
        with tiny.session(cells) as session, encoded_cells(session, tmp_path, limit) as stored:
            assert isinstance(stored.tokens, np.memmap)
            assert list(tmp_path.iterdir())
            assert sequences(stored) == expected
        assert not list(tmp_path.iterdir())


def test_a_file_is_removed_when_something_fails(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    with tiny.session(cells) as session:
        held = encoded_cells(session, tmp_path, 0)
        held.__enter__()
        assert list(tmp_path.iterdir())
        error = RuntimeError("no more")
        assert not held.__exit__(RuntimeError, error, None)
    assert not list(tmp_path.iterdir())


def test_batches_hold_each_cell_once(cells: AnnData, tiny: FoundationModel) -> None:
    rows = np.random.default_rng(0).permutation(cells.n_obs)[:40]
    with tiny.session(cells) as session, encoded_cells(session) as block:
        whole = sequences(block)
        batches = batches_of(block, rows, 100)
    assert len(batches) > 5
    assert all(batch.lengths.sum() <= 100 or len(batch.rows) == 1 for batch in batches)
    assert sorted(np.concatenate([batch.rows for batch in batches])) == sorted(rows)
    for batch in batches:
        parts = np.split(batch.tokens, batch.lengths.cumsum()[:-1])
        assert [part.tolist() for part in parts] == [whole[row] for row in batch.rows]


@pytest.mark.parametrize("repeated", [True, False])
def test_targets_go_with_their_cells(repeated: bool, cells: AnnData, tiny: FoundationModel) -> None:
    rows = np.array([5, 2, 2, 90, 5, 0]) if repeated else np.array([5, 2, 90, 0])  # balanced draws take cells twice
    values = np.arange(cells.n_obs) * 10
    with tiny.session(cells) as session, encoded_cells(session) as block:
        inputs: Any = TokenInputs(block, CellTargets({"kind": values}), 60)
        parts = inputs.parts(rows)
    found = np.concatenate([part.targets["kind"] for part in parts])
    assert sorted(found) == sorted(rows * 10)
    assert all((part.targets["kind"] == part.inputs.rows * 10).all() for part in parts)


def test_classes_of_tokens() -> None:
    codes = np.array([-1, 0, 1, -1])

    class Batch:
        tokens = np.array([3, 2, 1, 0, 7, 2])  # 7 is behind the genes of the vocabulary

    found = TokenTargets("gene_class", codes).of(Batch())["gene_class"]  # type: ignore[arg-type]
    assert found.tolist() == [-1, 1, 0, -1, -1, 1]

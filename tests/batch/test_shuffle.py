"""Batches for training."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import scfm
from scfm._types import TokenBlock
from scfm.batch import fixed_size_batches, row_ranges, shuffle
from scfm.model.arguments import Arguments

if TYPE_CHECKING:
    from pathlib import Path

N_OBS = 700


def rows_of(data: Any, **arguments: Any) -> list[list[int]]:
    with scfm.model.load("scfm-mini").session(data, Arguments(device="cpu")) as session:
        return [batch.rows.tolist() for batch in session.batches(**arguments)]


@pytest.fixture
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "RANGE_ROWS", 16)
    monkeypatch.setattr(shuffle, "BUFFER_RANGES", 3)


def test_every_cell_comes_once_in_order() -> None:
    batches = rows_of(scfm.datasets.pbmc68k(), batch_size=64)
    assert [len(batch) for batch in batches] == [64] * 10 + [60]
    assert [row for batch in batches for row in sorted(batch)] == list(range(N_OBS))


@pytest.mark.usefixtures("small_spans")
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_cell_comes_once_in_random_order(drop_last: bool) -> None:
    batches = rows_of(scfm.datasets.pbmc68k(), batch_size=33, shuffle=True, drop_last=drop_last)
    rows = [row for batch in batches for row in batch]
    assert {len(batch) for batch in batches[:-1]} == {33}
    assert len(rows) == (N_OBS // 33 * 33 if drop_last else N_OBS)
    assert len(set(rows)) == len(rows)
    assert np.abs(np.diff(rows)).mean() > 16  # from more than one span


@pytest.mark.usefixtures("small_spans")
def test_the_seed_alone_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    adata = scfm.datasets.pbmc68k()
    wanted = rows_of(adata, shuffle=True, seed=3)
    assert wanted != rows_of(adata, shuffle=True, seed=4)
    adata.write_h5ad(tmp_path / "a.h5ad")
    monkeypatch.setattr(scfm.settings, "block_rows", 7)
    monkeypatch.setattr(scfm.settings, "block_values", 1000)
    monkeypatch.setattr(scfm.settings, "threads", 2)
    assert rows_of(tmp_path / "a.h5ad", shuffle=True, seed=3) == wanted


def test_tokens_are_those_of_the_cell() -> None:
    with scfm.model.load("scfm-mini").session(scfm.datasets.pbmc68k(), Arguments(device="cpu")) as session:
        (block,) = map(session.encoder(), session.source.blocks(N_OBS))
        for batch in session.batches(50, shuffle=True):
            assert np.all(np.diff(batch.lengths) <= 0)
            for row, tokens in zip(batch.rows, np.split(batch.tokens, np.cumsum(batch.lengths)[:-1]), strict=True):
                np.testing.assert_array_equal(tokens, block.tokens[block.offsets[row] : block.offsets[row + 1]])


def blocks(n_obs: int) -> Any:
    """Cells of 0 to 3 tokens, each the position of the cell, with a count."""
    for start, stop in row_ranges(n_obs, None):
        rows = np.arange(start, stop)
        lengths = rows % 4
        tokens = np.repeat(rows, lengths).astype(np.int32)
        yield [TokenBlock(start, tokens, np.concatenate([[0], np.cumsum(lengths)]), lengths, tokens.astype("f4") / 2)]


@pytest.mark.usefixtures("small_spans")
@pytest.mark.parametrize("seed", [None, 0])
def test_cells_without_tokens_are_left_out(seed: int | None) -> None:
    rng = None if seed is None else np.random.default_rng(seed)
    seen: list[int] = []
    for batch in fixed_size_batches(blocks(100), 7, rng, drop_last=False):
        seen += batch.rows.tolist()
        assert batch.values is not None
        np.testing.assert_array_equal(batch.tokens, np.repeat(batch.rows, batch.lengths))
        np.testing.assert_array_equal(batch.values, batch.tokens / 2)
    assert sorted(seen) == [row for row in range(100) if row % 4]


def test_no_cells() -> None:
    assert list(fixed_size_batches(blocks(0), 7, None, drop_last=False)) == []


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "RANGE_ROWS", 64)

    def peak(n_obs: int) -> int:
        tracemalloc.start()
        for _ in fixed_size_batches(blocks(n_obs), 7, np.random.default_rng(0), drop_last=False):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(40_000) < 1.5 * peak(10_000)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
def test_no_batch_size(batch_size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size=.*: need 1 cell or more"):
        rows_of(scfm.datasets.pbmc68k()[:3], batch_size=batch_size)

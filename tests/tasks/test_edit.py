"""A task may make other sequences of cells than the encoder did, also several a cell."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import scfm
from scfm.model.arguments import Arguments
from scfm.tasks import Task
from tests.rounding import close

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from scfm._types import TokenBatch, TokenBlock
    from scfm.run import RunStats

MODEL = scfm.model.load("scfm-mini")
N_OBS = 12


class Table:
    """A sink of one row for each cell and tag."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], np.ndarray] = {}

    def write(self, batch: TokenBatch, output: torch.Tensor) -> None:
        assert batch.tags is not None
        for row, tag, values in zip(batch.rows, batch.tags, output.numpy(), strict=True):
            assert (row, tag) not in self.rows
            self.rows[int(row), int(tag)] = values

    def end_block(self, stop: int, stats: RunStats) -> None:
        pass


class WithoutFirst(Task):
    """Each cell as it is (tag 0) and without the 1st, 2nd … gene (tags 1, 2 …), a block for each tag."""

    def __init__(self, n: int) -> None:
        self.table = Table()
        super().__init__(self.table)
        self.n, self.alive = n, 0

    def edit(self, block: TokenBlock) -> Iterator[TokenBlock]:
        rows = block.row0 + np.arange(block.n_cells)
        for tag in range(self.n + 1):
            self.alive = tag
            kept = np.ones(len(block.tokens), bool)
            if tag:
                kept[block.offsets[:-1][np.diff(block.offsets) > self.n] + tag - 1] = False
            cells = np.repeat(np.arange(block.n_cells), np.diff(block.offsets))[kept]
            offsets = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=block.n_cells))])
            tags = np.full(block.n_cells, tag)
            yield replace(block, tokens=block.tokens[kept], offsets=offsets, rows=rows, tags=tags)

    def make_forward(self, network: torch.nn.Module, device: Any, dtype: Any) -> Callable[[TokenBatch], torch.Tensor]:
        def forward(batch: TokenBatch) -> torch.Tensor:
            assert batch.tags is not None
            assert set(batch.tags) == {self.alive}  # the next ones are made when these are done
            return MODEL.forward(network, batch, Arguments().resolved(MODEL))

        return forward


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]])
def test_several_sequences_a_cell(devices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    adata = scfm.datasets.pbmc68k()[:N_OBS].copy()
    monkeypatch.setattr(scfm.settings, "block_rows", 5)
    task = WithoutFirst(2)
    with MODEL.session(adata, Arguments(device=devices)) as session:
        stats = session.run(task)
    assert stats.n_cells == N_OBS
    assert sorted(task.table.rows) == [(row, tag) for row in range(N_OBS) for tag in range(3)]
    whole = MODEL.embed(adata, device="cpu")
    for row in range(N_OBS):
        close(task.table.rows[row, 0], whole[row])
        assert not np.allclose(task.table.rows[row, 1], task.table.rows[row, 2], atol=1e-4)


def test_rows_and_tags_stay_with_their_sequence_when_a_batch_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = scfm.datasets.pbmc68k()[:N_OBS].copy()
    wanted, task = WithoutFirst(1), WithoutFirst(1)
    with MODEL.session(adata, Arguments(device="cpu")) as session:
        session.run(wanted)
    forward = type(MODEL).forward

    def limited(self: Any, network: Any, batch: TokenBatch, options: Any) -> torch.Tensor:
        if len(batch.rows) > 2:
            msg = "out of memory"
            raise RuntimeError(msg)
        return forward(self, network, batch, options)

    monkeypatch.setattr(type(MODEL), "forward", limited)
    with MODEL.session(adata, Arguments(device="cpu")) as session:
        session.run(task)
    assert task.table.rows.keys() == wanted.table.rows.keys()
    for key, values in task.table.rows.items():
        close(values, wanted.table.rows[key])

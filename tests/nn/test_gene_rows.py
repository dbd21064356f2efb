from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from scfm.nn import GeneRows, GeneVectors, gene_rows

if TYPE_CHECKING:
    from torch import Tensor


class Made:
    """A table of states that remembers for which tokens it was asked."""

    def __init__(self, n: int) -> None:
        self.table = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
        self.asked: list[int] = []
        self._rows = GeneRows(n)

    def rows(self, tokens: Tensor) -> Tensor:
        return self._rows(tokens, self.make)

    def make(self, tokens: Tensor) -> Tensor:
        self.asked += tokens.tolist()
        return self.table[tokens]


@pytest.mark.parametrize(("first", "at_once"), [(1024, 4096), (1, 3)])
def test_each_row_is_made_once(monkeypatch: pytest.MonkeyPatch, first: int, at_once: int) -> None:
    monkeypatch.setattr(gene_rows, "FIRST_ROWS", first)
    monkeypatch.setattr(gene_rows, "AT_ONCE", at_once)
    made = Made(3000)
    generator = torch.Generator().manual_seed(0)
    seen: set[int] = set()
    with torch.inference_mode():
        for n in (0, 1, 5, 1, 40, 4000, 9000, 0):
            tokens = torch.randint(0, min(3000, 2 * n + 1), (n,), generator=generator)
            assert torch.equal(made.rows(tokens), made.table[tokens])
            seen |= set(tokens.tolist())
            assert sorted(made.asked) == sorted(seen)


def test_modes_may_take_turns() -> None:
    made = Made(10)
    for mode, tokens in ((torch.inference_mode, [1, 2]), (torch.no_grad, [2, 3]), (torch.inference_mode, [3, 4])):
        with mode():
            assert torch.equal(made.rows(torch.tensor(tokens)), made.table[tokens])
    assert made.asked == [1, 2, 3, 4]


def test_rows_under_gradients_are_not_kept() -> None:
    made = Made(10)
    made.table.requires_grad_()
    tokens = torch.tensor([3, 1, 3])
    made.rows(tokens)[:, 0].sum().backward()
    assert made.table.grad is not None
    assert made.table.grad[:, 0].tolist() == [0, 1, 0, 2, 0, 0, 0, 0, 0, 0]
    with torch.no_grad():
        made.table += 1
        assert torch.equal(made.rows(tokens), made.table[tokens])
    assert made.asked == [1, 3, 1, 3]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("tokens", [[-1, 3], [3, 10]])
def test_rows_that_are_not_there(tokens: list[int], gradients: bool) -> None:
    with torch.set_grad_enabled(gradients), pytest.raises(IndexError, match="the table has 10 rows|out of bounds"):
        Made(10).rows(torch.tensor(tokens))


def test_gene_vectors() -> None:
    table = torch.randn(67, 12, generator=torch.Generator().manual_seed(0))
    tensors = {gene_rows.GENE_VECTORS: table}
    vectors = GeneVectors(tensors, n_assays=3)
    tokens = torch.tensor([69, 2, 66, 67, 7, 66])
    expected = torch.cat([table, torch.zeros(3, 12)])[tokens]
    with torch.inference_mode():
        for _ in range(2):
            found = vectors(tokens)
            assert torch.equal(found, expected)
            found += 1  # a copy
        assert GeneVectors(tensors, 3).to(torch.bfloat16)(tokens).dtype == torch.bfloat16
        with pytest.raises(IndexError):
            vectors(torch.tensor([70]))

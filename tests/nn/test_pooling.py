from __future__ import annotations

import numpy as np
import pytest
import torch

from scfm.nn import GeneMeans, pool_mean

LENGTHS = [5, 1, 3, 2]


def draw(n_tokens: int, d: int = 6) -> torch.Tensor:
    return torch.randn(n_tokens, d, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("skip", [(0, 0), (1, 1), (0, 2)])
def test_mean(dtype: torch.dtype, skip: tuple[int, int]) -> None:
    hidden = draw(sum(LENGTHS)).to(dtype)
    ours = pool_mean(hidden, LENGTHS, skip_first=skip[0], skip_last=skip[1])
    assert ours.dtype == torch.float32
    cells = np.split(hidden.double().numpy(), np.cumsum(LENGTHS)[:-1])
    for row, cell in zip(ours.numpy(), cells, strict=True):
        kept = cell[skip[0] : max(skip[0], len(cell) - skip[1])]
        expected = kept.mean(axis=0) if len(kept) else np.full(cell.shape[1], np.nan)
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_mean_of_many_tokens_is_exact_enough() -> None:
    hidden = draw(4096) + 100
    expected = hidden.double().mean(dim=0)
    torch.testing.assert_close(pool_mean(hidden, [4096])[0].double(), expected, atol=2e-5, rtol=0)


def test_mean_of_no_cells_and_empty_cells() -> None:
    assert pool_mean(draw(0), []).shape == (0, 6)
    pooled = pool_mean(draw(2), [0, 2, 0])
    assert torch.isnan(pooled[[0, 2]]).all()
    assert torch.isfinite(pooled[1]).all()


def test_lengths_that_do_not_sum() -> None:
    with pytest.raises(ValueError, match="lengths sum to 11, but there are 10 tokens"):
        pool_mean(draw(10), LENGTHS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gene_means(dtype: torch.dtype) -> None:
    vocab = 9
    hidden = draw(200).to(dtype)
    tokens = torch.randint(0, vocab - 2, (200,), generator=torch.Generator().manual_seed(1))
    genes = GeneMeans(vocab, 6)
    for part in (slice(0, 50), slice(50, 50), slice(50, 200)):
        genes.add(hidden[part], tokens[part])
    means, counts = genes.means()
    assert means.dtype == torch.float32
    assert counts.dtype == torch.int64
    assert counts.tolist() == np.bincount(tokens, minlength=vocab).tolist()
    for token in range(vocab):
        seen = hidden.double().numpy()[tokens.numpy() == token]
        expected = seen.mean(axis=0) if len(seen) else np.full(6, np.nan)
        np.testing.assert_allclose(means[token].numpy(), expected, atol=1e-6)


def test_gene_means_refuse_unknown_tokens() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        GeneMeans(4, 6).add(draw(1), torch.tensor([4]))

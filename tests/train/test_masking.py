"""Masked genes: rates, targets, and tokens that are never masked."""

from __future__ import annotations

import numpy as np
import pytest

from scfm._types import TokenBatch
from scfm.genes import Vocabulary
from scfm.train.masking import Masking
from scfm.train.objective import IGNORED

SPECIALS = ["<pad>", "<mask>", "<cls>", "<eos>"]
VOCABULARY = Vocabulary.of_names([f"ENSG{i:011d}" for i in range(1000)], SPECIALS)


def batch_of(n_cells: int, n_genes: int) -> TokenBatch:
    rng = np.random.default_rng(0)
    cells = [np.concatenate([[2], rng.permutation(1000)[:n_genes] + 4, [3, 1004]]) for _ in range(n_cells)]
    lengths = np.full(n_cells, n_genes + 3)
    return TokenBatch(np.arange(n_cells), np.concatenate(cells), lengths, tags=np.zeros(n_cells, np.int64))


def test_rates() -> None:
    batch = batch_of(400, 300)
    training = Masking(VOCABULARY)(batch, np.random.default_rng(1))
    predicted = training.targets != IGNORED
    before, after = batch.tokens[predicted], training.batch.tokens[predicted]
    np.testing.assert_array_equal(training.targets[predicted], before)
    np.testing.assert_array_equal(training.batch.tokens[~predicted], batch.tokens[~predicted])
    is_gene = (batch.tokens >= 4) & (batch.tokens < 1004)
    assert not predicted[~is_gene].any()  # specials, and a token beyond the vocabulary
    n_genes, n = is_gene.sum(), predicted.sum()
    random = (after != 1) & (after != before)
    for found, of, rate in ((n, n_genes, 0.15), ((after == 1).sum(), n, 0.8), (random.sum(), n, 0.1)):
        assert abs(found / of - rate) < 4 * np.sqrt(rate * (1 - rate) / of), rate
    assert after[random].min() >= 4
    assert len(np.unique(after[random])) > 700
    assert training.batch.tags is batch.tags
    assert training.labels is None


def test_other_rates_and_the_seed() -> None:
    batch = batch_of(20, 100)
    tokens = batch.tokens.copy()
    masking = Masking(VOCABULARY, rate=0.5, masked=0.0, random=0.0)
    one, again, other = (masking(batch, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.targets, again.targets)
    assert not np.array_equal(one.targets, other.targets)
    np.testing.assert_array_equal(one.batch.tokens, tokens)
    everything = Masking(VOCABULARY, rate=1.0, masked=1.0, random=0.0)(batch, np.random.default_rng(0))
    assert (everything.batch.tokens == 1).sum() == 20 * 100
    np.testing.assert_array_equal(batch.tokens, tokens)


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"special tokens \['<pad>'\]; genes are masked by <mask>"):
        Masking(Vocabulary.of_names(["ENSG1"], ["<pad>"]))
    for rates in ({"rate": 1.1}, {"masked": 0.8, "random": 0.3}, {"random": -0.1}):
        with pytest.raises(ValueError, match="each must be between 0 and 1, and the last two together"):
            Masking(VOCABULARY, **rates)

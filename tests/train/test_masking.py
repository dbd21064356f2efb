"""Masked genes: rates, targets, and tokens that are never masked."""

from __future__ import annotations

import numpy as np
import pytest

from scfm.genes import Vocabulary
from scfm.train.masking import MaskGenes
from scfm.train.objective import IGNORED

SPECIALS = ["<pad>", "<mask>", "<cls>", "<eos>"]
VOCABULARY = Vocabulary.of_names([f"ENSG{i:011d}" for i in range(1000)], SPECIALS)
CELL = np.random.default_rng(0).permutation(1000)[:300] + 4
TOKENS = np.tile(np.concatenate([[2], CELL, [3, 1004, 5000]]), 400).astype(np.int32)
"""Four hundred cells with special tokens, and two tokens beyond the vocabulary."""


def test_rates() -> None:
    before = TOKENS.copy()
    shown, targets = MaskGenes(VOCABULARY)(TOKENS, np.random.default_rng(1))
    np.testing.assert_array_equal(TOKENS, before)
    assert (shown.dtype, targets.dtype) == (np.int32, np.int64)
    predicted = targets != IGNORED
    np.testing.assert_array_equal(targets[predicted], TOKENS[predicted])
    np.testing.assert_array_equal(shown[~predicted], TOKENS[~predicted])
    is_gene = (TOKENS >= 4) & (TOKENS < 1004)
    assert not predicted[~is_gene].any()
    old, new = TOKENS[predicted], shown[predicted]
    random = new[(new != 1) & (new != old)]
    for found, of, rate in (
        (predicted.sum(), is_gene.sum(), 0.15),
        ((new == 1).sum(), len(new), 0.8),
        (len(random), len(new), 0.1),
    ):
        assert abs(found / of - rate) < 4 * np.sqrt(rate * (1 - rate) / of), rate
    assert 4 <= random.min() <= random.max() < 1004
    assert len(np.unique(random)) > 700


def test_other_rates_and_the_seed() -> None:
    mask = MaskGenes(VOCABULARY, rate=0.5, masked=0.0, random=0.0)
    (shown, one), (_, again), (_, other) = (mask(TOKENS, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(shown, TOKENS)
    shown, _ = MaskGenes(VOCABULARY, rate=1.0, masked=1.0, random=0.0)(TOKENS, np.random.default_rng(0))
    assert (shown == 1).sum() == 400 * 300


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"special tokens \['<pad>'\]; genes are masked by <mask>"):
        MaskGenes(Vocabulary.of_names(["ENSG1"], ["<pad>"]))
    for rates in ({"rate": 1.1}, {"masked": 0.8, "random": 0.3}, {"random": -0.1}):
        with pytest.raises(ValueError, match="each must be between 0 and 1, and the last two together"):
            MaskGenes(VOCABULARY, **rates)

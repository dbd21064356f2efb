"""Masked genes: which tokens of a batch are to be predicted, and what the network sees in their place."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from scfm.train.objective import IGNORED, TrainingBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm._types import TokenBatch
    from scfm.genes import Vocabulary

__all__ = ["Masking"]


@dataclass(frozen=True)
class Masking:
    """Chooses genes to be predicted: of these, most become ``<mask>``, some a random gene, the others stay (BERT).

    As Devlin et al. 2019 (doi:10.18653/v1/N19-1423) and ``transformers.DataCollatorForLanguageModeling``, with one
    difference: a random token is always a gene, never a special token. Special tokens are never chosen.

    Parameters
    ----------
    vocabulary
        Genes, and the token of ``<mask>``.
    rate
        Share of the genes that are to be predicted, each independently of the others.
    masked, random
        Share of these that become ``<mask>``, and a random gene.

    Raises
    ------
    ValueError
        If the vocabulary has no ``<mask>``, or shares are not between 0 and 1.

    Examples
    --------
    >>> import numpy as np
    >>> from scfm._types import TokenBatch
    >>> from scfm.genes import Vocabulary
    >>> vocabulary = Vocabulary.of_names(["ENSG1", "ENSG2", "ENSG3"], ["<pad>", "<mask>", "<cls>"])
    >>> batch = TokenBatch(np.array([0]), np.array([2, 4, 3, 5]), np.array([4]))
    >>> training = Masking(vocabulary, rate=1.0, masked=1.0, random=0.0)(batch, np.random.default_rng(0))
    >>> training.batch.tokens, training.targets
    (array([2, 1, 1, 1]), array([-100,    4,    3,    5]))
    """

    vocabulary: InitVar[Vocabulary]
    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    _mask: int = field(init=False, repr=False)
    _genes: NDArray[np.int32] = field(init=False, repr=False)
    _is_gene: NDArray[np.bool_] = field(init=False, repr=False)

    def __post_init__(self, vocabulary: Vocabulary) -> None:
        if "<mask>" not in vocabulary.special_tokens:
            msg = (
                f"The vocabulary has the special tokens {list(vocabulary.special_tokens)}; genes are masked by <mask>. "
                "Give it one, or train without masked genes."
            )
            raise ValueError(msg)
        shares = self.rate, self.masked, self.random, self.masked + self.random
        if not all(0 <= share <= 1 for share in shares):
            msg = f"rate={self.rate}, masked={self.masked}, random={self.random}: each must be between 0 and 1, and the last two together."
            raise ValueError(msg)
        is_gene = np.zeros(vocabulary.size, bool)
        is_gene[vocabulary.tokens] = True
        for name, value in {
            "_mask": vocabulary.special_tokens["<mask>"],
            "_genes": vocabulary.tokens,
            "_is_gene": is_gene,
        }.items():
            object.__setattr__(self, name, value)

    def __call__(self, batch: TokenBatch, rng: np.random.Generator) -> TrainingBatch:
        """Mask the genes of a batch.

        Parameters
        ----------
        batch
            Sequences; tokens beyond the vocabulary (assays) count as special.
        rng
            Where genes are drawn from, alone.

        Returns
        -------
        The masked sequences, and the targets; the tokens of ``batch`` are not changed.
        """
        tokens = batch.tokens
        is_gene = self._is_gene[np.minimum(tokens, len(self._is_gene) - 1)] & (tokens < len(self._is_gene))
        chosen = np.flatnonzero(is_gene & (rng.random(len(tokens)) < self.rate))
        kind = rng.random(len(chosen))
        shown, targets = tokens.copy(), np.full(len(tokens), IGNORED, np.int64)
        targets[chosen] = tokens[chosen]
        shown[chosen[kind < self.masked]] = self._mask
        replaced = chosen[(kind >= self.masked) & (kind < self.masked + self.random)]
        shown[replaced] = rng.choice(self._genes, len(replaced))
        return TrainingBatch(replace(batch, tokens=shown), targets)

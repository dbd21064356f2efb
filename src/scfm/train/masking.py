"""Masked genes: which tokens of a sequence are to be predicted, and what the network sees in their place."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scfm.train.objective import IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm.genes import Vocabulary

__all__ = ["MaskGenes"]


@dataclass(frozen=True)
class MaskGenes:
    """Chooses genes to be predicted: of these, most become ``<mask>``, some a random gene, the others stay.

    As in BERT (Devlin et al. 2019, doi:10.18653/v1/N19-1423) and in ``transformers.DataCollatorForLanguageModeling``,
    with one difference: a random token is always a gene, never a special token. Special tokens are never chosen.

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
    >>> from scfm.genes import Vocabulary
    >>> vocabulary = Vocabulary.of_names(["ENSG1", "ENSG2", "ENSG3"], ["<pad>", "<mask>", "<cls>"])
    >>> mask = MaskGenes(vocabulary, rate=1.0, masked=1.0, random=0.0)
    >>> mask(np.array([2, 4, 3, 5]), np.random.default_rng(0))
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
        is_gene = np.zeros(vocabulary.size + 1, bool)  # the last entry is that of all tokens beyond the vocabulary
        is_gene[vocabulary.tokens] = True
        object.__setattr__(self, "_mask", vocabulary.special_tokens["<mask>"])
        object.__setattr__(self, "_genes", vocabulary.tokens)
        object.__setattr__(self, "_is_gene", is_gene)

    def __call__(
        self, tokens: NDArray[np.int32], rng: np.random.Generator
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Mask the genes of a sequence.

        Parameters
        ----------
        tokens
            Token ids of one sequence, or of several one after the other, shape ``(n,)``; those beyond the vocabulary
            (assays) count as special.
        rng
            Where genes are drawn from, alone.

        Returns
        -------
        shown
            Tokens that the network reads, shape and dtype of ``tokens``.
        targets
            Token to be predicted, −100 elsewhere, shape ``(n,)``.
        """
        is_gene = self._is_gene[np.minimum(tokens, len(self._is_gene) - 1)]
        chosen = np.flatnonzero(is_gene & (rng.random(len(tokens)) < self.rate))
        kind = rng.random(len(chosen))
        shown, targets = tokens.copy(), np.full(len(tokens), IGNORED, np.int64)
        targets[chosen] = tokens[chosen]
        shown[chosen[kind < self.masked]] = self._mask
        replaced = chosen[(kind >= self.masked) & (kind < self.masked + self.random)]
        shown[replaced] = rng.choice(self._genes, len(replaced))
        return shown, targets

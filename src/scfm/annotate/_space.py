"""The space in which labels are compared: whitened by the variation within labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm.annotate._reference import Reference

__all__ = ["LabelSpace", "unit"]

TINY = 1e-12


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """Embeddings centred on the labels and whitened by the covariance within labels.

    What varies within a label (sequencing depth, cell cycle, and the batch if labels span several) is noise to an
    annotation. Whitening by it is within-class covariance normalisation :cite:p:`Hatch2006`; the covariance is shrunk
    as in :cite:t:`Ledoit2004`.
    """

    origin: NDArray[np.float64]
    """Mean of the means of the labels, shape ``(d,)``, so that frequent labels have no more weight."""
    whitening: NDArray[np.float64]
    """Matrix ``W`` with ``W @ W.T`` the inverse of the covariance within labels, shape ``(d, d)``."""
    means: NDArray[np.float32]
    """Direction of the mean of each label in the whitened space, shape ``(n_labels, d)``, of length 1."""

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Estimate the space from labelled cells; labels without cells are ignored.

        Raises
        ------
        ValueError
            If no label has two different cells, so that the variation within labels cannot be estimated.
        """
        from sklearn.covariance import ledoit_wolf

        means = reference.means()
        within = reference.values - means[reference.codes]
        if not np.any(within):
            msg = (
                f"None of the {len(reference.labels)} labels has two different cells, so the variation within a label "
                "is not known. Give more cells of each label."
            )
            raise ValueError(msg)
        covariance, _ = ledoit_wolf(within, assume_centered=True)
        variances, axes = np.linalg.eigh(covariance)
        whitening = axes / np.sqrt(np.maximum(variances, TINY * variances[-1]))
        means = means[reference.present()]
        origin = means.mean(axis=0)
        return cls(origin, whitening, unit((means - origin) @ whitening).astype(np.float32))

    def whiten(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Embeddings of shape ``(n, d)`` in the whitened space: variance 1 in each direction within a label."""
        return np.asarray((values - self.origin) @ self.whitening, dtype=np.float32)

    def novelty(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Novelty of embeddings of shape ``(n, d)``: 1 − cosine to the nearest label mean, 0 to 2; float32, ``(n,)``."""
        cosine = (unit(self.whiten(values)) @ self.means.T).max(axis=1)
        return np.asarray(1 - cosine, dtype=np.float32)


def unit(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rows scaled to unit length; zero rows stay zero."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.maximum(length, TINY))

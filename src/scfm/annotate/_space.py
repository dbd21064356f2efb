"""The space in which labels are compared: whitened by what varies within a label."""

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
    """Embeddings whitened by their covariance within labels, seen from the middle of the labels.

    What varies among cells of one label (sequencing depth, cell cycle, and, where the labels were measured in several
    batches, the batch) is noise to an annotation. Dividing by it is within-class covariance normalisation
    :cite:p:`Hatch2006`; the covariance is shrunk as in :cite:t:`Ledoit2004`.
    """

    origin: NDArray[np.float64]
    """Mean of the means of the labels, shape ``(d,)``: a frequent label does not pull it."""
    whitening: NDArray[np.float64]
    """Matrix ``W`` with ``W @ W.T`` the inverse of the covariance within labels, shape ``(d, d)``."""
    means: NDArray[np.float32]
    """Direction of the mean of each label in the whitened space, shape ``(n_labels, d)``, of length 1."""

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Estimate the space from labelled cells.

        Parameters
        ----------
        reference
            Labelled cells; labels without a cell are left out.

        Raises
        ------
        ValueError
            If no label has two cells that differ, so that nothing is known about the variation within one.
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
        """How unlike all labels a cell is: 1 − cosine to the nearest mean of a label, from 0 (alike) to 2.

        Parameters
        ----------
        values
            Embeddings, shape ``(n, d)``.

        Returns
        -------
        float32, shape ``(n,)``.
        """
        cosine = (unit(self.whiten(values)) @ self.means.T).max(axis=1)
        return np.asarray(1 - cosine, dtype=np.float32)


def unit(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rows scaled to length 1; a row of zeros stays."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.maximum(length, TINY))

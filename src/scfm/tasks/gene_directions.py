"""How much the state of a gene points in the same direction in all cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.tasks.gene_means import GeneMeans
from scfm.tasks.task import Resumable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from numpy.typing import NDArray

    from scfm._types import TokenBatch
    from scfm.run.engine import Forward

__all__ = ["GeneDirections"]


class GeneDirections(GeneMeans, Resumable):
    """Mean of the state of each gene, scaled to length 1, over all cells or those of each group; as :class:`GeneMeans`."""

    done = "compared the genes of"
    empty_rows = "left out of all means"
    block_rows = 512  # results can be put aside between two blocks

    def make_forward(self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Forward:
        """The forward pass of the model, with states of length 1."""
        from torch.nn import functional as F

        compute = super().make_forward(network, device, dtype)

        def directions(batch: TokenBatch) -> torch.Tensor:
            return F.normalize(compute(batch).float(), dim=1)

        return directions

    def sums(self) -> dict[str, NDArray[Any]]:
        """Sum and number of the directions of each gene."""
        means = self._means.means
        return {"sums": means.sums.numpy(), "counts": means.counts.numpy()}

    def restore(self, sums: Mapping[str, NDArray[Any]]) -> None:
        """Go on from them."""
        for name, array in self.sums().items():
            array[:] = sums[name]

    def variances(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Variance of the direction of each gene, NaN if it was never seen, and in how many cells or groups it was.

        One minus the length of the mean direction: over cells, or over groups, each with the direction of its mean.
        """
        means, counts = self.values().astype(np.float64), self.counts()
        if self._grouped:
            lengths = np.linalg.norm(means, axis=2, keepdims=True)
            seen = ~np.isnan(lengths[..., 0])
            counts = seen.sum(axis=1)
            with np.errstate(invalid="ignore"):
                means = np.where(seen[..., None], means / lengths, 0).sum(axis=1) / counts[:, None]
        return np.maximum(1 - np.linalg.norm(means, axis=1), 0).astype(np.float32), counts  # rounding may be negative

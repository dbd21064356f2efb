"""Results in the forms in which they are looked at."""

from __future__ import annotations

from scfm.get._attention import attention_df
from scfm.get._genes import gene_adata, marker_genes_df
from scfm.get._perturb import perturb_df, perturbed

__all__ = ["attention_df", "gene_adata", "marker_genes_df", "perturb_df", "perturbed"]


def __dir__() -> list[str]:
    return sorted(__all__)

"""How well the genes of a data set fit a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm.model import load_recipe
from scfm.model.arguments import Arguments

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from mudata import MuData

    from scfm._types import Compat
    from scfm.genes import MatchReport
    from scfm.model import FoundationModel
    from scfm.model.arguments import SharedWith

__all__ = ["match_genes"]


@typed
@with_parameters
def match_genes(
    data: AnnData | MuData | str | Path,
    model: str | Path | FoundationModel,
    *,
    modality: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    compat: Compat | None = None,
    shared_with: SharedWith = None,
    dictionaries: str | Path | Sequence[str | Path] | None = None,
    **options: Any,
) -> MatchReport:
    """Report how the genes of a data set match those of a model; needs its vocabulary, not its weights.

    Parameters
    ----------
    %(data)s
    %(model)s
    %(matrix)s
    %(compat)s
    %(shared_with)s
    dictionaries
        Published gene dictionaries (files, or folders that hold them), for a model that is not on this machine.
    %(options)s

    Returns
    -------
    Numbers of matched, unmatched and merged genes, by which route, and of what is left out; shown as a sentence.

    Raises
    ------
    %(errors)s
    ValueError
        If no feature is a gene, or the genes are of a species that the model does not know; the message says what was
        found, what the model expects, and which models know the species.

    Examples
    --------
    >>> import scfm
    >>> report = scfm.pp.match_genes(scfm.datasets.pbmc68k(), "scfm-mini")
    >>> report.matched + report.unmatched == report.n_genes
    True
    """
    arguments = Arguments(
        modality=modality,
        layer=layer,
        use_raw=use_raw,
        gene_key=gene_key,
        compat=compat,
        shared_with=shared_with,
        options=options,
    )
    return load_recipe(model, dictionaries).match_report(data, arguments)

"""How well the genes of a data set fit a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scfm.model import FoundationModel
from scfm.model._load import load_vocabulary
from scfm.read import open_counts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from mudata import MuData

    from scfm.genes import MatchReport
    from scfm.model._base import Compat

__all__ = ["match_genes"]


def match_genes(
    data: AnnData | MuData | str | Path,
    model: str | Path | FoundationModel,
    *,
    modality: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    compat: Compat | None = None,
    dictionaries: str | Path | Sequence[str | Path] | None = None,
) -> MatchReport:
    """Report how the genes of a data set match those of a model; needs its vocabulary, not its weights.

    Parameters
    ----------
    data, modality, layer, use_raw, gene_key, compat
        As for :func:`scfm.tl.embed`; ``data`` may also be the path of a file.
    model
        Id, alias, folder, or a loaded model.
    dictionaries
        Published gene dictionaries (files, or folders that hold them), for a model that is not on this machine.

    Returns
    -------
    Numbers of matched, unmatched and merged genes, and by which route; ``print`` it for a sentence.

    Raises
    ------
    ValueError
        If no gene matches; the message says what the ids look like and what the model expects.

    Examples
    --------
    >>> import scfm
    >>> report = scfm.pp.match_genes(scfm.datasets.pbmc68k(), "scfm-mini")
    >>> report.matched + report.unmatched == report.n_genes
    True
    """
    if isinstance(model, FoundationModel):
        cls, vocabulary = type(model), model.vocabulary
    else:
        cls, vocabulary = load_vocabulary(model, dictionaries)
    prefer_raw = compat is not None and cls.upstream_prefers_raw
    with open_counts(data, modality=modality, layer=layer, use_raw=use_raw, prefer_raw=prefer_raw) as source:
        return cls.match_genes(source.var, vocabulary, gene_key=gene_key, compat=compat).report

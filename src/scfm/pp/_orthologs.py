"""Map counts of one species to orthologous genes of another."""

from __future__ import annotations

import gzip
import logging
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scfm._checks import entry_of, typed
from scfm._keys import PARAMS
from scfm._settings import settings
from scfm._text import some
from scfm._warn import warn
from scfm.genes.features import Features, any_of, place
from scfm.genes.species import describe_ids, strip_version
from scfm.read import open_counts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from scfm.read import CountSource

__all__ = ["to_orthologs"]

logger = logging.getLogger("scfm")

KEY = "orthologs"
RELATIONS = ("one2one", "one2many", "many2many")
IDS = re.compile(r"(.*?)\s*gene stable id|(.*?)_?(?:homolog_)?ensembl_gene(?:_id)?", re.IGNORECASE)
NAMES = re.compile(r"(.*?)\s*gene name|(.*?)_?(?:homolog_associated|external)_gene_name", re.IGNORECASE)
KINDS = re.compile(r"(.*?)\s*homology type|(.*?)_?homolog_orthology_type", re.IGNORECASE)
"""Headings of BioMart and of the R package biomaRt; they begin with the species, except that of the exported genes."""
LOW_SHARE = 0.2
"""Share of mapped genes below which the table may be the wrong one."""


class _Columns(NamedTuple):
    """Columns of a table that are used."""

    source: str
    target: str
    name: str | None
    """Names of the targets."""
    relation: str | None


@typed
def to_orthologs(
    adata: AnnData,
    table: pd.DataFrame | str | Path,
    *,
    relations: str | Sequence[str] = "one2one",
    source: str | None = None,
    target: str | None = None,
    relation_key: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
) -> AnnData:
    """Map counts of one species to orthologous genes of another.

    The table is an export of `Ensembl BioMart <https://www.ensembl.org/biomart>`_: genes of one of the species, with
    *Homologues* of the other. The column with the genes of the data is detected.

    Parameters
    ----------
    adata
        Counts of cells × genes.
    table
        A DataFrame, or the path of a TSV or CSV file (perhaps ``.gz``), with the columns *Gene stable ID*, *… gene stable ID* of the other
        species, and preferably *… homology type* and gene names.
    relations
        Which orthologs to use: ``"one2one"``, ``"one2many"``, ``"many2many"``, or a list of these. Counts of genes with the
        same ortholog are added up; a gene with several orthologs adds its count to each. If the table has no homology types,
        genes with one partner in both directions are one-to-one.
    source
        Column of the table with the ids or names of the genes in the data. By default the one with the most matches.
    target
        Column of the table with the ids of the other species. By default the other column with ids.
    relation_key
        Column of the table with homology types such as ``ortholog_one2one``.
    layer
        Layer that holds the counts.
    use_raw
        Take the counts from ``raw``. By default X if it holds counts, else raw if that does.
    gene_key
        Column of ``var`` with the genes, ``"index"`` for ``var_names``. By default the place where most genes match.

    Returns
    -------
    A new AnnData with the same ``obs`` and ``obsm``; ``adata`` is not changed.

    ``.X`` : sparse, shape ``(n_obs, n_targets)``
        Counts, float32, or float64 if the dtype of the counts needs it.
    ``.var`` : DataFrame
        The ids of the other species are the index. ``ortholog_of``: genes of the data, separated by ``;``. ``gene_name``: if
        the table has names.
    ``.uns['orthologs']['params']`` : dict
        The columns that were used, the number of mapped genes, and the share of counts that was mapped. A summary is logged
        at the level ``info``.

    Raises
    ------
    TypeError
        If ``adata`` is not an AnnData, or a column name is not a string.
    KeyError
        If a column does not exist.
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the table has no column with ids of another species or several, or no gene of the data is in it or has such an
        ortholog.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, scfm
    >>> table = pd.DataFrame(
    ...     {
    ...         "Gene stable ID": ["ENSMUSG00000059552", "ENSMUSG00000023067"],
    ...         "Gene name": ["Trp53", "Cdkn1a"],
    ...         "Human gene stable ID": ["ENSG00000141510", "ENSG00000124762"],
    ...         "Human homology type": ["ortholog_one2one", "ortholog_one2one"],
    ...     }
    ... )
    >>> mouse = ad.AnnData(np.array([[3, 0, 1]], "float32"), var=pd.DataFrame(index=["Trp53", "Xist", "Cdkn1a"]))
    >>> human = scfm.pp.to_orthologs(mouse, table)
    >>> human.var_names.tolist(), human.X.toarray().tolist()
    (['ENSG00000124762', 'ENSG00000141510'], [[1.0, 3.0]])
    """
    kinds = [relations] if isinstance(relations, str) else list(relations)
    unknown = [kind for kind in kinds if kind not in RELATIONS]
    if unknown or not kinds:
        msg = f"relations={relations!r} is not known; give one or several of {', '.join(map(repr, RELATIONS))}."
        raise ValueError(msg)
    frame = _read(table)
    with open_counts(adata, layer=layer, use_raw=use_raw) as counts:
        features = Features.of(counts.var, gene_key)
        genes = ~any_of(features.not_genes.values(), features.n_vars)
        names = {key: _plain(np.where(genes, ids, "")) for key, ids in features.names.items()}
        key, columns = _columns(frame, names, source, target, relation_key)
        links = _links(frame, columns, kinds, names[key])
        targets = pd.Index(np.unique(links["target"]), dtype=object)
        values, share = _summed(counts, genes, (links["row"], targets.get_indexer(links["target"])), len(targets))
    mapped = links["row"].nunique()
    params = {"gene_key": key, **columns._asdict(), "relations": ", ".join(kinds), "n_genes": int(genes.sum())}
    params |= {"n_mapped": mapped, "n_targets": len(targets), "share_of_counts": share}
    report = (
        f"{mapped:,} of {genes.sum():,} genes in {place(key)} have orthologs ({params['relations']}) in {columns.target!r}; "
        f"the result has {len(targets):,} genes and {share:.0%} of the counts"
    )
    (warn if mapped < LOW_SHARE * genes.sum() else logger.info)(report)
    by_target = links.groupby("target")
    var = pd.DataFrame(
        {"ortholog_of": by_target["source"].agg(lambda one: ";".join(dict.fromkeys(one)))}, index=targets
    )
    if columns.name is not None:
        var["gene_name"] = by_target["name"].first()
    obsm = {name: adata.obsm[name].copy() for name in adata.obsm}
    return AnnData(values, obs=adata.obs.copy(), var=var, obsm=obsm, uns={KEY: {PARAMS: params}})


def _read(table: pd.DataFrame | str | Path) -> pd.DataFrame:
    if isinstance(table, pd.DataFrame):
        return table
    path = Path(table).expanduser()
    try:
        # Other compressions than gzip may hold any number of bytes in a few.
        layout: dict[str, Any] = {"dtype": str, "keep_default_na": False}
        layout["compression"] = "gzip" if path.suffix == ".gz" else None
        found = pd.read_csv(path, sep="\t", **layout)
        return found if found.shape[1] > 1 else pd.read_csv(path, **layout)
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:  # pandas' own errors are ValueErrors, too
        msg = f"{path} is not a table of orthologs ({error}): export one from BioMart as TSV or CSV."
        raise ValueError(msg) from error


def _plain(names: Iterable[Any]) -> NDArray[np.object_]:
    """Names without the versions of Ensembl ids; empty for a missing one."""
    return np.array(["" if pd.isna(name) else strip_version(str(name)) for name in names], dtype=np.object_)


def _headed(frame: pd.DataFrame, pattern: re.Pattern[str]) -> dict[str, str]:
    """Columns by the species in their headings."""
    found = [pattern.fullmatch(str(column)) for column in frame.columns]
    return {(match[1] or match[2] or "").lower(): match[0] for match in found if match is not None}


def _columns(
    frame: pd.DataFrame,
    names: dict[str, NDArray[np.object_]],
    source: str | None,
    target: str | None,
    relation: str | None,
) -> tuple[str, _Columns]:
    """Where the genes are in the data, and which columns of the table map them."""
    ids, symbols, kinds = (_headed(frame, pattern) for pattern in (IDS, NAMES, KINDS))
    species = {column: name for heads in (ids, symbols) for name, column in heads.items()}
    tried = [source] if source is not None else [column for column in species if column != target]
    known = {column: set(_plain(entry_of(frame, column, "the table"))) - {""} for column in tried}
    hits = {
        (key, column): sum(map(values.__contains__, genes))
        for key, genes in names.items()
        for column, values in known.items()
    }
    if not any(hits.values()):
        looks = "; ".join(f"{place(key)} holds {describe_ids(genes.tolist())}" for key, genes in names.items())
        there = "; ".join(f"{column!r} holds {describe_ids(values)}" for column, values in known.items())
        msg = (
            f"No gene of the data is in the table: {looks}. In the table, {there or f'{list(frame.columns)} are not headings of BioMart'}. "
            "Export a table of this species, or name the columns with gene_key=, source= and target=."
        )
        raise ValueError(msg)
    key, source = max(hits, key=lambda pair: hits[pair])
    others = [column for column in ids.values() if species[column] != species.get(source)]
    if target is None and len(others) != 1:
        listed = (
            f"several columns with ids of another species ({some(others)})"
            if others
            else "no column with ids of another species"
        )
        msg = f"The table has {listed} beside {source!r}; pass the one to map to as target=."
        raise ValueError(msg)
    target = others[0] if target is None else target
    of = [species[column] for column in (target, source) if column in species]
    relation = next((kinds[name] for name in of if name in kinds), None) if relation is None else relation
    return key, _Columns(source, target, symbols.get(species.get(target, "")) if target in species else None, relation)


def _links(frame: pd.DataFrame, columns: _Columns, kinds: Sequence[str], genes: NDArray[np.object_]) -> pd.DataFrame:
    """Rows of the data (``row``, ``source``) and the targets of each; a ValueError if there are none."""
    values = {
        name: _plain(entry_of(frame, column, "the table")) for name, column in columns._asdict().items() if column
    }
    pairs = pd.DataFrame(values)
    pairs = pairs[(pairs["source"] != "") & (pairs["target"] != "")]
    if "relation" in pairs:
        pairs = pairs[pairs["relation"].str.removeprefix("ortholog_").isin(kinds)]
    pairs = pairs.drop_duplicates(["source", "target"])
    if list(kinds) == ["one2one"]:
        pairs = pairs[~pairs.duplicated("source", keep=False) & ~pairs.duplicated("target", keep=False)]
    links = pd.DataFrame({"source": genes, "row": np.arange(len(genes))}).merge(pairs, on="source")
    if links.empty:
        msg = f"No gene of the data has an ortholog ({', '.join(kinds)}) in {columns.target!r}; relations= chooses others."
        raise ValueError(msg)
    return links


def _summed(
    counts: CountSource, genes: NDArray[np.bool_], links: tuple[Any, Any], n_targets: int
) -> tuple[sparse.csr_matrix, float]:
    """Counts of the targets, and their share of all counts of genes."""
    total, parts = 0.0, [sparse.csr_matrix((0, n_targets), dtype=np.float32)]
    to_targets = sparse.csr_matrix((np.ones(len(links[0]), np.float32), links), (len(genes), n_targets))
    for block in counts.blocks(settings.block_rows):
        data = block.data.astype(np.result_type(block.data.dtype, np.float32))  # sums of small integers would overflow
        matrix = sparse.csr_matrix((data, block.indices, block.indptr), (block.n_cells, len(genes)))
        parts.append(matrix @ to_targets)
        total += float(data[genes[block.indices]].sum(dtype=np.float64))
    values = sparse.vstack(parts, format="csr")
    return values, float(values.sum(dtype=np.float64)) / total if total else 0.0

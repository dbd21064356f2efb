"""Published tables of marker genes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfm._checks import typed

if TYPE_CHECKING:
    from scfm._types import Compat

__all__ = ["read_markers"]

# The benchmark aligns alveolar cells of the lung to T helper cells, misled by their names.
CORRECTIONS = {
    ("GSE130148", "Type 1"): ["Pulmonary alveolar type I cell", "Type I pneumocyte"],
    ("GSE130148", "Type 2"): ["Pulmonary alveolar type II cell", "Type II pneumocyte"],
}


@typed
def read_markers(
    path: str | Path,
    *,
    alignment: str | Path | None = None,
    dataset: str | None = None,
    symbols: str | Path | None = None,
    compat: Compat | None = None,
) -> dict[str, list[str]]:
    r"""Read marker genes of cell types from the tables of the scCello benchmark.

    Parameters
    ----------
    path
        Tab-separated table with the columns ``cellType`` and ``geneMarker`` (symbols, with commas between):
        ``cellmarkers.tsv``.
    alignment
        Table with the columns ``dataset``, ``original label`` and ``aligned label`` (cell types of ``path``, with
        commas between): ``celllabel2typesquality.csv``. The result then has the labels of one data set.
    dataset
        Data set of ``alignment``, or a part of one: ``"GSE96583_1"``.
    symbols
        Table with the columns ``id`` and ``name``: ``vocab_id2name.csv``. The genes are then ids; unknown symbols are
        dropped.
    compat
        By default a symbol with several ids maps to all of them, and the lung labels ``Type 1`` and ``Type 2`` of
        GSE130148 are alveolar cells. ``"upstream"``: a symbol maps to its last id, and these labels to T helper cells,
        as in the published table.

    Returns
    -------
    Unique genes of each cell type or label, sorted. A label that is aligned to no known cell type has no genes; rows
    without a label are skipped.

    Raises
    ------
    FileNotFoundError
        If a table does not exist.
    KeyError
        If a column is missing.
    ValueError
        If only one of ``alignment`` and ``dataset`` is given, or the table does not hold the data set.

    Examples
    --------
    >>> import scfm, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "markers.tsv"
    >>> _ = path.write_text("cellType\tgeneMarker\nB cell\tMS4A1,CD79A\n")
    >>> scfm.metrics.read_markers(path)
    {'B cell': ['CD79A', 'MS4A1']}
    """
    if (alignment is None) != (dataset is None):
        msg = f"alignment={alignment!r}, dataset={dataset!r}: the labels of a data set need both, cell types neither."
        raise ValueError(msg)
    table = _read(path, "\t", "cellType", "geneMarker")
    markers = {name: genes.split(",") for name, genes in zip(table["cellType"], table["geneMarker"], strict=True)}
    if symbols is not None:
        ids = _ids_of(symbols, compat)
        markers = {name: [id for gene in genes for id in ids.get(gene, ())] for name, genes in markers.items()}
    if alignment is not None and dataset is not None:
        types = _types_of(alignment, dataset, compat)
        markers = {label: [gene for name in names for gene in markers.get(name, ())] for label, names in types.items()}
    return {name: sorted(set(genes)) for name, genes in markers.items()}


def _read(path: str | Path, separator: str, *columns: str) -> pd.DataFrame:
    """The columns of a table as strings."""
    if not Path(path).expanduser().is_file():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    if missing := [name for name in columns if name not in table]:
        msg = f"{path} has no column {missing}; found {list(table.columns)}."
        raise KeyError(msg)
    return table[list(columns)]


def _ids_of(symbols: str | Path, compat: Compat | None) -> dict[str, list[str]]:
    table, ids = _read(symbols, ",", "id", "name"), dict[str, list[str]]()
    for id, name in zip(table["id"], table["name"], strict=True):
        ids[name] = [id] if compat is not None else [*ids.get(name, ()), id]
    return ids


def _types_of(alignment: str | Path, dataset: str, compat: Compat | None) -> dict[str, list[str]]:
    """Cell types that each label of a data set is aligned to."""
    table = _read(alignment, ",", "dataset", "original label", "aligned label")
    rows = table[[f"{dataset}_".startswith(f"{name}_") for name in table["dataset"]]]
    if rows.empty:
        msg = f"{alignment} has no data set {dataset!r}; it has {np.unique(table['dataset']).tolist()}."
        raise ValueError(msg)
    types = {}
    for name, label, aligned in rows.itertuples(index=False):
        if label:
            corrected = CORRECTIONS.get((name, label)) if compat is None else None
            types[label] = corrected or aligned.split(",")
    return types

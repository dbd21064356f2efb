"""Files of 10x Genomics' Cell Ranger (``.h5``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from scfm.read._container import Element, Stored, TableContainer
from scfm.read._door import entry, entry_of_names, inside, is_group
from scfm.read._tables import text_of
from scfm.read.backed import SparseStored

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TenxContainer", "tenx_groups"]

COLUMNS = {"id": "gene_ids", "gene_id": "gene_ids", "feature_type": "feature_types"}
"""Names that scanpy gives to what is stored of features."""
NOT_READ = ("name", "_all_tag_keys")


def tenx_groups(root: Any) -> list[str]:
    """Names of the matrices of a file: ``matrix`` since Cell Ranger 3, one for each genome before; none in other files."""
    groups = {name: found for name in root if is_group(found := inside(root, name))}
    return [name for name, group in groups.items() if "barcodes" in group and "indptr" in group]


class TenxContainer(TableContainer):
    """One matrix of such a file.

    Genes × cells by columns are cells × genes by rows, so cells are read as from any other file. Tables are as
    :func:`scanpy.read_10x_h5` makes them, but all features are there, not genes alone.

    Parameters
    ----------
    group
        The group of the matrix.
    label
        Its name in messages.
    """

    def __init__(self, group: Any, label: str) -> None:
        self._group = group
        n_vars, n_obs = entry(group, "shape")[()].tolist()
        self._shape = n_obs, n_vars
        super().__init__(label, pd.DataFrame(index=text_of(entry_of_names(group, "barcodes")[0])), _features(group))

    def stored(self, element: Element) -> Stored:
        """The matrix."""
        for part in ("data", "indices", "indptr"):
            entry(self._group, part, chunks=False)
        matrix = SparseStored(self._group, self._shape, f"{element.name} of {self.label}")
        return Stored(matrix, range(self._shape[0]), None, self.var)


def _features(group: Any) -> pd.DataFrame:
    if "features" not in group:
        ids, names = text_of(entry(group, "genes")), text_of(entry_of_names(group, "gene_names")[0])
        return pd.DataFrame({"gene_ids": ids, "genome": group.name.strip("/")}, index=names)
    return pd.DataFrame(
        dict(_columns(entry(group, "features"))), index=text_of(entry_of_names(group, "features/name")[0])
    )


def _columns(features: Any) -> Iterator[tuple[str, Any]]:
    """Columns of features; the ids of probes have those of genes beside them."""
    for name in features:
        if name not in NOT_READ and not is_group(features[name]):
            new = "probe_ids" if name == "id" and "gene_id" in features else COLUMNS.get(name, name)
            yield new, features[name][()] if features[name].dtype.kind == "b" else text_of(features[name])

"""How the arrays of ``tests/data`` are cut and stored; ``tests/parity/layout.py`` reads them."""

from __future__ import annotations

import lzma
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from safetensors.numpy import save as to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import anndata as ad
    from numpy.typing import NDArray

Arrays = dict[str, "NDArray[Any]"]

FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 2, "lp": 2, "pb": 2}]


def load(path: Path) -> Arrays:
    """Arrays of the full values."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def save(path: Path, arrays: Arrays) -> None:
    """Write arrays as safetensors, which know no text, and compress them for numbers of four bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = {}
    for name, values in arrays.items():
        if values.dtype.kind in "SU":
            text = np.ascontiguousarray(values.astype("S"))
            numbers[f"{name}@text"] = text.view(np.uint8).reshape(*values.shape, text.itemsize)
        else:
            numbers[name] = np.asarray(values, order="C")
    path.write_bytes(lzma.compress(to_bytes(numbers), filters=FILTERS))


def cut_offsets(arrays: Arrays, offsets: str, cells: Sequence[int], names: Iterable[str]) -> Arrays:
    """Keep some cells of arrays that hold all cells one after the other."""
    starts = arrays[offsets]
    parts = [slice(starts[cell], starts[cell + 1]) for cell in cells]
    cut = {name: np.concatenate([arrays[name][part] for part in parts]) for name in names}
    return cut | {offsets: np.cumsum([0, *(part.stop - part.start for part in parts)])}


def cut_rows(tensors: Arrays, rows: dict[str, Iterable[int]]) -> Arrays:
    """Keep some rows of some tensors, with their places."""
    cut = dict(tensors)
    for name, kept in rows.items():
        places = np.unique(np.fromiter(kept, dtype=np.int32))
        cut |= {name: tensors[name][places], f"{name}@rows": places, f"{name}@length": np.array(len(tensors[name]))}
    return cut


def pack_matrix(prefix: str, matrix: Any) -> Arrays:
    """Stored entries in their order; counts as small integers."""
    counts = matrix.data
    small = counts.astype(np.uint16)
    arrays = {
        f"{prefix}.data": small if (small == counts).all() else counts,
        f"{prefix}.dtype": np.array(counts.dtype.str),
    }
    return arrays | {f"{prefix}.indices": matrix.indices.astype(np.uint16), f"{prefix}.indptr": matrix.indptr}


def pack_frame(prefix: str, frame: pd.DataFrame, columns: Sequence[str], *, names: bool) -> Arrays:
    """Columns of a table, and what its rows are called; a missing text is empty."""
    arrays = {f"{prefix}_names": np.array(frame.index, dtype="S")} if names else {}
    for name in columns:
        text = not pd.api.types.is_numeric_dtype(frame[name].dtype)
        values = frame[name].astype(object).where(frame[name].notna(), "") if text else frame[name]
        arrays[f"{prefix}.{name}"] = values.to_numpy("S" if text else None)
    return arrays


def pack_cells(adata: ad.AnnData, obs: Sequence[str], *, obs_names: bool = False) -> Arrays:
    """Take cells apart; the order of stored entries and explicit zeros stay."""
    var = ["ensembl_id"] if "ensembl_id" in adata.var else []
    arrays = pack_matrix("X", adata.X)
    arrays |= pack_frame("obs", adata.obs, obs, names=obs_names) | pack_frame("var", adata.var, var, names=not var)
    if adata.raw is not None:
        arrays |= pack_matrix("raw", adata.raw.X) | pack_frame("raw_var", adata.raw.var, var, names=False)
    return arrays

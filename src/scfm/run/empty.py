"""AnnData objects in zarr that are filled after they are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from scfm.read import Source
    from scfm.run.plan import ShardedArray

__all__ = ["INDEX", "UNSHARDED", "replaced", "write_empty"]

INDEX = "_index"
PIECE = 2**16
"""Entries of ``obs`` that are written at a time."""
UNSHARDED = {"shards": None}
"""Explicit, because anndata is about to change its default."""


def write_empty(
    path: Path, key: str, source: Source[Any], arrays: Sequence[ShardedArray], uns: Mapping[str, Any]
) -> None:
    """Write an AnnData of nothing but names, empty arrays and ``uns[key]``; names are copied a piece at a time."""
    import pandas as pd
    import zarr
    from anndata import AnnData
    from anndata.io import write_elem
    from zarr.dtype import VariableLengthUTF8

    root = zarr.open_group(path, mode="w-", zarr_format=3)
    obs_table = pd.DataFrame(index=pd.Index([], dtype=str))
    if source.files:
        obs_table["file"] = pd.Categorical([], categories=list(dict.fromkeys(file.path for file in source.files)))
    empty = AnnData(obs=obs_table, uns={key: dict(uns)})
    write_elem(root, "/", empty, dataset_kwargs=UNSHARDED)
    obs: Any = root["obs"]
    names = replaced(obs, INDEX, (source.n_obs,), VariableLengthUTF8())
    for start in range(0, source.n_obs, PIECE):
        stop = min(start + PIECE, source.n_obs)
        names[start:stop] = source.names(start, stop)
    if source.files:
        categories = list(obs["file/categories"][:])
        codes = replaced(obs["file"], "codes", (source.n_obs,), "int32")
        start = 0
        for file in source.files:
            codes[start : start + file.n_obs] = categories.index(file.path)
            start += file.n_obs
    for one in arrays:
        shape, chunks = tuple(one.shape), (one.chunk_rows, *one.shape[1:])
        array = root.create_array(one.path, shape=shape, chunks=chunks, dtype=one.dtype, fill_value=one.fill)
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def replaced(group: Any, name: str, shape: tuple[int, ...], dtype: Any, *, chunk_rows: int = PIECE) -> Any:
    """Put an array of another shape in the place of one that anndata wrote."""
    attrs = dict(group[name].attrs)
    del group[name]
    array = group.create_array(name, shape=shape, chunks=(chunk_rows, *shape[1:]), dtype=dtype)
    array.attrs.update(attrs)
    return array

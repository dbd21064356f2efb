"""Write what a container holds as a new file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anndata.io import write_elem

from scfm._settings import settings
from scfm.read._containers import open_container
from scfm.read.counts import CountSource

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from numpy.typing import DTypeLike, NDArray

__all__ = ["check_storable", "write_h5ad"]

CHUNK = 2**16


def check_storable(table: pd.DataFrame, slot: str, source: object) -> None:
    """Find out before the long work whether a table can be written to an ``.h5ad`` file.

    Parameters
    ----------
    table, slot
        The table, and its place in an AnnData.
    source
        Where it comes from, for the message.

    Raises
    ------
    ValueError
        If anndata cannot write a column, or would write one that it cannot read.
    """
    import h5py

    with h5py.File("unused", "w", driver="core", backing_store=False) as file:
        for name in table.columns:
            try:
                write_elem(file, slot, table[[name]])
            except Exception as error:
                msg = f"{slot}[{name!r}] of {source} cannot be written to an .h5ad file: {error}. Leave the column out, or convert it."
                raise ValueError(msg) from error
    if "" in table.columns:
        msg = f"{slot} of {source} has a column without a name, which cannot be written to an .h5ad file. Name it, or leave it out."
        raise ValueError(msg)


def write_h5ad(source: Path, out: Path, modality: str | None) -> None:
    """Write the cells of a file that holds no AnnData as an ``.h5ad`` file, a block at a time.

    Matrices become CSR, in the dtype they have, compressed by gzip.

    Parameters
    ----------
    source
        A 10x or loom file, as for :func:`scfm.read.open_counts`.
    out
        File to write.
    modality
        Which genome of ``source``, if there are several.
    """
    import h5py

    with open_container(source, modality) as container, h5py.File(out, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", container.obs)
        write_elem(file, "var", container.var)
        write_elem(file, "layers", {})
        for element in container.elements():
            place = f"layers/{element.layer}" if element.layer else "X"
            _write_csr(file.create_group(place), CountSource(container, element))


def _write_csr(group: Any, source: CountSource) -> None:
    shape = source.n_obs, source.n_vars
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
    data, indices = _empty(group, "data", source.read(0, 0).data.dtype), _empty(group, "indices", "i4")
    indptr = _empty(group, "indptr", "i8")
    indptr.resize((source.n_obs + 1,))
    for block in source.blocks(settings.block_rows, max_nnz=settings.block_values):
        indptr[block.row0 + 1 : block.row0 + 1 + block.n_cells] = block.indptr[1:] + data.shape[0]
        _append(data, block.data)
        _append(indices, block.indices)


def _empty(group: Any, name: str, dtype: DTypeLike) -> Any:
    return group.create_dataset(
        name, shape=(0,), maxshape=(None,), chunks=(CHUNK,), dtype=dtype, compression="gzip", compression_opts=1
    )


def _append(array: Any, values: NDArray[Any]) -> None:
    size = array.shape[0]
    array.resize((size + len(values),))
    array[size:] = values

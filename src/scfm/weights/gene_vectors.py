"""Gene vectors of a species, one HDF5 file as TranscriptFormer publishes them.

A dataset ``keys`` holds the gene ids; a group ``arrays`` holds one vector for each, under the id.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._paths import atomic, check_new
from scfm.read.arrays import stored_array
from scfm.weights.archive import read_head

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import h5py
    from numpy.typing import NDArray

__all__ = [
    "check_gene_names",
    "read_gene_names",
    "read_gene_vectors",
    "vector_size",
    "write_gene_vectors",
]

KEYS = "keys"
ARRAYS = "arrays"
MAX_GENES = 5_000_000
MAX_NAME_BYTES = 256
NAME_BYTES = 100
"""Overhead of a string in memory."""
ROOM, RATIO = 2**26, 100
"""Bytes of memory that any file may take, plus this many per byte of the file."""
MAX_CHUNK = 2**20
FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32"}


def read_gene_names(path: Path) -> list[str]:
    """Read the gene ids of a file of gene vectors, in order, with repeats; no vector is read.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not HDF5 or damaged, or its ``keys`` are not a list of fixed-length ids, or need more memory than
        64 MiB plus a hundred times the size of the file.
    """
    with _opened(path) as file:
        return _names(file, path)


def read_gene_vectors(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Read gene ids and their vectors.

    Returns
    -------
    The ids, as :func:`read_gene_names`, and their vectors, shape ``(n_genes, n_dimensions)``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        As :func:`read_gene_names`, or if an id has no vector, or one with values that are not finite, of another length,
        or outside the file, or if the vectors need more memory than that.
    """
    with _opened(path) as file:
        names = _names(file, path)
        arrays = _arrays(file, path)
        first = _vector(arrays, names[0], path)
        _check_room(4 * len(names) * first.shape[0], f"{len(names):,} vectors of length {first.shape[0]:,}", path)
        vectors = np.empty((len(names), first.shape[0]), np.float32)
        rows: dict[str, int] = {}
        for row, name in enumerate(names):
            if rows.setdefault(name, row) != row:
                vectors[row] = vectors[rows[name]]
                continue
            vector = _vector(arrays, name, path)
            if vector.shape != first.shape:
                msg = f"{path}: the vector of {name} has length {vector.shape[0]}, that of {names[0]} {first.shape[0]}; expected the same for all."
                raise ValueError(msg)
            with np.errstate(over="ignore"):  # becomes infinite, and is refused for that
                vectors[row] = _values(vector)
            if not np.isfinite(vectors[row]).all():
                msg = f"{path}: the vector of {name} holds values that are not finite; fetch or make the file again."
                raise ValueError(msg)
    return names, vectors


def vector_size(path: Path) -> int:
    """Length of the first vector of a file; no vector is read.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`read_gene_vectors`.
    """
    with _opened(path) as file:
        return int(_vector(_arrays(file, path), _names(file, path)[0], path).shape[0])


def write_gene_vectors(
    path: Path, names: Sequence[str], vectors: NDArray[np.floating[Any]], *, overwrite: bool = False
) -> Path:
    """Write gene vectors in the published layout; the file appears only when it is complete.

    Parameters
    ----------
    path
        File to write, such as ``mus_musculus_gene.h5``.
    names
        Gene ids, each once.
    vectors
        One row for each id, shape ``(n_genes, n_dimensions)``; stored as float32.
    overwrite
        Replace an existing file.

    Returns
    -------
    ``path``.

    Raises
    ------
    FileExistsError
        If the file exists and is not to be overwritten.
    FileNotFoundError
        If its folder does not exist.
    ValueError
        If an id is empty, repeated or cannot be stored, or the vectors are not a finite matrix with a row per id.
    """
    import h5py

    check_new(path, overwrite=overwrite, hint="replace a file with overwrite=True")
    check_gene_names(names)
    with np.errstate(over="ignore"):  # becomes infinite, and is refused for that
        values = np.asarray(vectors, dtype=np.float32)
    if values.ndim != 2 or len(values) != len(names) or not values.size:
        msg = f"{len(names):,} gene ids need a matrix of as many rows; the vectors have shape {values.shape}."
        raise ValueError(msg)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        msg = f"{bad.size} vectors hold values that are not finite in float32, the first that of {names[bad[0]]}."
        raise ValueError(msg)
    with atomic(path) as work, h5py.File(work, "w") as file:
        file.create_dataset(KEYS, data=np.asarray([name.encode() for name in names], dtype="S"))
        arrays = file.create_group(ARRAYS)
        for name, vector in zip(names, values, strict=True):
            arrays.create_dataset(name, data=vector)
    return path


def check_gene_names(names: Sequence[str]) -> None:
    """Raise a ValueError for ids that cannot name the datasets of a file: none, empty, too long, repeated, or paths."""
    if not 0 < len(names) <= MAX_GENES:
        msg = f"{len(names):,} gene ids; a file of gene vectors holds 1 to {MAX_GENES:,}."
        raise ValueError(msg)
    seen: set[str] = set()
    for row, name in enumerate(names):
        plain = name.strip() and name.isprintable() and name != "." and "/" not in name
        if not plain or len(name.encode()) > MAX_NAME_BYTES:
            msg = f"The gene id {name!r} at position {row} cannot be stored; it must have 1 to {MAX_NAME_BYTES} plain characters and no '/'."
            raise ValueError(msg)
        if name in seen:
            msg = f"The gene id {name!r} occurs twice; keep one vector for each gene."
            raise ValueError(msg)
        seen.add(name)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file; errors of h5py become a ValueError that names the file."""
    import h5py

    read_head(path, "a file of gene vectors")
    if not h5py.is_hdf5(path):
        msg = f"{path} is not an HDF5 file; gene vectors come as <species>_gene.h5. Fetch the file again."
        raise ValueError(msg)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        msg = f"{path} is not a readable HDF5 file ({type(error).__name__}: {error}): it is cut off or damaged; fetch it again."
        raise ValueError(msg) from error


def _member(group: h5py.Group, name: str, path: Path) -> Any:
    """Member of a group; links are not followed."""
    import h5py

    link = group.get(name, getlink=True)
    if link is None:
        msg = f"{path} has no {group.name.rstrip('/')}/{name}; expected {KEYS} with gene ids and {ARRAYS}/<id> with their vectors."
        raise ValueError(msg)
    if not isinstance(link, h5py.HardLink):
        msg = f"{path}: {name} is a link ({type(link).__name__}), which is not followed; the data must be in the file itself."
        raise ValueError(msg)
    return group[name]


def _dataset(group: h5py.Group, name: str, path: Path) -> h5py.Dataset:
    import h5py

    found = _member(group, name, path)
    if isinstance(found, h5py.Dataset):
        _check_storage(found, name, path)  # before its shape, for which HDF5 may open other files
    if not isinstance(found, h5py.Dataset) or found.shape is None or len(found.shape) != 1:
        shape = f"has shape {found.shape}" if isinstance(found, h5py.Dataset) else f"is a {type(found).__name__}"
        msg = f"{path}: {name} {shape}; expected a dataset of one dimension."
        raise ValueError(msg)
    return found


def _check_storage(dataset: h5py.Dataset, name: str, path: Path) -> None:
    """Check that values are in the file itself and that their compression is bounded."""
    if dataset.external or dataset.is_virtual:
        msg = f"{path}: {name} keeps its values in other files, which are not read; they must be in the file itself."
        raise ValueError(msg)
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    large = dataset.chunks is not None and int(np.prod(dataset.chunks, dtype=object)) > MAX_CHUNK
    if large or len(set(filters)) < len(filters) or not FILTERS.keys() >= set(filters):
        msg = f"{path}: {name} has chunks of {dataset.chunks} values and the filters {filters}; expected up to {MAX_CHUNK:,} values and each of {list(FILTERS.values())} once at most."
        raise ValueError(msg)


def _check_room(needed: int, what: str, path: Path) -> None:
    """Refuse what a file of its size does not hold unless it was made to fill the memory."""
    room = ROOM + RATIO * path.stat().st_size
    if needed > room:
        msg = f"{path} declares {what}, which take {needed:,} bytes of memory; a file of its size may take {room:,}."
        raise ValueError(msg)


def _values(dataset: h5py.Dataset) -> NDArray[Any]:
    """All values of a dataset of one dimension, of which no chunk becomes more than it declares."""
    values = np.empty(dataset.shape, dataset.dtype)
    stored_array(dataset).fill(values, 0)
    return values


def _names(file: h5py.File, path: Path) -> list[str]:
    import h5py

    keys = _dataset(file, KEYS, path)
    if h5py.check_string_dtype(keys.dtype) is None:
        msg = f"{path}: {KEYS} holds {keys.dtype}, expected gene ids as text or bytes."
        raise ValueError(msg)
    if keys.dtype.kind != "S":
        # HDF5 hangs on some damaged heaps, which hold variable-length texts
        msg = f"{path}: {KEYS} holds texts of variable length; expected a fixed length (numpy dtype 'S'), as in published files."
        raise ValueError(msg)
    if not len(keys):
        msg = f"{path}: {KEYS} declares 0 ids; a file of gene vectors has one at least."
        raise ValueError(msg)
    size = keys.dtype.itemsize
    _check_room(len(keys) * (size + NAME_BYTES), f"{len(keys):,} ids of {size} bytes", path)
    found = _values(keys).tolist()
    try:
        names = [name.decode() for name in found]
    except UnicodeDecodeError as error:
        msg = f"{path}: {KEYS} holds {error.object[:50]!r}, which is not text (ASCII or UTF-8)."
        raise ValueError(msg) from error
    plain = (name.strip() and name.isprintable() and len(name) <= MAX_NAME_BYTES for name in names)
    bad = next((row for row, good in enumerate(plain) if not good), None)
    if bad is not None:
        msg = f"{path}: {KEYS} holds {names[bad][:50]!r} at position {bad}; an id has 1 to {MAX_NAME_BYTES} characters, all of them printable."
        raise ValueError(msg)
    return names


def _arrays(file: h5py.File, path: Path) -> h5py.Group:
    import h5py

    arrays = _member(file, ARRAYS, path)
    if not isinstance(arrays, h5py.Group):
        msg = f"{path}: {ARRAYS} is not a group; expected one dataset for each of the {KEYS}."
        raise ValueError(msg)
    return arrays


def _vector(arrays: h5py.Group, name: str, path: Path) -> h5py.Dataset:
    if "/" in name:
        msg = f"{path}: the gene id {name!r} holds '/', which HDF5 reads as a path; rename it."
        raise ValueError(msg)
    vector = _dataset(arrays, name, path)
    if vector.dtype.kind not in "fiu" or not vector.size:
        msg = f"{path}: the vector of {name} is {vector.shape[0]} values of {vector.dtype}, expected numbers."
        raise ValueError(msg)
    return vector

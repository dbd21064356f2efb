"""Files whose sizes, shapes, links, filters, codecs, names and dtypes lie: each part of an honest file in turn, in each way."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5p, h5s

import scfm
from scfm.testing import write_geneformer

from .. import test_malicious as weights
from .. import test_malicious_files as files
from ..fuzz_sources import CANARY, COUNTS, NUMBER, write_counts, write_small, write_table, write_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ODD: tuple[Any, ...] = (None, -1, 0, 2.5, 10**18, "../../x", "\x1b[31m\0", "x" * 10_000, [10**12, 10**12], [], "a/../b")
"""What attributes and metadata say."""


class Lie(NamedTuple):
    """A change of an honest file."""

    base: str
    name: str
    change: Callable[[Path], object]
    reader: str = "counts"


def write_bases(top: Path) -> None:
    """Write an honest folder of each kind, and in ``other`` the same counts of somebody else."""
    honest = top / "honest"
    write_counts(honest, "", 1)
    write_counts(top / "other", CANARY, NUMBER)
    write_small(honest / "small")
    write_tables(honest / "tables")
    scfm.model.convert(write_geneformer(honest / "published", **files.SIZES), honest / "converted")


def all_lies(top: Path, canary: Path) -> Iterator[Lie]:
    """Every lie about what :func:`write_bases` wrote."""
    for base, (name, _) in COUNTS.items():
        honest, other = top / "honest" / base / name, top / "other" / base / name
        if name != "mtx":
            yield from (lies_in_zarr if honest.is_dir() else lies_in_h5)(base, honest, other)
    yield from lies_in_text_and_weights(canary)
    yield from lies_in_tables(canary)


# --- HDF5


def put(file: h5py.File, name: str, **how: Any) -> None:
    """Another dataset in the place of one, with its attributes."""
    attrs = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, **how).attrs.update(attrs)


def sized(file: h5py.File, name: str, rows: int, chunk: int) -> None:
    rest, dtype = file[name].shape[1:], file[name].dtype
    put(file, name, shape=(rows, *rest), maxshape=(None, *rest), dtype=dtype, chunks=(chunk, *rest))


def chunk(file: h5py.File, name: str, content: bytes, filters: int | None = None) -> None:
    """A dataset of one chunk with this content, packed by gzip or another filter."""
    shape, attrs, kind = file[name].shape, dict(file[name].attrs), file[name].id.get_type()
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk(tuple(max(1, side) for side in shape))
    plist.set_deflate(9) if filters is None else plist.set_filter(filters, h5py.h5z.FLAG_OPTIONAL, (1,))
    del file[name]
    space = h5s.create_simple(shape, (h5s.UNLIMITED,) * len(shape))
    h5d.create(file.id, name.encode(), kind, space, plist).write_direct_chunk((0,) * len(shape), content)
    file[name].attrs.update(attrs)


def link(file: h5py.File, name: str, made: Any) -> None:
    del file[name]
    file[name] = made


def view(file: h5py.File, name: str, other: Path) -> None:
    layout = h5py.VirtualLayout(file[name].shape, file[name].dtype)
    layout[...] = h5py.VirtualSource(str(other), name, shape=file[name].shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


BOMB, TEXT = zlib.compress(bytes(2**29), 9), h5py.string_dtype()
LINKS: dict[str, Callable[[h5py.File, str, Path], object]] = {
    "link out": lambda f, n, o: link(f, n, h5py.ExternalLink(str(o), n)),
    "link to a pipe": lambda f, n, o: link(f, n, h5py.ExternalLink(files.pipe(f), n)),
    "circle": lambda f, n, o: link(f, n, h5py.SoftLink(f"/{n}")),
    "gone": lambda f, n, o: f.__delitem__(n),
    "group": lambda f, n, o: (f.__delitem__(n), f.create_group(n)),
}
IN_H5: dict[str, Callable[[h5py.File, str, Path], object]] = {
    **LINKS,
    "values elsewhere": lambda f, n, o: put(f, n, shape=f[n].shape, dtype="S8", external=[(str(o), 0, 8 * f[n].size)]),
    "view": view,
    "endless": lambda f, n, o: sized(f, n, 10**9, 2**10),
    "many": lambda f, n, o: sized(f, n, 10**6, 2**10),
    "huge chunk": lambda f, n, o: sized(f, n, len(f[n]), 10**8),
    "more": lambda f, n, o: put(f, n, data=np.concatenate([f[n][()], f[n][:1]])),
    "fewer": lambda f, n, o: put(f, n, data=f[n][:-1]),
    "none": lambda f, n, o: put(f, n, data=f[n][:0]),
    "two dimensions": lambda f, n, o: put(f, n, data=f[n][()][..., None]),
    "scalar": lambda f, n, o: put(f, n, data=f[n][(0,) * f[n].ndim]),
    "no value": lambda f, n, o: put(f, n, data=h5py.Empty(f[n].dtype)),
    "text": lambda f, n, o: put(f, n, data=np.full(f[n].shape, "x", object), dtype=TEXT),
    "half characters": lambda f, n, o: put(f, n, data=np.full(f[n].shape, b"\xff\xfe"), dtype="S2"),
    "long text": lambda f, n, o: put(f, n, shape=f[n].shape, dtype="S50000000", chunks=(1,) * f[n].ndim),
    "not finite": lambda f, n, o: put(f, n, data=np.full(f[n].shape, np.nan)),
    "huge": lambda f, n, o: put(f, n, data=np.full(f[n].shape, 2**62)),
    "negative": lambda f, n, o: put(f, n, data=np.full(f[n].shape, -7)),
    "complex": lambda f, n, o: put(f, n, data=np.ones(f[n].shape, "c8")),
    "records": lambda f, n, o: put(f, n, data=np.ones(f[n].shape, [("a", "f4"), ("b", "S3")])),
    "references": lambda f, n, o: put(f, n, shape=f[n].shape, dtype=h5py.ref_dtype),
    "lists": lambda f, n, o: put(f, n, shape=f[n].shape, dtype=h5py.vlen_dtype("i4")),
    "enum": lambda f, n, o: put(f, n, shape=f[n].shape, dtype=h5py.enum_dtype({"a": 0})),
    "bomb": lambda f, n, o: chunk(f, n, BOMB),
    "no gzip": lambda f, n, o: chunk(f, n, b"x" * 40),
    "empty chunk": lambda f, n, o: chunk(f, n, b""),
    "filter": lambda f, n, o: chunk(f, n, b"x" * 40, 301),
}


def said_in_h5(file: h5py.File, where: str, _: Path, name: str, value: Any) -> None:
    del file[where].attrs[name]
    if value is not None:
        file[where].attrs[name] = value


def in_h5(lie: Callable[[h5py.File, str, Path], object], name: str, other: Path, folder: Path) -> None:
    with h5py.File(next(folder.glob("a.*")), "r+") as file:
        lie(file, name, other)


def lies_in_h5(base: str, path: Path, other: Path) -> Iterator[Lie]:
    with h5py.File(path) as file:
        found: dict[str, Any] = {}
        file.visititems(found.__setitem__)
        for name, element in found.items():
            for how, lie in (IN_H5 if getattr(element, "shape", ()) else LINKS).items():
                yield Lie(base, f"{name}: {how}", partial(in_h5, lie, name, other))
            for key, value in product(element.attrs, ODD):
                lie = partial(said_in_h5, name=key, value=value)
                yield Lie(base, f"{name} says {key}={value!r:.20}", partial(in_h5, lie, name, other))


# --- zarr


def places(values: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield way
    for key in values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ():
        yield from places(values[key], (*way, key))


def said(name: str, way: tuple[Any, ...], value: Any, folder: Path) -> None:
    """Another value at a place of the metadata."""
    values = [json.loads((folder / name).read_text())]
    inner: Any = values
    for key in (0, *way)[:-1]:
        inner = inner[key]
    inner[(0, *way)[-1]] = value
    (folder / name).write_text(json.dumps(values[0]))


def linked(path: Path, to: Path) -> None:
    path.unlink()
    path.symlink_to(to)


PICKLED = {"id": "pickle", "protocol": 5}
CODED: tuple[Any, ...] = ({}, PICKLED, [PICKLED], {"name": "numcodecs.pickle"}, "|O", "<U99999999", [["a", "|O"]])
IN_FILES: dict[str, Callable[[Path, Path], object]] = {
    "link out": linked,
    "link to a folder": lambda path, other: linked(path, other.parent),
    "pipe": lambda path, other: (path.unlink(), os.mkfifo(path)),
    "device": lambda path, other: linked(path, Path("/dev/zero")),
    "empty": lambda path, other: path.write_bytes(b""),
    "cut": lambda path, other: path.write_bytes(path.read_bytes()[:-3]),
    "longer": lambda path, other: path.write_bytes(path.read_bytes() + b"x" * 99),
    "noise": lambda path, other: path.write_bytes(np.random.default_rng(0).bytes(64)),
    "deep": lambda path, other: path.write_bytes(b"[" * 10**6),
    "folder": lambda path, other: (path.unlink(), path.mkdir()),
}


def lies_in_zarr(base: str, path: Path, other: Path) -> Iterator[Lie]:
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        name, inner = f"a.zarr/{file.relative_to(path)}", other / file.relative_to(path)
        for how, change in IN_FILES.items():
            yield Lie(base, f"{name}: {how}", lambda f, c=change, n=name, i=inner: c(f / n, i))
        if file.name.startswith((".z", "zarr.json")):
            for way, value in product(places(json.loads(file.read_text())), (*ODD, *CODED)):
                yield Lie(base, f"{name} says {way}={value!r:.20}", partial(said, name, way, value))


# --- text, weights, tables

HEAD = b"%%MatrixMarket matrix coordinate integer general\n"
SIZES = "1000000000000 30 5|12 1000000000 5|12 30 999999999999|-1 30 5|12 30|1e9 30 5|0 0 1".split("|")
ENTRIES = f"1 1 {'9' * 20}|13 1 1|0 1 1|a b c|1 1 nan|{'1 ' * 10**6}|1 1|1 1 1.5|".split("|")
MATRICES = [HEAD + f"{size}\n1 1 1\n".encode() for size in SIZES]
MATRICES += [HEAD + b"12 30 5\n" + f"{entry}\n".encode() * 5 for entry in ENTRIES]
TEXTS = [
    b"",
    b"\0" * 99,
    b"\t" * 10**5,
    files.PAGE,
    files.LFS,
    HEAD * 2,
    b"x\t1\n" * 10**5,
    b"\xff" * 99,
    b"g\t-1\n" * 9,
]
FILES = (("converted", "card.json"), ("published", "config.json"))
KEYS = ("id", "family", "architecture", "special_tokens", "revision", "weights_sha256", "hidden_size", "vocab_size")


def packed(name: str, content: bytes, folder: Path) -> None:
    (folder / name).unlink()
    (folder / f"{name}.gz").write_bytes(content)


def lies_in_text_and_weights(canary: Path) -> Iterator[Lie]:
    """Those of other tests among them."""
    attacks = weights.attacks(canary)
    pickles = [*attacks.values(), *(content for content, _ in weights.PICKLES.values())]
    tensors = [content for content, _ in weights.TENSORS.values()]
    tensors += [how(attack) for how in (weights.zipped, weights.legacy) for attack in attacks.values()]
    archives = [gzip.compress(content, 1) for content, _ in files.ARCHIVES.values()]
    bomb = gzip.compress(bytes(2**28))
    for base, reader, file, contents in (
        ("small", "dictionary", "token_dictionary.pkl", pickles),
        ("small", "pytorch", "pytorch_model.bin", tensors),
        ("small", "safetensors", "model.safetensors", weights.SAFETENSORS.values()),
        ("small", "unpack", "a.tar", archives),
        ("mtx", "counts", "mtx/matrix.mtx", [*MATRICES, *TEXTS]),
        ("mtx", "counts", "mtx/barcodes.tsv", TEXTS),
        ("mtx", "counts", "mtx/genes.tsv", TEXTS),
        ("converted", "model", "vocabulary.tsv", TEXTS),
        ("converted", "model", "aliases.tsv", TEXTS),
    ):
        for number, content in enumerate(contents):
            yield Lie(base, f"{file}: {number}", lambda f, n=file, c=content: (f / n).write_bytes(c), reader)
        for how, change in IN_FILES.items():
            yield Lie(base, f"{file}: {how}", lambda f, n=file, c=change: c(f / n, canary), reader)
        if base == "mtx":
            yield Lie(base, f"{file}: bomb", partial(packed, file, bomb), reader)
    for name, (base, file, key, value, _) in files.JSONS.items():
        yield Lie(base, f"{file}: {name}", files.within(file, key, value), "model")
    for (base, file), key, value in product(FILES, KEYS, ODD):
        yield Lie(base, f"{file} says {key}={value!r:.20}", partial(said, file, (key,), value), "model")


def lies_in_tables(canary: Path) -> Iterator[Lie]:
    import pyarrow as pa

    once = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2000, "i4")), pa.array(["x" * 2**20]))
    columns: dict[str, dict[str, Any]] = {
        "one text many times": {"input_ids": pa.array([[7, 2]] * 2000), "cell_type": once},
        "plain text many times": {"input_ids": pa.array([[7, 2]] * 200), "cell_type": ["x" * 2**20] * 200},
        "nothing": {"input_ids": pa.array([], pa.list_(pa.int64()))},
        "other columns": {"a": [1]},
    }
    for values in ([["a"]], [1, 2], [[-1]], [[2**40]], [None], [[[1]]], [list(range(999)) * 200]):
        columns[f"{values!r:.20}"] = {"input_ids": values}
    for suffix in ("parquet", "arrow"):
        for how, change in IN_FILES.items():
            yield Lie("tables", f"{suffix}: {how}", lambda f, s=suffix, c=change: c(f / f"cells.{s}", canary), suffix)
        for name, found in columns.items():
            yield Lie("tables", f"{suffix}: {name}", partial(write_table, f"cells.{suffix}", found), suffix)

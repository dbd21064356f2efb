"""Files whose sizes, shapes, links, filters, codecs, names and dtypes lie: each part of an honest file in turn, in each way."""

from __future__ import annotations

import gzip
import json
import zlib
from functools import cache, partial
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from h5py import h5d, h5p, h5s
from scipy import sparse

import scfm
from scfm.testing import write_geneformer

from .. import test_malicious as weights
from .. import test_malicious_files as files
from ..fuzz_sources import write_small, write_tables
from ..read.foreign import write_loom, write_mtx, write_tenx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CANARY, NUMBER = "canary-7f3a91", 8_675_309
"""What is in files of others, and must never be in a result."""
N_OBS, N_VARS = 30, 12


class Lie(NamedTuple):
    """A change of an honest file."""

    base: str
    name: str
    change: Callable[[Path], object]
    reader: str = ""
    """By default that of the base."""


def cells(foreign: bool = False) -> ad.AnnData:
    """Counts with columns of all kinds."""
    rng, prefix = np.random.default_rng(0), CANARY if foreign else ""
    x = sparse.csr_matrix(rng.poisson(1, (N_OBS, N_VARS)).astype(np.float32))
    x.data[:] = NUMBER if foreign else x.data
    obs = pd.DataFrame(
        {"n": np.full(N_OBS, NUMBER if foreign else 1), "label": pd.Categorical([f"{prefix}a", "b"] * 15)}
    )
    obs.index = [f"{prefix}cell{i}" for i in range(N_OBS)]
    var = pd.DataFrame(
        {"gene_ids": [f"{prefix}ENSG{i:011d}" for i in range(N_VARS)], "feature_types": "Gene Expression"},
        [f"{prefix}gene{i}" for i in range(N_VARS)],
    )
    return ad.AnnData(x, obs=obs, var=var)


def zarr(version: int, path: Path, adata: ad.AnnData) -> None:
    with ad.settings.override(zarr_write_format=version):
        adata.write_zarr(path)


WRITERS: dict[str, Callable[[Path, ad.AnnData], object]] = {
    "a.h5ad": lambda path, adata: adata.write_h5ad(path),
    "a.h5": write_tenx,
    "a.loom": write_loom,
    "zarr2/a.zarr": partial(zarr, 2),
    "zarr3/a.zarr": partial(zarr, 3),
    "mtx": lambda path, adata: write_mtx(path, adata, version=2),
}


def write_bases(top: Path) -> dict[str, str]:
    """Write an honest folder of each kind, and in ``other`` the same as it is of somebody else; the reader of each."""
    for name, write in WRITERS.items():
        for folder, foreign in (("honest", False), ("other", True)):
            path = top / folder / name.replace("/", "-") / name.rpartition("/")[2]
            path.parent.mkdir(parents=True)
            write(path, cells(foreign))
    honest = top / "honest"
    write_small(honest / "small")
    write_tables(honest / "tables")
    published = write_geneformer(honest / "published", **files.SIZES)
    scfm.model.convert(published, honest / "converted")
    readers = {name.replace("/", "-"): "counts" for name in WRITERS}
    return readers | {"tables": "parquet", "published": "model", "converted": "model", "small": "pytorch"}


# --- HDF5


def put(file: h5py.File, name: str, **how: Any) -> None:
    """Another dataset in the place of one, with its attributes."""
    attrs = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, **how).attrs.update(attrs)


@cache
def packed(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def chunk(file: h5py.File, name: str, content: bytes, filters: int | None = None) -> None:
    """A dataset of one chunk with this content, packed by gzip or another filter."""
    old, attrs, rank = file[name], dict(file[name].attrs), len(file[name].shape)
    plist, kind = h5p.create(h5p.DATASET_CREATE), old.id.get_type()
    plist.set_chunk(tuple(max(1, side) for side in old.shape))
    plist.set_deflate(9) if filters is None else plist.set_filter(filters, h5py.h5z.FLAG_OPTIONAL, (1,))
    space = h5s.create_simple(old.shape, (h5s.UNLIMITED,) * rank)
    del file[name]
    h5d.create(file.id, name.encode(), kind, space, plist).write_direct_chunk((0,) * rank, content)
    file[name].attrs.update(attrs)


def link(file: h5py.File, name: str, made: Any) -> None:
    del file[name]
    file[name] = made


def view(file: h5py.File, name: str, other: Path) -> None:
    old, attrs = file[name], dict(file[name].attrs)
    layout = h5py.VirtualLayout(old.shape, old.dtype)
    layout[...] = h5py.VirtualSource(str(other), name, shape=old.shape)
    del file[name]
    file.create_virtual_dataset(name, layout).attrs.update(attrs)


TEXT = h5py.string_dtype()
IN_H5: dict[str, Callable[[h5py.File, str, Path], object]] = {
    "link out": lambda f, n, o: link(f, n, h5py.ExternalLink(str(o), n)),
    "link to a pipe": lambda f, n, o: link(f, n, h5py.ExternalLink(files.pipe(f), n)),
    "link through another": lambda f, n, o: (link(f, n, h5py.SoftLink(f"/away/{n}")), f.__setitem__("away", h5py.ExternalLink(str(o), "/"))),
    "circle": lambda f, n, o: link(f, n, h5py.SoftLink(f"/{n}")),
    "nowhere": lambda f, n, o: link(f, n, h5py.SoftLink("/nowhere")),
    "gone": lambda f, n, o: f.__delitem__(n),
    "group": lambda f, n, o: (f.__delitem__(n), f.create_group(n)),
    "values elsewhere": lambda f, n, o: put(f, n, shape=f[n].shape, dtype="S8", external=[(str(o), 0, 8 * max(1, f[n].size))]),
    "view": view,
    "endless": lambda f, n, o: put(f, n, shape=(10**9, *f[n].shape[1:]), dtype=f[n].dtype, chunks=(2**10, *f[n].shape[1:])),
    "many": lambda f, n, o: put(f, n, shape=(10**6, *f[n].shape[1:]), dtype=f[n].dtype, chunks=(2**10, *f[n].shape[1:])),
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
    "descending": lambda f, n, o: put(f, n, data=np.arange(f[n].size)[::-1].reshape(f[n].shape)),
    "complex": lambda f, n, o: put(f, n, data=np.ones(f[n].shape, "c8")),
    "records": lambda f, n, o: put(f, n, data=np.ones(f[n].shape, [("a", "f4"), ("b", "S3")])),
    "references": lambda f, n, o: put(f, n, shape=f[n].shape, dtype=h5py.ref_dtype),
    "lists": lambda f, n, o: put(f, n, shape=f[n].shape, dtype=h5py.vlen_dtype("i4")),
    "opaque": lambda f, n, o: put(f, n, shape=f[n].shape, dtype="V8"),
    "enum": lambda f, n, o: put(f, n, shape=f[n].shape, dtype=h5py.enum_dtype({"a": 0})),
    "bomb": lambda f, n, o: chunk(f, n, packed(2**30)),
    "no gzip": lambda f, n, o: chunk(f, n, b"x" * 40),
    "empty chunk": lambda f, n, o: chunk(f, n, b""),
    "filter": lambda f, n, o: chunk(f, n, b"x" * 40, 301),
    "huge chunk": lambda f, n, o: put(f, n, shape=f[n].shape, maxshape=(None,) * f[n].ndim, dtype=f[n].dtype, chunks=(10**8, *f[n].shape[1:])),
}  # fmt: skip
ODD: tuple[Any, ...] = (None, -1, 0, 2.5, 10**18, "../../x", "\x1b[31m\0", "x" * 10_000, [10**12, 10**12], [], "a/../b")
"""What attributes and metadata say."""


def in_h5(lie: Callable[[h5py.File, str, Path], object], name: str, other: Path, path: Path) -> None:
    with h5py.File(next(path.glob("a.*")), "r+") as file:
        lie(file, name, other)


def attribute(where: str, name: str, value: Any, path: Path) -> None:
    with h5py.File(next(path.glob("a.*")), "r+") as file:
        del file[where].attrs[name]
        if value is not None:
            file[where].attrs[name] = value


def lies_in_h5(base: str, path: Path, other: Path) -> Iterator[Lie]:
    with h5py.File(path) as file:
        found: dict[str, Any] = {"/": file}
        file.visititems(lambda name, element: found.__setitem__(name, element))
        for name, element in found.items():
            if isinstance(element, h5py.Dataset) and element.shape:
                for how, lie in IN_H5.items():
                    yield Lie(base, f"{name}: {how}", partial(in_h5, lie, name, other))
            for key in element.attrs:
                for value in ODD:
                    yield Lie(base, f"{name} says {key}={value!r:.20}", partial(attribute, name, key, value))


# --- zarr


def leaves(values: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield way
    for key in values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ():
        yield from leaves(values[key], (*way, key))


def said(name: str, way: tuple[Any, ...], value: Any, path: Path) -> None:
    """Another value at a place of the metadata."""
    file = path / name
    values = [json.loads(file.read_text())]
    inner: Any = values
    for key in (0, *way)[:-1]:
        inner = inner[key]
    inner[(0, *way)[-1]] = value
    file.write_text(json.dumps(values[0]))


def linked(path: Path, to: Path) -> None:
    path.rename(path.with_name("away")) if path.exists() else None
    path.symlink_to(to)


PICKLED = {"id": "pickle", "protocol": 5}
CODED: tuple[Any, ...] = ({}, PICKLED, [PICKLED], {"name": "numcodecs.pickle"}, "|O", "<U99999999", [["a", "|O"]])
IN_FILES: dict[str, Callable[[Path, Path], object]] = {
    "link out": linked,
    "link to a folder": lambda path, other: linked(path, other.parent),
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
            yield Lie(base, f"{name}: {how}", lambda folder, c=change, n=name, i=inner: c(folder / n, i))
        if file.name.startswith((".z", "zarr.json")):
            for way in leaves(json.loads(file.read_text())):
                for value in (*ODD, *CODED):
                    yield Lie(base, f"{name} says {way}={value!r:.20}", partial(said, name, way, value))


# --- text, tables, weights


def put_at(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


HEAD = b"%%MatrixMarket matrix coordinate integer general\n"
SIZES = (
    b"1000000000000 30 5",
    b"12 1000000000 5",
    b"12 30 999999999999",
    b"-1 30 5",
    b"12 30",
    b"1e9 30 5",
    b"9" * 5000,
)
ENTRIES = (
    b"1 1 99999999999999999999",
    b"13 1 1",
    b"0 1 1",
    b"a b c",
    b"1 1 nan",
    b"1 " * 10**6,
    b"1 1",
    b"1 1 1.5",
    b"",
)
TABLES = (
    b"",
    b"\0" * 99,
    b"\t" * 10**5,
    files.PAGE,
    files.LFS,
    HEAD * 2,
    b"x\t1\n" * 10**5,
    b"\xff" * 99,
    b"g\t-1\n" * 9,
)
KEYS = ("id", "family", "architecture", "special_tokens", "revision", "weights_sha256", "hidden_size", "vocab_size")


def lies_elsewhere(canary: Path) -> Iterator[Lie]:
    """About text, tables and weights; those of other tests among them."""
    attacks = weights.attacks(canary)
    pickles = attacks | {name: content for name, (content, _) in weights.PICKLES.items()}
    tensors = {name: content for name, (content, _) in weights.TENSORS.items()}
    for how in (weights.zipped, weights.legacy):
        tensors |= {f"{how.__name__} {name}": how(attack) for name, attack in attacks.items()}
    archives = {name: gzip.compress(content, 1) for name, (content, _) in files.ARCHIVES.items()}
    matrices = [HEAD + size + b"\n1 1 1\n" for size in SIZES] + [
        HEAD + b"12 30 5\n" + (line + b"\n") * 5 for line in ENTRIES
    ]
    matrix = {repr(content[-40:]): content for content in matrices}
    table = {repr(content[:40]): content for content in TABLES}
    for base, reader, file, contents in (
        ("small", "dictionary", "token_dictionary.pkl", pickles),
        ("small", "pytorch", "pytorch_model.bin", tensors),
        ("small", "safetensors", "model.safetensors", weights.SAFETENSORS),
        ("small", "unpack", "a.tar", archives),
        ("mtx", "", "mtx/matrix.mtx", matrix | table),
        ("mtx", "", "mtx/barcodes.tsv", table),
        ("mtx", "", "mtx/genes.tsv", table),
        ("converted", "", "vocabulary.tsv", table),
        ("converted", "", "aliases.tsv", table),
    ):
        for name, content in contents.items():
            yield Lie(base, f"{file}: {name}", put_at(file, content), reader)
    bomb = gzip.compress(bytes(2**28))
    for name in ("matrix.mtx", "barcodes.tsv", "genes.tsv"):
        yield Lie("mtx", f"{name}: bomb", lambda f, n=name: ((f / "mtx" / n).unlink(), put_at(f"mtx/{n}.gz", bomb)(f)))
    for name, (base, file, key, value, _) in files.JSONS.items():
        yield Lie(base, f"{file}: {name}", files.within(file, key, value))
    for base, file, key, value in product(("converted", "published"), ("card.json", "config.json"), KEYS, ODD):
        yield Lie(base, f"{file} says {key}={value!r:.20}", partial(said, file, (key,), value))
    for suffix in ("parquet", "arrow"):
        for how, change in IN_FILES.items():
            yield Lie("tables", f"{suffix}: {how}", lambda f, s=suffix, c=change: c(f / f"cells.{s}", canary), suffix)
        for name, columns in tables().items():
            yield Lie("tables", f"{suffix}: {name}", partial(write_table, suffix, columns), suffix)


def tables() -> dict[str, Any]:
    import pyarrow as pa

    once = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2000, "i4")), pa.array(["x" * 2**20]))
    tokens = pa.array([[7, 2]] * 2000)
    return {
        "one text many times": {"input_ids": tokens, "cell_type": once},
        "tokens of text": {"input_ids": [["a"]]},
        "tokens that are no lists": {"input_ids": [1, 2]},
        "negative tokens": {"input_ids": [[-1]]},
        "large tokens": {"input_ids": [[2**40]]},
        "no tokens": {"input_ids": [None]},
        "lists of lists": {"input_ids": [[[1]]]},
        "other columns": {"a": [1]},
        "nothing": {"input_ids": pa.array([], pa.list_(pa.int64()))},
        "long": {"input_ids": [list(range(999)) * 200]},
    }


def write_table(suffix: str, columns: dict[str, Any], folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    table, path = pa.table(columns), folder / f"cells.{suffix}"
    if suffix == "parquet":
        pa.parquet.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)


def all_lies(top: Path, canary: Path) -> list[Lie]:
    """Every lie about what :func:`write_bases` wrote."""
    found = list(lies_elsewhere(canary))
    for name in WRITERS:
        base, file = name.replace("/", "-"), name.rpartition("/")[2]
        honest, other = top / "honest" / base / file, top / "other" / base / file
        if name != "mtx":
            found += (lies_in_zarr if honest.is_dir() else lies_in_h5)(base, honest, other)
    return found

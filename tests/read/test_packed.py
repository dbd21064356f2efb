"""Zarr stores whose chunks are missing, or unpack to more than they declare."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import zarr
from numcodecs import LZ4, Blosc, Zstd
from scipy import sparse

from scfm.read import open_counts

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:.*zarr v[23]:UserWarning", "ignore:Consolidated metadata:UserWarning")
COUNTS = sparse.csr_matrix(np.random.default_rng(0).poisson(2, (60, 20)).astype(np.float32))


def stored(path: Path, counts: sparse.csr_matrix = COUNTS, **how: Any) -> Path:
    """Counts in a store, whose arrays are in chunks of 40 values, or made otherwise."""
    version = how.pop("zarr_format", 3)
    with ad.settings.override(zarr_write_format=version):
        ad.AnnData(counts).write_zarr(path)
    matrix: Any = zarr.open_group(path, use_consolidated=False)["X"]
    for name in ("data", "indices", "indptr"):
        values = matrix[name][:]
        matrix.create_array(name, data=values, **{"chunks": (40,), "overwrite": True, **how})
    return path


def total(path: Path | str) -> float:
    with open_counts(path) as source:
        return sum(block.totals.sum() for block in source.blocks())


def chunks(path: Path, name: str) -> list[Path]:
    inner = path / "X" / name
    return sorted(file for file in inner.rglob("*") if file.is_file() and not file.name.startswith((".z", "zarr.json")))


SHARDED = {"chunks": (20,), "shards": (80,)}


@pytest.mark.parametrize("how", [{}, {"zarr_format": 2}, SHARDED], ids=["zarr 3", "zarr 2", "shards"])
@pytest.mark.parametrize("name", ["indices", "indptr", "data"])
def test_lost_chunks_of_a_sparse_matrix(name: str, how: dict[str, Any], tmp_path: Path) -> None:
    path = stored(tmp_path / "a.zarr", **how)
    assert total(path) == COUNTS.sum()
    for number, chunk in enumerate(chunks(path, name)):
        copy = shutil.copytree(path, tmp_path / f"{number}.zarr")
        (copy / chunk.relative_to(path)).unlink()
        for place in (copy, copy.as_uri()):
            with pytest.raises(ValueError, match=rf"{number}\.zarr is damaged: (chunks of its {name} are|its indptr)"):
                total(place)


def test_a_lost_chunk_of_unsorted_counts(tmp_path: Path) -> None:
    counts = COUNTS.copy()
    for row in range(60):
        part = slice(*counts.indptr[row : row + 2])
        counts.indices[part], counts.data[part] = counts.indices[part][::-1].copy(), counts.data[part][::-1].copy()
    path = stored(tmp_path / "a.zarr", counts)
    assert total(path) == COUNTS.sum()
    chunks(path, "data")[1].unlink()
    with pytest.raises(ValueError, match="chunks of its data are missing"):
        total(path)


def test_arrays_that_an_hdf5_file_never_got(tmp_path: Path) -> None:
    import h5py

    ad.AnnData(COUNTS).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        values = file["X/indices"][:]
        del file["X/indices"]
        made = file["X"].create_dataset("indices", values.shape, values.dtype, chunks=(40,))
        made[:80] = values[:80]  # the rest was never written
    with pytest.raises(ValueError, match="chunks of its indices are missing"):
        total(tmp_path / "a.h5ad")


def test_what_zarr_leaves_out_is_not_lost(tmp_path: Path) -> None:
    """Chunks of nothing but zeros: the first gene alone, in cells with one gene each."""
    counts = sparse.csr_matrix(np.eye(1, 20, dtype=np.float32).repeat(60, axis=0))
    path = stored(tmp_path / "a.zarr", counts)
    assert not chunks(path, "indices")
    assert total(path) == 60
    path = stored(tmp_path / "b.zarr", sparse.csr_matrix((60, 20), dtype=np.float32))
    assert not chunks(path, "indptr")
    assert total(path) == 0


N_BYTES = 2**28
PACKERS: dict[str, Any] = {
    "zstd": Zstd(9),
    "blosc": Blosc("zstd", 9),
    "lz4": LZ4(),
    "zlib in blosc": Blosc("zlib", 9),
}


def bomb(kind: str, content: bytes) -> bytes:
    """A chunk of zeros, for zstd in three frames, of which one is skipped and one tells no size."""
    packed: bytes = PACKERS[kind].encode(bytes(N_BYTES))
    if kind != "zstd":
        return packed
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    blocks = b"".join((1 << 1 | 2**17 << 3).to_bytes(3, "little") + b"\0" for _ in range(N_BYTES // 2**17))
    unsized = b"\x28\xb5\x2f\xfd\0\x58" + blocks + b"\1\0\0"
    return content + skipped + unsized


@pytest.mark.parametrize(
    ("kind", "version"), [(kind, 2) for kind in PACKERS] + [("zstd", 3), ("blosc", 3), ("zstd", 0)]
)
def test_chunks_that_unpack_to_more_than_they_declare(kind: str, version: int, tmp_path: Path) -> None:
    """Of shards, which version 0 stands for, too."""
    resource = pytest.importorskip("resource")
    codec: Any = PACKERS[kind] if version == 2 else {"name": kind, "configuration": {}}
    shards = {"chunks": (40,), "shards": (2000,)} if version == 0 else {}
    path = stored(tmp_path / "a.zarr", compressors=codec, zarr_format=version or 3, **shards)
    assert total(path) == COUNTS.sum()
    for name in ("X/data", "var/_index"):
        copy = shutil.copytree(path, tmp_path / name.replace("/", "."))
        inner = copy / name
        chunk = next(
            file for file in sorted(inner.rglob("*")) if file.is_file() and not file.name.startswith((".z", "zarr"))
        )
        content = bomb(kind if name == "X/data" else "zstd", chunk.read_bytes() if not shards else b"")
        if name == "X/data" and shards:
            index = bytearray(chunk.read_bytes()[-(16 * 50 + 4) :])
            index[8:16] = len(content).to_bytes(8, "little")
            index[:8] = bytes(8)
            content += bytes(index)
        elif name == "var/_index" and version != 3:
            continue
        chunk.write_bytes(content)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for place in (copy, copy.as_uri()):
            with pytest.raises(ValueError, match=rf"{chunk.name} is damaged: a chunk unpacks to more than"):
                total(place)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000


def test_what_is_packed_twice_is_not_read(tmp_path: Path) -> None:
    codec: Any = {"name": "zstd", "configuration": {}}
    path = stored(tmp_path / "a.zarr", compressors=[codec, codec])
    with pytest.raises(ValueError, match="X of .* is packed by zstd and zstd, or in shards of shards"):
        total(path)


def test_names_that_pack_well_are_read(tmp_path: Path) -> None:
    n = 300_000
    data = ad.AnnData(sparse.csr_matrix((n, 2), dtype=np.float32))
    data.obs["type"] = np.full(n, "a rather long name of a type of cell")
    data.strings_to_categoricals = lambda *_: None
    data.write_zarr(tmp_path / "a.zarr")
    with open_counts(tmp_path / "a.zarr") as source:
        assert source.obs["type"].iloc[-1].endswith("cell")

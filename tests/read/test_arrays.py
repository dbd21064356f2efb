from __future__ import annotations

import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pytest
from scipy import sparse

import scfm
from scfm.read import arrays, open_counts
from scfm.read.arrays import DeflatedArray, Pointers, stored_array

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VALUES = np.random.default_rng(0).integers(0, 9, 1000)
FILTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunks": {"chunks": (64,)},
    "gzip": {"chunks": (64,), "compression": "gzip"},
    "shuffled": {"chunks": (64,), "compression": "gzip", "shuffle": True},
    "one chunk": {"chunks": (1000,), "compression": "gzip"},
    "lzf": {"chunks": (64,), "compression": "lzf"},
    "checked": {"chunks": (64,), "compression": "gzip", "fletcher32": True},
}


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    scfm.settings.threads = request.param
    yield
    scfm.settings.reset()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[h5py.File]:
    with h5py.File(tmp_path / "arrays.h5", "w") as file:
        yield file


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", ">i4"])
@pytest.mark.parametrize("kind", FILTERS)
def test_every_stretch_is_read(kind: str, dtype: str, file: h5py.File) -> None:
    stored = file.create_dataset("a", data=VALUES.astype(dtype), **FILTERS[kind])
    array = stored_array(stored)
    assert isinstance(array, DeflatedArray) == (kind in ("gzip", "shuffled", "one chunk", "checked"))
    for start, stop in [
        (0, 1000),
        (0, 0),
        (5, 6),
        (63, 65),
        (64, 128),
        (900, 1000),
        (10, 500),
        (130, 140),
        (1000, 1000),
    ]:
        out = np.empty(stop - start, dtype)
        array.fill(out, start)
        np.testing.assert_array_equal(out, VALUES[start:stop])


def test_chunks_that_were_never_written(file: h5py.File) -> None:
    stored = file.create_dataset("a", 1000, "f4", chunks=(64,), compression="gzip", fillvalue=7)
    stored[100:200] = 1
    out = np.empty(1000, "f4")
    stored_array(stored).fill(out, 0)
    np.testing.assert_array_equal(out, stored[:])


def test_chunks_that_skipped_a_filter(tmp_path: Path) -> None:
    values, how = np.arange(64, dtype="i4"), {"chunks": (64,), "compression": "gzip", "fletcher32": True}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for skipped in range(8):
            stored = file.create_dataset(f"{skipped}", 64, "i4", shuffle=True, **how)
            raw = values.tobytes() if skipped & 1 else values.view("u1").reshape(64, 4).T.tobytes()
            raw = raw if skipped & 2 else zlib.compress(raw)
            stored.id.write_direct_chunk((0,), raw if skipped & 4 else raw + bytes(4), filter_mask=skipped)
    with h5py.File(tmp_path / "a.h5") as file:
        for skipped in range(8):
            out = np.empty(64, "i4")
            stored_array(file[f"{skipped}"]).fill(out, 0)
            np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize("skipped", [0, 1], ids=["shuffled", "shuffling skipped"])
def test_a_chunk_that_grows_takes_no_memory(skipped: int, file: h5py.File) -> None:
    """Four megabytes that inflate to a gigabyte, in a chunk that declares four megabytes."""
    stored = file.create_dataset("a", 2**20, "i4", chunks=(2**20,), compression="gzip", shuffle=True)
    packer = zlib.compressobj(9)
    raw = b"".join(packer.compress(bytes(2**24)) for _ in range(64)) + packer.flush()
    stored.id.write_direct_chunk((0,), raw, filter_mask=skipped)
    out = np.empty(2**20, "i4")
    tracemalloc.start()
    with pytest.raises(ValueError, match="a compressed chunk of 4194304 bytes inflates to 4194305 bytes"):
        stored_array(stored).fill(out, 0)
    with pytest.raises(ValueError, match="inflates to 4194305 bytes"):
        Pointers(stored, 2**20 - 1, 9, "X")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20


def test_a_chunk_that_declares_too_much_takes_no_memory(file: h5py.File) -> None:
    stored = file.create_dataset("a", 2**29, "i4", chunks=(2**29,), compression="gzip")
    stored.id.write_direct_chunk((0,), zlib.compress(bytes(2**20)))
    with pytest.raises(ValueError, match=r"a compressed chunk of 2147483648 bytes takes \d+ bytes"):
        stored_array(stored).fill(np.empty(1, "i4"), 0)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"no zlib stream", r"cannot be inflated \("),
        (zlib.compress(bytes(256))[:-6], r"is cut off|cannot be inflated \("),
        (zlib.compress(bytes(100)), "inflates to 100 bytes"),
        (zlib.compress(bytes(257)), "inflates to 257 bytes"),
        (zlib.compress(bytes(10**4)), "inflates to 257 bytes"),
        (zlib.compress(bytes(10**6)), "takes [0-9]+ bytes"),
    ],
    ids=["no stream", "cut", "too little", "too much", "far too much", "too large"],
)
def test_damaged_chunks(raw: bytes, message: str, file: h5py.File) -> None:
    stored = file.create_dataset("a", 1000, "i4", chunks=(64,), compression="gzip")
    stored[:] = 1
    stored.id.write_direct_chunk((128,), raw)
    with pytest.raises(ValueError, match=rf"/a of .*arrays.h5 is damaged: a compressed chunk of 256 bytes ({message})"):
        stored_array(stored).fill(np.empty(1000, "i4"), 0)


def test_a_chunk_is_inflated_once(file: h5py.File, monkeypatch: pytest.MonkeyPatch) -> None:
    inflated, inflate = [0], DeflatedArray._inflated

    def spy(self: DeflatedArray, raw: bytes) -> bytes:
        inflated[0] += 1
        return inflate(self, raw)

    monkeypatch.setattr(DeflatedArray, "_inflated", spy)
    array = stored_array(file.create_dataset("a", data=VALUES, chunks=(100,), compression="gzip"))
    for start in range(0, 1000, 30):
        array.fill(np.empty(min(30, 1000 - start), VALUES.dtype), start)
    assert inflated == [10]


def test_isal_is_used_where_it_is_installed() -> None:
    pytest.importorskip("isal")
    assert arrays.zlib.__name__ == "isal.isal_zlib"


@pytest.mark.parametrize("shards", [None, (512,)], ids=["chunks", "shards"])
@pytest.mark.parametrize("chosen", [False, True], ids=["zarrs", "the user's choice"])
def test_zarr_stores_are_decoded_by_zarrs(shards: tuple[int] | None, chosen: bool, tmp_path: Path) -> None:
    pytest.importorskip("zarrs")
    import zarr

    group = zarr.open_group(tmp_path, mode="w", zarr_format=3)
    group.create_array("a", data=VALUES, chunks=(64,), shards=shards)
    own = type("Own", (zarr.core.codec_pipeline.BatchedCodecPipeline,), {})
    zarr.registry.register_pipeline(own)
    path = {"codec_pipeline.path": f"{own.__module__}.Own"} if chosen else {}
    with zarr.config.set(path), arrays.fast_codecs(group):
        stored = group["a"]
        name = type(stored._async_array.codec_pipeline).__name__
    assert name == ("Own" if chosen else "ZarrsCodecPipeline")
    out = np.empty(700, VALUES.dtype)
    stored_array(stored).fill(out, 200)
    np.testing.assert_array_equal(out, VALUES[200:900])


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("form", ["h5ad", "gzip", "zarr"])
def test_files_are_read_through_windows(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "WINDOW", 7)
    monkeypatch.setattr("scfm.read.backed.CACHED", 40)
    matrix = sparse.random(
        100, 50, 0.2, "csr", np.float32, np.random.default_rng(0), data_rvs=lambda n: np.full(n, 3.0)
    )
    adata = ad.AnnData(matrix)
    path = tmp_path / f"a.{form}"
    if form == "zarr":
        with ad.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
            adata.write_zarr(path)
    else:
        adata.write_h5ad(path, compression="gzip" if form == "gzip" else None)
    with open_counts(path) as source:
        for arguments in ({"rows": 5}, {"rows": 30}, {"rows": 100}, {"rows": 20, "max_nnz": 60}):
            blocks = list(source.blocks(**arguments))
            np.testing.assert_array_equal(np.concatenate([block.data for block in blocks]), matrix.data)
            np.testing.assert_array_equal(np.concatenate([block.indices for block in blocks]), matrix.indices)
            np.testing.assert_array_equal(np.concatenate([block.totals for block in blocks]), matrix.sum(axis=1).A1)


def test_pointers_are_checked_where_they_are_read(file: h5py.File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "WINDOW", 4)
    borders = file.create_dataset("indptr", data=np.arange(0, 210, 10))
    pointers = Pointers(borders, 20, 200, "X")
    np.testing.assert_array_equal(pointers.between(3, 15), borders[3:16])
    np.testing.assert_array_equal(pointers.between(5, 5), [50])
    borders[17] = 10
    np.testing.assert_array_equal(pointers.between(12, 12), [120])
    with pytest.raises(ValueError, match="X is damaged: its indptr does not fit 20 rows and 200 stored values"):
        Pointers(borders, 20, 200, "X").between(14, 18)
    with pytest.raises(ValueError, match="X is damaged"):
        Pointers(borders, 21, 200, "X")


def test_a_filter_that_is_missing_is_named(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((10,))
    plist.set_filter(32099, h5py.h5z.FLAG_OPTIONAL, ())
    made = h5py.h5d.create(file.id, b"a", h5py.h5t.NATIVE_INT32, h5py.h5s.create_simple((20,)), plist)
    with pytest.raises(
        ValueError, match=r"/a of .*arrays.h5 is compressed by the HDF5 filter 32099.*import hdf5plugin"
    ):
        stored_array(h5py.Dataset(made))

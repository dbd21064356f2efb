"""Files that lead out of themselves, run code or claim too much are refused before anything of them is decoded."""

from __future__ import annotations

import json
import os
import zlib
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numcodecs
import numpy as np
import pandas as pd
import pytest
import zarr
from h5py import h5d, h5p, h5s, h5t
from scipy import sparse

import scfm
from scfm._write import Results, check_output, read_entry, write_results
from scfm.read import open_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:.*zarr v[23]:UserWarning", "ignore:Consolidated metadata:UserWarning")

N_OBS, N_VARS = 12, 7
TEXT = h5py.string_dtype()
ALLOWED = r"SCFM_ALLOW_EXTERNAL=1"
H5 = dict[str, "Callable[[h5py.File, Path], object]"]


def adata(kind: type = sparse.csr_matrix) -> ad.AnnData:
    x = np.random.default_rng(0).poisson(1, (N_OBS, N_VARS)).astype(np.float32)
    obs = pd.DataFrame({"n": np.arange(N_OBS)}, index=[f"cell{i}" for i in range(N_OBS)])
    return ad.AnnData(kind(x), obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(N_VARS)]))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A file of somebody else."""
    path = tmp_path / "other.h5ad"
    adata().write_h5ad(path)
    return path


@pytest.fixture
def allowed() -> Iterator[None]:
    scfm.settings.allow_external = True
    yield
    scfm.settings.reset()


def put(group: h5py.Group, name: str, *args: Any, **options: Any) -> h5py.Dataset:
    """Replace a dataset by another with the same attributes."""
    attrs = dict(group[name].attrs)
    del group[name]
    made = group.create_dataset(name, *args, **options)
    made.attrs.update(attrs)
    return made


def read(path: Path | str) -> tuple[list[str], np.ndarray]:
    with open_counts(path) as source:
        assert len(source.var) == source.n_vars
        return list(source.obs_names), source.read(0, source.n_obs).totals


# --- what leads out of an HDF5 file


def linked(name: str) -> Callable[[h5py.File, Path], None]:
    def change(file: h5py.File, other: Path) -> None:
        del file[name]
        file[name] = h5py.ExternalLink(str(other), name)

    return change


def linked_twice(file: h5py.File, other: Path) -> None:
    file["away"] = h5py.ExternalLink(str(other), "/")
    del file["X"]
    file["X"] = h5py.SoftLink("/away/X")


def in_a_circle(file: h5py.File, other: Path) -> None:
    del file["X"]
    file["X"], file["Y"] = h5py.SoftLink("/Y"), h5py.SoftLink("/X")


def external(file: h5py.File, other: Path) -> None:
    put(file["obs"], "_index", (N_OBS,), "S8", external=[(str(other), 0, 8 * N_OBS)])


def virtual(file: h5py.File, other: Path) -> None:
    old = file["X/data"]
    layout = h5py.VirtualLayout(old.shape, old.dtype)
    layout[:] = h5py.VirtualSource(str(other), "X/data", shape=old.shape)
    del file["X/data"]
    file["X"].create_virtual_dataset("data", layout)


OUT: H5 = {
    **{f"a link at {name}": linked(name) for name in ("X", "obs", "var/_index", "X/data", "obs/n")},
    "a link through another": linked_twice,
    "values in another file": external,
    "a virtual dataset": virtual,
}


@pytest.mark.parametrize("kind", OUT)
def test_h5ad_that_leads_out_of_itself(kind: str, other: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.h5ad"
    adata().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        OUT[kind](file, other)
    with (
        pytest.raises(ValueError, match=r"in another file|in other files") as error,
        open_counts(path) as source,
    ):
        list(source.obs)
    assert ALLOWED in str(error.value)
    assert path.name in str(error.value)


@pytest.mark.parametrize("names", [("aaa",), ("matrix", "row_attrs", "col_attrs")])
def test_other_files_are_told_by_what_is_in_them(names: tuple[str, ...], other: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name in names:
            file[name] = h5py.ExternalLink(str(other), "X")
    with pytest.raises(ValueError, match=rf"has a link at {min(names)} to X in another file"):
        open_counts(path)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("kind", [kind for kind in OUT if OUT[kind] is not external])
def test_it_is_read_where_that_is_allowed(kind: str, other: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.h5ad"
    adata().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        OUT[kind](file, other)
    names, totals = read(path)
    assert names == list(adata().obs_names)
    np.testing.assert_array_equal(totals, adata().X.sum(axis=1).A1)


def test_links_within_a_file_are_followed_but_not_in_circles(other: Path, tmp_path: Path) -> None:
    with h5py.File(other, "r+") as file:
        file.move("X", "elsewhere")
        file["X"] = h5py.SoftLink("elsewhere")
        file["elsewhere/itself"] = file["elsewhere"]
    assert len(read(other)[0]) == N_OBS
    with h5py.File(other, "r+") as file:
        in_a_circle(file, other)
    with pytest.raises(ValueError, match=r"other\.h5ad"):
        read(other)


def test_results_and_entries_stay_in_the_file(other: Path, tmp_path: Path) -> None:
    path, before = tmp_path / "a.h5ad", other.read_bytes()
    adata().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        linked("obsm")(file, other)
        linked("uns")(file, other)
    with pytest.raises(ValueError, match=ALLOWED):
        write_results(path, tmp_path / "out.h5ad", Results(obsm={"X_a": np.ones((N_OBS, 2))}), None)
    with pytest.raises(ValueError, match=ALLOWED):
        read_entry(path, None, "uns")
    assert other.read_bytes() == before
    assert not (tmp_path / "out.h5ad").exists()


def test_entries_of_all_kinds_are_read(tmp_path: Path) -> None:
    data = adata()
    data.uns["a"] = {
        "none": None,
        "text": "x",
        "number": 1,
        "flag": True,
        "empty": np.empty((0, 2)),
        "names": ["a", "b"],
    }
    data.write_h5ad(tmp_path / "a.h5ad")
    data.write_zarr(tmp_path / "a.zarr")
    for name in ("a.h5ad", "a.zarr"):
        found = read_entry(tmp_path / name, None, "uns/a")
        assert found["none"] is None
        assert (found["text"], found["number"], found["flag"], list(found["names"])) == ("x", 1, True, ["a", "b"])


# --- sizes


def genes(file: h5py.File) -> None:
    put(file["var"], "_index", shape=(10**8,), dtype=TEXT, chunks=(2**16,))
    file["X"].attrs["shape"] = np.array([N_OBS, 10**8])


def cells(file: h5py.File) -> None:
    put(file["obs"], "_index", shape=(10**9,), dtype=TEXT, chunks=(2**16,))
    file["X"].attrs["shape"] = np.array([10**9, N_VARS])
    put(file["X"], "indptr", shape=(10**9 + 1,), dtype="i8", chunks=(2**16,))


CLAIMS: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "genes": (genes, "var/_index .*100,000,000 names in 0 bytes|declares 800,000,000 bytes"),
    "cells": (cells, "obs/_index .*(names|bytes)"),
    "short names": (lambda file: put(file["obs"], "_index", shape=(10**7,), dtype="S1", chunks=(2**16,)), "names in 0 bytes"),
    "long names": (lambda file: put(file["obs"], "_index", shape=(N_OBS,), dtype="S50000000", chunks=(1,)), "600,000,000 bytes"),
    "a long column": (lambda file: put(file["obs"], "n", shape=(10**9,), dtype="i8", chunks=(2**16,)), "obs/n .*8,000,000,000"),
    "a huge chunk": (
        lambda file: put(file["obs"], "n", shape=(1,), maxshape=(None,), dtype="i8", chunks=(10**8,)),
        "obs/n .*800,000,000",
    ),
    "values": (lambda file: put(file["X"], "data", shape=(10**10,), dtype="f4", chunks=(2**16,)), "X of .*declares 40,0"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CLAIMS)
def test_sizes_that_a_file_cannot_back(kind: str, other: Path) -> None:
    change, message = CLAIMS[kind]
    with h5py.File(other, "r+") as file:
        change(file)
    with pytest.raises(ValueError, match=message) as error, open_counts(other) as source:
        list(source.obs)
    assert "other.h5ad" in str(error.value)
    assert "Accepted: " in str(error.value)


def test_sizes_that_a_store_cannot_back(tmp_path: Path) -> None:
    adata().write_zarr(tmp_path / "a.zarr")
    root = zarr.open_group(tmp_path / "a.zarr", use_consolidated=False)
    attrs = dict(root["var/_index"].attrs)
    del root["var/_index"]
    root["var"].create_array("_index", shape=(10**8,), dtype="str", chunks=(2**16,)).attrs.update(attrs)
    with pytest.raises(ValueError, match=r"var/_index of .*a\.zarr declares"):
        read(tmp_path / "a.zarr")


def test_numbered_names_and_constant_columns_are_honest(tmp_path: Path) -> None:
    """What compresses best of all that people have."""
    n = 200_000
    obs = pd.DataFrame({"zero": np.zeros(n)}, index=[f"cell_{i:09d}" for i in range(n)])
    data = ad.AnnData(sparse.csr_matrix((n, 3), dtype=np.float32), obs=obs)
    data.write_h5ad(tmp_path / "a.h5ad", compression="gzip", compression_opts=9)
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        names = np.char.encode(obs.index.to_numpy(dtype=str))
        put(file["obs"], "_index", data=names, chunks=(2**16,), shuffle=True, compression="gzip", compression_opts=9)
    data.write_zarr(tmp_path / "a.zarr")
    for path in (tmp_path / "a.h5ad", tmp_path / "a.zarr"):
        with open_counts(path) as source:
            assert source.obs_names[-1] == obs.index[-1]
            assert not source.obs["zero"].any()


def test_a_store_whose_chunks_are_missing_is_read(tmp_path: Path) -> None:
    adata(np.asarray).write_zarr(tmp_path / "a.zarr")
    root = zarr.open_group(tmp_path / "a.zarr", use_consolidated=False)
    del root["X"]
    made = root.create_array("X", shape=(N_OBS, N_VARS), dtype="f4", chunks=(2, 2))
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    assert not read(tmp_path / "a.zarr")[1].any()


def bomb(file: h5py.File, name: str, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: Any) -> None:
    """A dataset of one chunk that inflates to a gigabyte."""
    attrs = dict(file[name].attrs)
    del file[name]
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk(chunk)
    plist.set_deflate(9)
    space = h5s.create_simple(shape, (h5s.UNLIMITED,) * len(shape))
    made = h5d.create(file.id, name.encode(), h5t.py_create(np.dtype(dtype)), space, plist)
    packer = zlib.compressobj(9)
    made.write_direct_chunk(
        (0,) * len(shape), b"".join(packer.compress(bytes(2**24)) for _ in range(64)) + packer.flush()
    )
    file[name].attrs.update(attrs)


@pytest.mark.parametrize("name", ["X", "obs/n", "obs/_index"])
def test_chunks_that_inflate_to_more_than_they_declare(name: str, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    adata(np.asarray).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        dense = name == "X"
        bomb(file, name, (N_OBS, N_VARS)[: 1 + dense], (2**18, 8)[: 1 + dense], "S8" if name == "obs/_index" else "f8")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        pytest.raises(ValueError, match=r"a\.h5ad is damaged: a compressed chunk"),
        open_counts(tmp_path / "a.h5ad") as source,
    ):
        list(source.obs)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


# --- how values are packed


def test_filters_that_are_not_known(other: Path) -> None:
    with h5py.File(other, "r+") as file:
        plist = h5p.create(h5p.DATASET_CREATE)
        plist.set_chunk((4,))
        plist.set_filter(301, h5py.h5z.FLAG_OPTIONAL, (1,))
        n = file["X/data"].shape[0]
        del file["X/data"]
        h5d.create(file.id, b"X/data", h5t.IEEE_F32LE, h5s.create_simple((n,)), plist)
    with pytest.raises(
        ValueError, match=r"X/data of .*other\.h5ad is packed by the HDF5 filter 301.*Accepted: gzip, shuffle"
    ):
        read(other)


@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_the_pickle_codec_is_not_reached(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[int] = []
    monkeypatch.setattr(numcodecs.Pickle, "decode", lambda *args: reached.append(1))
    with ad.settings.override(zarr_write_format=2):
        adata().write_zarr(tmp_path / "a.zarr")
    file = tmp_path / "a.zarr" / "obs" / "_index" / ".zarray"
    metadata = json.loads(file.read_text())
    pickle = {"id": "pickle", "protocol": 5}
    metadata[place] = pickle if place == "compressor" else [{"id": "vlen-utf8"}, pickle]
    file.write_text(json.dumps(metadata))
    for path in (tmp_path / "a.zarr", (tmp_path / "a.zarr").as_uri()):
        with pytest.raises(
            ValueError, match=r"obs/_index of .*a\.zarr.* is packed by the codec 'pickle'.*Accepted: bytes, blosc"
        ):
            read(path)
    assert not reached


def test_codecs_within_shards_are_looked_at(tmp_path: Path) -> None:
    with ad.settings.override(zarr_write_format=3):
        adata().write_zarr(tmp_path / "a.zarr")
    file = tmp_path / "a.zarr" / "X" / "data" / "zarr.json"
    metadata = json.loads(file.read_text())
    inner = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "numcodecs.pickle", "configuration": {}},
    ]
    sharding = {"chunk_shape": [1], "codecs": inner, "index_codecs": inner[:1]}
    metadata["codecs"] = [{"name": "sharding_indexed", "configuration": sharding}]
    file.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"a\.zarr.*pickle"):
        read(tmp_path / "a.zarr")


# --- links in a store


@pytest.mark.parametrize("place", ["obs", "X/data", "obs/_index/0", "uns/x"])
def test_links_in_a_store_are_not_followed(place: str, tmp_path: Path) -> None:
    path, out, private = tmp_path / "a.zarr", tmp_path / "out.zarr", tmp_path / "private"
    with ad.settings.override(zarr_write_format=2):
        adata().write_zarr(path)
    if (path / place).exists():
        (path / place).rename(private)
    else:
        private.mkdir()
        (private / "key").write_text("private")
    (path / place).symlink_to(private)
    if place != "uns/x":  # which is not read
        for name in (path, path.as_uri()):
            with pytest.raises(ValueError, match=rf"a\.zarr/.*is a link, to .*private.*{ALLOWED}"):
                read(name)
    for call in (
        lambda: check_output(path, out, None, overwrite=False),
        lambda: write_results(path, out, Results(obsm={"X_a": np.ones((N_OBS, 2))}), None),
    ):
        with pytest.raises(ValueError, match=ALLOWED):
            call()
    assert not out.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
@pytest.mark.parametrize("place", ["X/data/pipe", "uns/pipe"])
def test_pipes_in_a_store_are_not_read(place: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    adata().write_zarr(path)
    os.mkfifo(path / place)
    with pytest.raises(ValueError, match="pipe is neither a file nor a folder"):
        check_output(path, tmp_path / "out.zarr", None, overwrite=False)
    if place != "uns/pipe":  # which is not read
        with pytest.raises(ValueError, match="pipe is neither a file nor a folder"):
            read(path)


@pytest.mark.usefixtures("allowed")
def test_a_store_of_links_is_read_and_copied_where_that_is_allowed(tmp_path: Path) -> None:
    path, out = tmp_path / "a.zarr", tmp_path / "out.zarr"
    adata().write_zarr(path)
    (path / "obs").rename(tmp_path / "obs")
    (path / "obs").symlink_to(tmp_path / "obs")
    assert len(read(path)[0]) == N_OBS
    write_results(path, out, Results(obsm={"X_a": np.ones((N_OBS, 2))}), None)
    assert not (out / "obs").is_symlink()
    assert "X_a" in ad.read_zarr(out).obsm

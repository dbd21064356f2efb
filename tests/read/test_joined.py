"""Several files as one source, collections of annbatch, and addresses."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import zarr
from scipy import sparse

from scfm.read import JoinedSource, expand, open_container, open_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def write_zarr(adata: ad.AnnData, path: Path) -> Path:
    with ad.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        ad.io.write_elem(zarr.open_group(path, mode="w"), "/", adata)
    return path


@pytest.fixture
def files(build: Callable[..., ad.AnnData], tmp_path: Path) -> list[Path]:
    """Three files of 23, 5 and 0 cells; the second has other genes and is a zarr store."""
    first, second = build(), build()[4:9, ::-1].copy()
    first.write_h5ad(tmp_path / "a.h5ad")
    write_zarr(second, tmp_path / "b.zarr")
    first[:0].write_h5ad(tmp_path / "c.h5ad")
    return [tmp_path / "a.h5ad", tmp_path / "b.zarr", tmp_path / "c.h5ad"]


def joined(files: Any, **arguments: Any) -> JoinedSource[list[str]]:
    return JoinedSource(files, lambda source: list(source.var.index), partial(open_counts, **arguments))


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_cells_come_one_file_after_the_other(rows: int, files: list[Path], x: np.ndarray) -> None:
    expected = {0: x, 1: x[4:9, ::-1]}
    with joined([*files, files[0]]) as source:
        assert source.sizes == [23, 5, 0, 23]
        assert source.n_obs == 51
        assert source.facts[1] == source.facts[0][::-1]
        seen = 0
        for block in source.blocks(rows, max_nnz=20):
            number, first = source.place(block.row0)
            assert block.row0 == seen
            seen += block.n_cells
            dense = sparse.csr_array((block.data, block.indices, block.indptr), shape=(block.n_cells, 11)).toarray()
            np.testing.assert_array_equal(dense, expected[number % 3][block.row0 - first :][: block.n_cells])
        assert seen == 51


def test_any_range_of_cells(files: list[Path]) -> None:
    with joined([*files, files[0]]) as source:
        names = source.names(0, 51)
        assert list(names[:24]) == [f"cell{i}" for i in range(23)] + ["cell4"]
        assert list(source.obs_names) == list(names)
        for start in range(0, 51, 5):
            for stop in range(start, 51, 5):
                assert list(source.names(start, stop)) == list(names[start:stop])
                assert sum(block.n_cells for block in source.blocks(start=start, stop=stop)) == stop - start


def test_one_file_is_open_at_a_time(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    is_open: list[str] = []

    def spy(path: str, modality: str | None) -> Any:
        assert not is_open
        container = open_container(path, modality)
        is_open.append(path)
        close = container.close
        monkeypatch.setattr(container, "close", lambda: (is_open.remove(path), close()))
        return container

    for module in ("joined", "_open"):
        monkeypatch.setattr(f"scfm.read.{module}.open_container", spy)
    with joined(files) as source:
        list(source.blocks(4))
        source.names(0, 28)
    assert not is_open
    with pytest.raises(ValueError, match=r"b\.zarr has no layer 'more'"):
        joined(files[1:], layer="more")


def test_what_stands_for_several_files(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [str(path) for path in expand(str(tmp_path / "*.h5ad"))] == [str(files[0]), str(files[2])]
    assert [str(path) for path in expand(tmp_path / "[ab].*")] == [str(file) for file in files[:2]]
    assert expand([files[0]]) == files[0] == expand(files[0])
    assert expand("s3://bucket/*.zarr") == "s3://bucket/*.zarr"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd[1].h5ad").touch()
    assert str(expand("odd[1].h5ad")) == "odd[1].h5ad"
    adata = ad.AnnData(np.ones((1, 1)))
    assert expand(adata) is adata
    with pytest.raises(FileNotFoundError, match=r"No file fits the pattern '.*\*\.h5mu'"):
        expand(tmp_path / "*.h5mu")
    with pytest.raises(ValueError, match="An empty list of files"):
        expand([])
    with pytest.raises(TypeError, match="A list of files holds paths; found AnnData"):
        expand([adata])


def test_a_collection_of_annbatch(build: Callable[..., ad.AnnData], tmp_path: Path) -> None:
    """The layout of annbatch 0.3: numbered stores, sharded, column numbers in the smallest dtype."""
    store = zarr.open_group(tmp_path / "all.zarr", mode="w", zarr_format=3)
    store.attrs.update({"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"})
    adata = build(raw=False, layer=False)
    for number in (0, 1, 10, 2):
        part = adata[number : number + 3].copy()
        ad.io.write_elem(
            store, f"dataset_{number}", ad.AnnData(obs=part.obs, var=part.var), dataset_kwargs={"shards": None}
        )
        group = store.create_group(f"dataset_{number}/X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(part.shape)})
        for name, dtype in (("data", "float32"), ("indices", "uint16"), ("indptr", "int64")):
            values = getattr(part.X, name).astype(dtype)
            array = group.create_array(name, shape=values.shape, dtype=dtype, chunks=(4,), shards=(8,))
            array[:] = values
    paths = expand(tmp_path / "all.zarr")
    assert [path.name for path in paths] == ["dataset_0", "dataset_1", "dataset_2", "dataset_10"]
    with joined(paths) as source:
        rows = [0, 1, 2, 1, 2, 3, 2, 3, 4, 10, 11, 12]
        assert list(source.obs_names) == [f"cell{i}" for i in rows]
        found = np.concatenate([block.data for block in source.blocks(2)])
        np.testing.assert_array_equal(found, adata[rows].X.data)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_a_store_by_its_address(build: Callable[..., ad.AnnData], x: np.ndarray, server: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    write_zarr(build(), tmp_path / "a.zarr")
    zarr.consolidate_metadata(tmp_path / "a.zarr")
    with open_counts(f"{server}/a.zarr") as source:
        found = [block.data for block in source.blocks(4)]
        assert list(source.names(3, 5)) == ["cell3", "cell4"]
        assert list(source.column("batch"))[:2] == ["a", "b"]
    np.testing.assert_array_equal(np.concatenate(found), sparse.csr_matrix(x).data)
    with pytest.raises(
        FileNotFoundError, match=r"http.*/b\.zarr cannot be opened as a zarr store.*must be downloaded first"
    ):
        open_counts(f"{server}/b.zarr")


def test_an_address_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/cells.zarr"
        with pytest.raises(ConnectionError, match=rf"^{re.escape(address)} cannot be reached: "):
            open_counts(address)
    monkeypatch.setattr("scfm.read.remote.SILENCE", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/cells.zarr"
        with pytest.raises(ConnectionError, match=rf"^{re.escape(address)} cannot be reached: "):
            open_counts(address)


def test_one_column_is_read_alone(build: Callable[..., ad.AnnData], tmp_path: Path) -> None:
    build().write_h5ad(tmp_path / "a.h5ad")
    for data in (build(), tmp_path / "a.h5ad"):
        with open_counts(data) as source:
            assert source.obs_columns == ["batch"]
            assert list(source.column("batch")) == ["a", "b"] * 11 + ["a"]
            with pytest.raises(KeyError, match="assay"):
                source.column("assay")
            assert "obs" not in vars(source._container)


def test_a_collection_is_told_from_other_folders(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text(json.dumps({"attributes": {"encoding-type": "anndata"}}))
    assert expand(tmp_path) == tmp_path

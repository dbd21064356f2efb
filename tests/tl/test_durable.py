"""What a store promises is on the disk, and after any stop the same call completes the work."""

from __future__ import annotations

import json
import logging
import os
import shutil
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest

import scfm
from scfm._write import METADATA
from scfm.run.store import ShardStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

N_OBS, SHARD_ROWS, KEY = 40, 20, "X_scfm_mini"
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Writing zarr v2", "ignore:zarr v3 autosharding", "ignore:Consolidated metadata"),
]


def embed(source: Path, **arguments: Any) -> Path:
    out = source.with_name("emb.zarr")
    return scfm.tl.embed_store(source, "scfm-mini", out, shard_rows=SHARD_ROWS, device="cpu", **arguments)


def read(path: Path) -> ad.AnnData:
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


def write(kind: str, folder: Path) -> Path:
    adata, path = scfm.datasets.pbmc68k()[:N_OBS].copy(), folder / f"cells.{kind.rstrip('23')}"
    if kind == "h5ad":
        adata.write_h5ad(path)
        return path
    with ad.settings.override(zarr_write_format=int(kind[-1])):
        adata.write_zarr(path)
    if kind == "zarr2":
        (path / ".zmetadata").unlink()
    return path


@pytest.fixture(scope="module", params=["h5ad", "zarr2", "zarr3"])
def embedded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file and beside it the complete store of its embeddings."""
    source = write(request.param, tmp_path_factory.mktemp(request.param))
    embed(source)
    return source


@pytest.fixture
def source(embedded: Path, tmp_path: Path) -> Path:
    shutil.copytree(embedded.parent, tmp_path / "work")
    return tmp_path / "work" / embedded.name


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("scfm").addHandler(handler)
    yield found
    logging.getLogger("scfm").removeHandler(handler)


def check_complete(source: Path) -> None:
    found, expected = read(source), ad.read_zarr(source.with_name("emb.zarr"))
    assert np.isfinite(expected.obsm[KEY]).all()
    np.testing.assert_array_equal(found.obsm[KEY], expected.obsm[KEY])
    assert found.uns["scfm_mini"]["params"]["n_cells"] == N_OBS
    assert sorted(path.name for path in source.parent.iterdir()) == sorted([source.name, "emb.zarr"])


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("number", range(7))
def test_a_merge_that_is_killed_is_completed(
    number: int, exchange: bool, source: Path, stop_at: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr("scfm._paths._exchange", lambda *_: False)
    stopped = stop_at(number, dead=True)
    try:
        scfm.tl.merge_store(source.with_name("emb.zarr"), source)
    except KeyboardInterrupt:
        assert stopped()
    else:
        assert not stopped()
    if exchange or source.is_file():
        found = read(source)
        assert (KEY in found.obsm) == ("scfm_mini" in found.uns)
    embed(source, into_source=True)
    check_complete(source)


@pytest.mark.parametrize("number", range(9))
def test_a_store_that_is_killed_is_completed(number: int, tmp_path: Path, stop_at: Callable[..., Any]) -> None:
    source = write("h5ad", tmp_path)
    stopped = stop_at(number, dead=True)
    with pytest.raises(KeyboardInterrupt):
        embed(source)
    assert stopped()
    embed(source, into_source=True)
    check_complete(source)


def test_chunks_are_on_the_disk_before_their_marker(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, synced = os.fsync, set()

    def fsync(handle: int) -> None:
        real(handle)
        synced.add(os.fstat(handle).st_ino)

    def check(work: Path, path: Path) -> None:
        if path.parent.name == ".shards":
            chunk = path.parents[1] / "c" / str(int(path.stem)) / "0"
            promises = [work, chunk, chunk.parent, chunk.parents[1]]
            assert all(promise.stat().st_ino in synced for promise in promises)
            seen.append(path.name)
        work.replace(path)

    seen: list[str] = []
    shutil.rmtree(source.with_name("emb.zarr"))
    monkeypatch.setattr("scfm.settings.fsync", True)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr("scfm._paths._rename", check)
    embed(source)
    assert seen == ["00000000.json", "00000001.json"]


@pytest.mark.parametrize("damage", ["lost", "empty", "longer", "changed", "zeros"])
def test_damaged_values_are_computed_again(damage: str, source: Path, lines: list[str]) -> None:
    out = source.with_name("emb.zarr")
    expected = ad.read_zarr(out).obsm[KEY]
    chunk = out / "obsm" / KEY / "c" / "1" / "0"
    content = chunk.read_bytes()
    if damage == "lost":
        chunk.unlink()
    elif damage in ("changed", "zeros"):  # of the same size: only the hash tells
        middle = len(content) // 2
        changed = bytes([content[middle] ^ 1]) + content[middle + 1 :]
        chunk.write_bytes(bytes(len(content)) if damage == "zeros" else content[:middle] + changed)
        before = source.read_bytes() if source.is_file() else None
        with pytest.raises(
            ValueError, match=r"Cells 20 to 40 of .*emb.zarr are damaged; call scfm.tl.embed_store again"
        ):
            embed(source, into_source=True)
        assert before is None or source.read_bytes() == before
        assert KEY not in read(source).obsm
    else:
        chunk.write_bytes(b"" if damage == "empty" else content + b"x")
    embed(source, into_source=True)
    np.testing.assert_array_equal(ad.read_zarr(out).obsm[KEY], expected)
    assert len([line for line in lines if "ignoring 00000001.json in" in line]) == (damage not in ("changed", "zeros"))
    check_complete(source)


@pytest.mark.parametrize("embedded", ["h5ad"], indirect=True)
def test_files_that_are_no_markers_are_ignored(source: Path, lines: list[str]) -> None:
    out = source.with_name("emb.zarr")
    markers = out / "obsm" / KEY / ".shards"
    first = json.loads((markers / "00000000.json").read_text())
    (markers / "00000000.sync-conflict.json").write_text(json.dumps(first))
    (markers / "00000099.json").write_text(json.dumps(first))
    (markers / "00000001.json").write_text(json.dumps(first))  # of other cells
    (markers / "00000002.json").write_text("{")
    embed(source)
    (told,) = [line for line in lines if "ignoring" in line]
    assert ad.read_zarr(out).uns["scfm_mini"]["params"]["n_cells"] == N_OBS
    assert len(ShardStore.open(out).done()) == 2
    assert "00000001.json, 00000002.json" in told


def test_a_merge_shares_chunks_and_a_copy_does_not(source: Path) -> None:
    if source.is_file():
        pytest.skip("a file has no chunks of its own")
    chunks = {path.relative_to(source): path.stat().st_ino for path in (source / "X").rglob("*") if path.is_file()}
    chunks = {path: number for path, number in chunks.items() if path.name not in METADATA}
    assert chunks
    out = source.with_name("out.zarr")
    scfm.tl.embed(source, "scfm-mini", out=out, device="cpu")
    assert all((out / path).stat().st_ino != number for path, number in chunks.items())
    shutil.rmtree(out)
    embed(source, into_source=True)
    assert all((source / path).stat().st_ino == number for path, number in chunks.items())
    check_complete(source)


def test_a_source_that_changes_meanwhile_is_kept(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, part = ShardStore.values, source if source.is_file() else next(source.glob("[z.]*"))

    def values(store: ShardStore, shard: Any) -> dict[str, np.ndarray]:
        os.utime(part, ns=(1, 2**62))
        return usual(store, shard)

    monkeypatch.setattr(ShardStore, "values", values)
    with pytest.raises(RuntimeError, match="was changed by another process while results were added to a copy"):
        scfm.tl.merge_store(source.with_name("emb.zarr"), source)
    assert KEY not in read(source).obsm

"""Embeddings of a store, added to the file of the cells."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata as md
import numpy as np
import pytest
import zarr

import scfm
from scfm.cli import main
from scfm.run.store import ShardStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scfm.run.plan import Shard

KEY, ROWS = "X_scfm_mini", 64
pytestmark = pytest.mark.filterwarnings(
    "ignore:Writing zarr v2", "ignore:zarr v3 autosharding", "ignore:Consolidated metadata"
)


def write(kind: str, folder: Path) -> Path:
    adata = scfm.datasets.pbmc68k()[:200].copy()
    adata.obsm["X_old"] = np.ones((200, 2), "f4")
    path = folder / f"cells.{kind.rstrip('23')}"
    if kind == "h5mu":
        md.MuData({"rna": adata}).write_h5mu(path)
    elif path.suffix == ".zarr":
        with ad.settings.override(zarr_write_format=int(kind[4])):
            adata.write_zarr(path)
        assert zarr.open_group(path).metadata.consolidated_metadata is not None
    else:
        adata.write_h5ad(path)
    return path


def read(path: Path) -> ad.AnnData:
    if path.suffix == ".h5mu":
        return md.read_h5mu(path)["rna"]
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


@pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")
@pytest.mark.parametrize("kind", ["h5ad", "zarr2", "zarr3", "h5mu"])
def test_into_source(kind: str, tmp_path: Path) -> None:
    source, out = write(kind, tmp_path), tmp_path / "emb.zarr"
    modality = "rna" if kind == "h5mu" else None
    call = {"shard_rows": ROWS, "modality": modality, "into_source": True, "device": "cpu"}
    scfm.tl.embed_store(source, "scfm-mini", out, shard="1/2", **call)
    assert KEY not in read(source).obsm
    for _ in range(2):  # the second time there is nothing left to do
        scfm.tl.embed_store(source, "scfm-mini", out, **call)
        found, store = read(source), ad.read_zarr(out)
        np.testing.assert_array_equal(found.obsm[KEY], store.obsm[KEY])
        assert np.isfinite(found.obsm[KEY]).all()
        if source.is_dir():  # what reads consolidated metadata sees it, too
            assert KEY in zarr.open_group(source, use_consolidated=True)["obsm"]
        assert found.uns["scfm_mini"]["params"]["n_cells"] == 200
        np.testing.assert_array_equal(found.obsm["X_old"], 1)
        assert list(found.obs_names) == list(store.obs_names)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, out.name])


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write("h5ad", tmp_path), tmp_path / "emb.zarr"
    embed = ["embed-store", str(source), "--model", "scfm-mini", "--out", str(out), "--shard-rows", "64"]
    assert main([*embed, "--shard", "2/2", "--device", "cpu"]) == 0
    assert main(["status", str(out)]) == 0
    assert main(["merge", str(out), str(source)]) == 1
    text = capsys.readouterr()
    assert f"{out}: 2 of 4 shards, 72 of 200 cells; missing shards 0, 1" in text.out
    assert "lacks 2 of 4 shards" in text.err
    assert main([*embed, "--device", "cpu"]) == 0
    assert main(["merge", str(out), str(source)]) == 0
    assert f"added the results of {out} to {source}" in capsys.readouterr().out
    np.testing.assert_array_equal(ad.read_h5ad(source).obsm[KEY], ad.read_zarr(out).obsm[KEY])


def test_other_cells_are_refused(tmp_path: Path) -> None:
    source, out = write("h5ad", tmp_path), tmp_path / "emb.zarr"
    scfm.tl.embed_store(source, "scfm-mini", out, shard_rows=ROWS, device="cpu")
    other = ad.read_h5ad(source)
    other.obs_names = other.obs_names[::-1]
    other.write_h5ad(tmp_path / "other.h5ad")
    before = (tmp_path / "other.h5ad").read_bytes()
    with pytest.raises(ValueError, match="does not hold the cells of .*nothing was changed"):
        scfm.tl.merge_store(out, tmp_path / "other.h5ad")
    assert (tmp_path / "other.h5ad").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("kind", ["h5ad", "zarr2", "zarr3"])
def test_a_merge_that_was_stopped_goes_on(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out, usual = write(kind, tmp_path), tmp_path / "emb.zarr", ShardStore.read

    def stop(store: ShardStore, shard: Shard) -> dict[str, np.ndarray]:
        if shard.start:
            raise KeyboardInterrupt
        return usual(store, shard)

    call = {"shard_rows": ROWS, "into_source": True, "device": "cpu"}
    monkeypatch.setattr(ShardStore, "read", stop)
    with pytest.raises(KeyboardInterrupt):
        scfm.tl.embed_store(source, "scfm-mini", out, **call)
    assert (KEY in read(source).obsm, "scfm_mini" in read(source).uns) == (False, False)
    monkeypatch.setattr(ShardStore, "read", usual)
    scfm.tl.embed_store(source, "scfm-mini", out, **call)
    np.testing.assert_array_equal(read(source).obsm[KEY], ad.read_zarr(out).obsm[KEY])


def _plan(**changed: Any) -> Callable[[Path], None]:
    def change(store: Path) -> None:
        (file,) = store.glob("obsm/*/.scfm.json")
        plan = json.loads(file.read_text())
        plan["arrays"][0].update({name: changed[name] for name in changed if name in plan["arrays"][0]})
        plan.update({name: value for name, value in changed.items() if name not in plan["arrays"][0]})
        if "n_obs" in changed:
            plan["identity"]["source"][0]["n_obs"] = changed["n_obs"]
        if "more" in changed:
            plan["arrays"].append({**plan["arrays"][0], "path": plan.pop("more")})
        file.write_text(json.dumps(plan))

    return change


def _link(name: str) -> Callable[[Path], None]:
    def change(store: Path) -> None:
        (store / name).rename(store.with_name("elsewhere"))
        (store / name).symlink_to(store.with_name("elsewhere"))

    return change


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "an array elsewhere": (_plan(more="/tmp/x.zarr/X"), "does not say how the store is made up"),
    "a key elsewhere": (_plan(key="../../x"), "does not say how the store is made up"),
    "cells without end": (_plan(n_obs=10**15), "does not say how the store is made up"),
    "another verb": (_plan(verb="evil"), "holds results of 'evil'; those of embed and perturb"),
    "fields of another verb": (_plan(verb="perturb"), r"emb\.zarr cannot be read"),
    "a link to chunks": (_link("obsm/X_scfm_mini/c"), "is a link, to .*elsewhere"),
    "a link to entries": (_link("uns/scfm_mini/params"), "is a link, to .*elsewhere"),
    "deep": (
        lambda store: (store / "uns/scfm_mini/params/zarr.json").write_text("[" * 10**6),
        r"emb\.zarr cannot be read",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_stores_of_others_are_not_believed(kind: str, tmp_path: Path) -> None:
    source, out = write("h5ad", tmp_path), tmp_path / "emb.zarr"
    scfm.tl.embed_store(source, "scfm-mini", out, shard_rows=ROWS, device="cpu")
    before = source.read_bytes()
    change, match = FOREIGN[kind]
    change(out)
    with pytest.raises((ValueError, TypeError), match=match):
        scfm.tl.merge_store(out, source)
    assert source.read_bytes() == before

"""What can be known before the long work is told then, and nothing of the user is overwritten."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scfm
from scfm._paths import size_of
from scfm.model.session import Session
from scfm.run.store import ShardStore
from scfm.testing import write_transcriptformer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:.*zarr:UserWarning")  # of the format, by anndata


@pytest.fixture
def adata() -> ad.AnnData:
    adata = scfm.datasets.pbmc68k()[:20].copy()
    adata.obsm["X"] = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    adata.obsm["ic50"] = pd.DataFrame({"drug": np.arange(20.0)}, adata.obs_names)
    return adata


@pytest.fixture(params=["h5ad", "zarr"])
def source(adata: ad.AnnData, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / f"cells.{request.param}"
    adata.write_h5ad(path) if request.param == "h5ad" else adata.write_zarr(path)
    return path


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "run", lambda *_: pytest.fail("the long work began"))


def embedded(path: Path, **arguments: Any) -> Path:
    out = arguments.pop("out", path.with_name(f"out{path.suffix}"))
    scfm.tl.embed(path, "scfm-mini", out=out, **arguments)
    return out


def values(path: Path) -> np.ndarray:
    found = ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)
    return np.asarray(found.obsm["X_scfm_mini"])


class Case(NamedTuple):
    """A verb, and the places of its results."""

    verb: Callable[..., Any]
    places: tuple[tuple[str, str], ...]
    arguments: dict[str, Any]


CASES = {
    "embed": Case(scfm.tl.embed, (("obsm", "X_scfm_mini"), ("uns", "scfm_mini")), {"model": "scfm-mini"}),
    "embed genes": Case(scfm.tl.embed, (("varm", "X_scfm_mini"),), {"model": "scfm-mini", "pooling": "gene"}),
    "marker_genes": Case(
        scfm.tl.marker_genes,
        (("layers", "marker_genes"), ("uns", "marker_genes")),
        {"model": "scfm-mini", "n_cells": 1, "genes": ["CD3D"]},
    ),
    "annotate": Case(
        scfm.tl.annotate,
        (
            *(("obs", f"annotation{end}") for end in ("", "_score", "_novelty", "_cl")),
            ("obsm", "annotation_probabilities"),
            ("uns", "annotation"),
        ),
        {"labels_key": "bulk_labels", "use_rep": "X", "n_neighbors": 3},
    ),
    "drug_response": Case(
        scfm.tl.drug_response,
        (("obsm", "drug_response"), ("uns", "drug_response")),
        {"use_rep": "X", "ic50_key": "ic50", "groupby": None, "split": "line"},
    ),
}


def call(case: Case, data: Any, **more: Any) -> None:
    more |= {"reference": scfm.datasets.pbmc68k()[20:60].copy()} if case.verb is scfm.tl.annotate else {}
    if "reference" in more:
        more["reference"].obsm["X"] = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    case.verb(data, **case.arguments, **more)


def fill(adata: ad.AnnData, slot: str, name: str) -> None:
    n = {"obs": adata.n_obs, "obsm": (adata.n_obs, 2), "varm": (adata.n_vars, 2), "layers": adata.shape, "uns": 3}[slot]
    getattr(adata, slot)[name] = np.zeros(n)


@pytest.mark.parametrize(
    ("name", "slot", "key"), [(name, *place) for name, case in CASES.items() for place in case.places]
)
def test_what_somebody_else_made_stays(name: str, slot: str, key: str, adata: ad.AnnData, no_work: None) -> None:
    fill(adata, slot, key)
    kept = getattr(adata, slot)[key]
    why = rf"would overwrite {slot}\['{key}'\], which scfm.tl.{CASES[name].verb.__name__} did not write.*key_added=, or delete"
    with pytest.raises(ValueError, match=why):
        call(CASES[name], adata)
    np.testing.assert_array_equal(getattr(adata, slot)[key], kept)


@pytest.mark.parametrize("name", CASES)
def test_own_results_are_replaced(name: str, adata: ad.AnnData) -> None:
    for _ in range(2):
        call(CASES[name], adata)
    assert all(key in getattr(adata, slot) for slot, key in CASES[name].places if not key.endswith("_cl"))


def test_scores(adata: ad.AnnData, tmp_path: Path) -> None:
    model = scfm.model.load(write_transcriptformer(tmp_path))
    cells = scfm.datasets.synthetic(5, 9, genes_per_cell=3, genes=model.vocabulary.genes[:9])
    for _ in range(2):
        scfm.tl.score(cells, model)
    del cells.uns["transcriptformer_score"]
    with pytest.raises(ValueError, match=r"obs\['transcriptformer_count_llh'\] and obs\['transcriptformer_gene_llh'\]"):
        scfm.tl.score(cells, model)


def test_another_verb_is_somebody_else(adata: ad.AnnData) -> None:
    scfm.tl.embed(adata, "scfm-mini", key_added="mine")
    with pytest.raises(ValueError, match=r"would overwrite uns\['mine'\], which scfm.tl.marker_genes did not write"):
        scfm.tl.marker_genes(adata, "scfm-mini", key_added="mine")


def test_fields_of_files(adata: ad.AnnData, tmp_path: Path, no_work: None) -> None:
    fill(adata, "obsm", "X_scfm_mini")
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"would overwrite obsm\['X_scfm_mini'\]"):
        embedded(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"would overwrite obsm\['X_scfm_mini'\]"):
        scfm.tl.embed_store(tmp_path / "a.h5ad", "scfm-mini", tmp_path / "s.zarr", into_source=True)


def test_a_source_is_completed_again(source: Path, tmp_path: Path) -> None:
    for number in range(2):
        scfm.tl.embed_store(source, "scfm-mini", tmp_path / f"{number}.zarr", into_source=True)
    np.testing.assert_array_equal(values(source), values(tmp_path / "1.zarr"))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is closed even to root")
def test_a_closed_folder_is_told_first(source: Path, no_work: None) -> None:
    closed = source.with_name("closed")
    closed.symlink_to("/proc")
    with pytest.raises(OSError, match=r"/closed cannot be written"):
        embedded(source, out=closed / f"out{source.suffix}")
    with pytest.raises(OSError, match=r"/closed cannot be written"):
        scfm.tl.embed_store(source, "scfm-mini", closed / "out.zarr")


def test_a_closed_source_is_told_first(
    source: Path, tmp_path: Path, no_work: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        if folder == tmp_path:
            raise PermissionError(folder)

    monkeypatch.setattr("scfm.tl._fill.check_writable", refuse)  # whoever runs the tests may be root
    with pytest.raises(PermissionError):
        scfm.tl.embed_store(source, "scfm-mini", tmp_path / "out.zarr", into_source=True)


def test_too_little_room_is_told_first(
    source: Path, tmp_path: Path, no_work: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = 20 * 128 * 4
    room = size_of(source) + added - 1
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, room))
    with pytest.raises(OSError, match=f"has {room:,} bytes free, and {room + 1:,} are needed: make room there"):
        embedded(source)
    room = added - 1
    with pytest.raises(OSError, match=r"out.zarr has 10,239 bytes free, and 10,240 are needed: make room there"):
        scfm.tl.embed_store(source, "scfm-mini", tmp_path / "out.zarr")


def test_a_copy_of_what_is_closed_is_open(source: Path) -> None:
    parts = [source, *source.rglob("*")]
    for part in parts:
        part.chmod(part.stat().st_mode & ~0o222)
    out = embedded(source)
    assert all(part.stat().st_mode & 0o200 for part in [out, *out.rglob("*")])
    assert values(out).shape == (20, 128)


def test_links_stay_and_lead_to_the_result(source: Path, tmp_path: Path) -> None:
    link, dangling = tmp_path / f"link{source.suffix}", tmp_path / f"dangling{source.suffix}"
    link.symlink_to(source.name)
    dangling.symlink_to(tmp_path / f"new{source.suffix}")
    with pytest.raises(FileExistsError, match="dangling.* exists already; choose another name, or pass overwrite=True"):
        embedded(source, out=dangling)
    embedded(source, out=dangling, overwrite=True)
    scfm.tl.embed_store(link, "scfm-mini", tmp_path / "store.zarr", into_source=True)
    embedded(link, out=link, overwrite=True)
    for path in (link, dangling):
        assert path.is_symlink()
        np.testing.assert_array_equal(values(path.resolve()), values(tmp_path / "store.zarr"))


def test_a_folder_of_something_else_is_not_overwritten(source: Path, tmp_path: Path, no_work: None) -> None:
    out = tmp_path / f"out{source.suffix}"
    (out / "images").mkdir(parents=True)
    (out / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {"spatialdata_attrs": {}}}')
    with pytest.raises(FileExistsError, match="is a folder of something else, which is not overwritten"):
        embedded(source, out=out, overwrite=True)
    assert (out / "images").is_dir()
    with pytest.raises(FileExistsError, match="is a folder of something else, which is not overwritten"):
        scfm.tl.gene_embeddings(source, "scfm-mini", out=out, overwrite=True)
    assert (out / "images").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
def test_a_full_disk(source: Path, tmp_path: Path) -> None:
    import resource

    before = size_of(source)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in [source, *source.rglob("*")])
    try:
        for out in (tmp_path / f"out{source.suffix}", source):
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, limits[1]))
            with pytest.raises(OSError, match=rf"{out} could not be written \(File too large\): make room there"):
                embedded(source, out=out, overwrite=True)
            if source.suffix == ".h5ad":  # the copy fits, and its results do not
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 2**12, limits[1]))
                with pytest.raises(OSError, match=rf"{out} could not be written \(File too large\)"):
                    embedded(source, out=out, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [source]
    assert size_of(source) == before


def test_room_that_was_not_used_is_given_back(tmp_path: Path, adata: ad.AnnData) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    out = embedded(tmp_path / "a.h5ad")
    assert size_of(out) < size_of(tmp_path / "a.h5ad") + 2**19


def test_progress_counts_what_is_there(adata: ad.AnnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    scfm.settings.progress = True
    try:
        for shard in ("1/2", None):
            scfm.tl.embed_store(tmp_path / "a.h5ad", "scfm-mini", tmp_path / "s.zarr", shard=shard, shard_rows=10)
    finally:
        scfm.settings.reset()
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "10/20" in shown
    assert " 0/20" not in shown
    assert not ShardStore.open(tmp_path / "s.zarr").missing()

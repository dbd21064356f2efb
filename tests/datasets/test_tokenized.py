"""Published corpora from a server with the layout of the hub: fetched, checked, embedded."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import scfm
from scfm.cli import main
from scfm.datasets._tokenized import CORPORA
from scfm.testing import write_sccello

from ..weights.server import FileServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("scfm.weights.download.BACKOFF_SECONDS", 0.0)
    with FileServer() as server:
        server.commit = COMMIT
        scfm.settings.offline = False
        scfm.settings.cache_dir = tmp_path / "cache"
        scfm.settings.hub_endpoint = server.url("")
        yield server
        scfm.settings.reset()


def publish(hub: FileServer, name: str, files: dict[str, bytes], revision: str | None = None) -> None:
    """Put a corpus on the server, with the answer of the hub's API about it."""
    repository = CORPORA[name].repository
    siblings: list[dict[str, Any]] = []
    for path, content in files.items():
        hub.files[f"/datasets/{repository}/resolve/{COMMIT}/{path}"] = content
        lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
        siblings.append({"rfilename": path, "size": len(content), "lfs": lfs if path.endswith(".parquet") else None})
    place = f"/api/datasets/{repository}" + (f"/revision/{revision}" if revision else "")
    answer = {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
    for true in ("true", "True"):  # as releases of huggingface_hub write it
        hub.files[f"{place}?blobs={true}"] = json.dumps(answer).encode()


def parquet(n_cells: int, path: Path, seed: int = 0) -> bytes:
    """Cells with the columns of scCello's corpora."""
    rng = np.random.default_rng(seed)
    cells = [rng.permutation(np.arange(4, 30))[: rng.integers(5, 20)].tolist() for _ in range(n_cells)]
    table = pa.table({"gene_token_ids": cells, "cell_type": rng.integers(0, 9, n_cells), "at": np.arange(n_cells)})
    pq.write_table(table, path)
    return path.read_bytes()


def test_fetched_once_and_embedded(hub: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = {f"data/train-0000{i}-of-00002.parquet": parquet(6, tmp_path / "made.parquet", seed=i) for i in (0, 1)}
    publish(hub, "sccello-celltype-1", {**shards, "README.md": b"# cells", "other.pkl": b"no"})
    with caplog.at_level("INFO", "scfm"):
        found = scfm.datasets.tokenized("sccello-celltype-1")
    assert [path.read_bytes() for path in found] == list(shards.values())
    assert "sccello-celltype-1: 2 files, 0.0 GB" in caplog.text
    assert not list((tmp_path / "cache").rglob("*.pkl"))
    model = scfm.model.load(write_sccello(tmp_path / "model"))
    assert scfm.tl.embed_tokenized(found, model).n_obs == 12
    n_requests = len(hub.seen)
    scfm.settings.offline = True
    assert scfm.datasets.tokenized("sccello-celltype-1") == found
    assert len(hub.seen) == n_requests


def test_the_cells_held_out_of_pretraining(hub: FileServer, tmp_path: Path) -> None:
    shards = [parquet(n, tmp_path / "made.parquet", seed=n) for n in (1500, 1001)]
    publish(hub, "sccello-pretrain", {f"data/train-0000{i}-of-00002.parquet": cells for i, cells in enumerate(shards)})
    (found,) = scfm.datasets.tokenized("sccello-in-distribution")
    # datasets 5.2: Dataset.from_dict({"i": range(2501)}).train_test_split(test_size=0.001, seed=237)["test"]["i"]
    expected = [819, 351, 916]
    at = pq.read_table(found)["at"].to_pylist()
    assert at == [i if i < 1500 else i - 1500 for i in expected]
    assert len(at) == math.ceil(2.501)
    assert scfm.datasets.tokenized("sccello-in-distribution") == [found]


def test_each_revision_has_its_own_held_out_cells(hub: FileServer, tmp_path: Path) -> None:
    found = []
    for n_cells, revision in ((1000, None), (2001, "v2")):
        publish(hub, "sccello-pretrain", {"train.parquet": parquet(n_cells, tmp_path / "made.parquet")}, revision)
        found += scfm.datasets.tokenized("sccello-in-distribution", revision=revision)
    assert [pq.read_table(path).num_rows for path in found] == [1, 3]


def test_a_dataset_folder(hub: FileServer, tmp_path: Path) -> None:
    cells = scfm.datasets.synthetic(4, n_genes=50, genes_per_cell=20)
    scfm.tl.tokenize(cells, "scfm-mini", out=tmp_path / "made")
    folder = "genecorpus_30M_2048.dataset"
    files = {f"{folder}/{path.name}": path.read_bytes() for path in (tmp_path / "made").iterdir()}
    publish(hub, "genecorpus-30m", {**files, "genecorpus_30M_2048_lengths.pkl": b"no"})
    (found,) = scfm.datasets.tokenized("genecorpus-30m")
    assert found.name == folder
    assert scfm.tl.embed_tokenized(found, "scfm-mini").n_obs == 4


def test_a_damaged_file_is_not_taken(hub: FileServer, tmp_path: Path) -> None:
    publish(hub, "sccello-donor-1", {"train.parquet": parquet(3, tmp_path / "made.parquet")})
    hub.files[f"/datasets/{CORPORA['sccello-donor-1'].repository}/resolve/{COMMIT}/train.parquet"] = b"other bytes"
    with pytest.raises(ValueError, match="has sha256"):
        scfm.datasets.tokenized("sccello-donor-1")
    assert not list((tmp_path / "cache").rglob("*.parquet"))


@pytest.mark.parametrize("path", ["../train.parquet", "/etc/train.parquet", "a/../../train.parquet"])
def test_a_listing_leads_nowhere_else(path: str, hub: FileServer, tmp_path: Path) -> None:
    publish(hub, "sccello-donor-1", {path: b"cells"})
    with pytest.raises(ValueError, match="cannot be part of a path"):
        scfm.datasets.tokenized("sccello-donor-1")


def test_another_revision(hub: FileServer, tmp_path: Path) -> None:
    publish(hub, "sccello-tissue-2", {"train.parquet": parquet(3, tmp_path / "made.parquet")}, revision="v1")
    (found,) = scfm.datasets.tokenized("sccello-tissue-2", revision="v1")
    assert found.parent.name == "sccello-tissue-2@v1"
    with pytest.raises(ValueError, match="cannot be part of a path"):
        scfm.datasets.tokenized("sccello-tissue-2", revision="../x")


def test_what_cannot_be_fetched(hub: FileServer) -> None:
    with pytest.raises(ValueError, match="Did you mean 'sccello-celltype-[12]'"):
        scfm.datasets.tokenized("sccello-celltype")
    with pytest.raises(OSError, match="does not list the files of the dataset"):
        scfm.datasets.tokenized("sccello-donor-2")
    publish(hub, "sccello-donor-2", {"README.md": b"# moved"})
    with pytest.raises(FileNotFoundError, match=r"has no files \*.parquet"):
        scfm.datasets.tokenized("sccello-donor-2")
    scfm.settings.offline = True
    with pytest.raises(FileNotFoundError, match="scfm is offline"):
        scfm.datasets.tokenized("sccello-donor-2")


def test_command(hub: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(hub, "sccello-donor-1", {"train.parquet": parquet(3, tmp_path / "made.parquet")})
    assert main(["fetch", "--dataset", "sccello-donor-1"]) == 0
    assert capsys.readouterr().out.strip().endswith("sccello-donor-1/train.parquet")

"""Models by name from a server with the layout of the hub and of a bucket: fetched, checked, converted, embedded."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import scfm
from scfm.cli import main
from scfm.model import _fetch, registry
from scfm.model.registry import card_of
from scfm.nn import BertConfig, ScCelloConfig
from scfm.testing import write_geneformer, write_sccello, write_transcriptformer
from scfm.weights import ModelCard
from scfm.weights.gene_vectors import write_gene_vectors

from ..weights.server import Fault, FileServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GENEFORMERS = [name for name in scfm.model.list_models().index if name.startswith("geneformer")]
V2 = "geneformer-v2-104m"


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A mirror of the hub and of the bucket, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("scfm.weights.download.BACKOFF_SECONDS", 0.0)
    with FileServer() as server:
        scfm.settings.offline = False
        scfm.settings.cache_dir = tmp_path / "cache"
        scfm.settings.hub_endpoint = scfm.settings.s3_endpoint = server.url("")
        yield server
        scfm.settings.reset()


def publish(server: FileServer, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **sizes: Any) -> ModelCard:
    """Put a random Geneformer on the server as the card says, and its hashes into the card."""
    card = card_of(name)
    weights = card.source_file.rpartition("/")[2]
    made = write_geneformer(folder, version=2 if "<cls>" in card.special_tokens else 1, weights=weights, **sizes)
    base = f"/{card.source}/resolve/{card.revision}"
    found = {}
    for path in [card.source_file, card.source_file.replace(weights, "config.json"), *card.dictionaries]:
        content = (made / re.sub("_gc[0-9]+M", "_gctiny", path.rpartition("/")[2])).read_bytes()
        server.files[f"{base}/{path}"] = content
        found[path] = sha(content)
    card = card.with_(
        source_sha256=found[card.source_file], dictionaries={path: found[path] for path in card.dictionaries}
    )
    card = card.with_(architecture=BertConfig.from_dict(json.loads((made / "config.json").read_text())).architecture())
    monkeypatch.setitem(registry.known_cards, card.id, card)
    return card


@pytest.mark.parametrize("name", GENEFORMERS)
def test_every_geneformer(name: str, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = publish(server, name, tmp_path / "made", monkeypatch)
    adata = scfm.datasets.synthetic(5, n_genes=50, genes_per_cell=20)
    adata.var_names = [f"ENSG{i:011d}" for i in range(1, 51)]
    scfm.tl.embed(adata, model=card.aliases[0], device="cpu")
    params = adata.uns["geneformer"]["params"]
    assert (params["model"], params["revision"]) == (name, card.revision)
    folder = scfm.settings.cache_dir / "models" / name
    assert sorted(path.name for path in folder.iterdir()) == [
        "aliases.tsv",
        "card.json",
        "model.safetensors",
        "vocabulary.tsv",
    ]
    assert ModelCard.read(folder).source_sha256 == card.source_sha256
    local = scfm.model.load(tmp_path / "made").embed(adata, pooling=card.pooling, hidden_layer=card.hidden_layer)
    np.testing.assert_array_equal(adata.obsm["X_geneformer"], local)
    # from now on it needs no network
    requests = len(server.seen)
    scfm.settings.offline = True
    np.testing.assert_array_equal(scfm.model.load(name).embed(adata, device="cpu"), local)
    assert len(server.seen) == requests


@pytest.mark.parametrize("name", [V2, "geneformer-12l-30m"])
def test_from_a_hub(name: str, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where safetensors are on the disk once, and outlive the cache of the hub."""
    card = publish(server, name, tmp_path / "made", monkeypatch)
    server.commit = str(card.revision)
    folder = scfm.model.fetch(name)
    snapshot = tmp_path / "hub" / f"models--{card.source.replace('/', '--')}" / "snapshots" / server.commit
    paths = {card.source_file, *card.dictionaries}
    assert paths <= {file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*")}
    weights = snapshot / card.source_file
    assert (folder / "model.safetensors").samefile(weights) == (weights.suffix == ".safetensors")
    assert not (folder / "model.safetensors").is_symlink()
    assert not list((scfm.settings.cache_dir / "downloads").rglob(weights.name))
    assert len(server.seen) == len(card.dictionaries) + 2
    shutil.rmtree(tmp_path / "hub")
    server.files.clear()
    assert scfm.model.load(name).card.source_sha256 == card.source_sha256


def test_a_model_of_the_published_size(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"n_genes": 25_424, "n_layers": 6, "hidden_size": 256, "n_heads": 4, "max_tokens": 2048}
    card = publish(server, "geneformer-v1-10m", tmp_path / "made", monkeypatch, **sizes)
    model = scfm.model.load("geneformer-v1-10m")
    assert (model.n_layers, model.n_features, model.card.architecture["vocab_size"]) == (6, 256, 25_426)
    assert model.card.source_sha256 == card.source_sha256
    assert not list((scfm.settings.cache_dir / "downloads").rglob("*.safetensors"))


@pytest.mark.parametrize("name", ["tf-sapiens", "tf-exemplar", "esm2ce-metazoa"])
def test_every_transcriptformer(name: str, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = card_of(name)
    published = card_of(name.replace("esm2ce", "tf"))
    monkeypatch.setitem(registry.known_cards, published.id, published.with_(architecture={"n_layers": 2}))
    folder = card.source_file.partition("/")[2].removesuffix(".tar.gz")
    made = write_transcriptformer(tmp_path / folder, seq_len=40)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(made, folder)
    server.files[f"/{card.source_file}"] = content = (tmp_path / "a.tar.gz").read_bytes()
    adata = scfm.datasets.synthetic(5, n_genes=50, genes_per_cell=20)
    adata.var_names = [f"ENSG{i:011d}" for i in range(1, 51)]
    scfm.tl.embed(adata, model=name, device="cpu")
    assert np.isfinite(adata.obsm[f"X_{card.family}"]).all()
    local = scfm.model.load(made, family=card.family).embed(adata, device="cpu")
    np.testing.assert_array_equal(adata.obsm[f"X_{card.family}"], local)
    kept = ModelCard.read(scfm.settings.cache_dir / "models" / name.replace("esm2ce", "tf"))
    assert kept.source_sha256 == sha(content)  # trusted on first use, and recorded
    assert kept.id == name.replace("esm2ce", "tf")
    scfm.model.fetch(name)
    assert len(server.seen) == 1


def test_gene_vectors(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "all_embeddings"
    made.mkdir()
    names = [f"{name}_gene.h5" for name in ("mus_musculus", "sus_scrofa")]
    for name in names:
        write_gene_vectors(made / name, ["gene1", "gene2"], np.ones((2, 3)))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(made, made.name)
    server.files["/weights/all_embeddings.tar.gz"] = (tmp_path / "a.tar.gz").read_bytes()
    folder = scfm.model.fetch_gene_vectors()
    assert sorted(path.name for path in folder.iterdir()) == names
    assert sorted(path.name for path in folder.parent.iterdir() if path.name[0] != ".") == [folder.name, "downloads"]
    assert not [path for path in (folder.parent / "downloads").rglob("*") if path.suffix == ".gz"]
    assert main(["fetch", "all-embeddings"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(folder)]
    assert len(server.seen) == 1
    scfm.settings.cache_dir, scfm.settings.offline = tmp_path / "empty", True
    with pytest.raises(FileNotFoundError, match=r"bring http\S+/weights/all_embeddings.tar.gz here and unpack it as"):
        scfm.model.fetch_gene_vectors()


def test_all_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scfm.model, "fetch", lambda model, revision=None: f"folder of {model}")
    assert main(["fetch", "all"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"folder of {model}" for model in scfm.model.list_models().index]


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_sccello(weights: str, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose weights have one of two names, and whose gene tables lie with Geneformer's."""
    card = card_of("sccello-zeroshot")
    made = write_sccello(tmp_path / "made", weights=weights)
    (made / "vocab_id2name.csv").unlink()
    for name in (weights, "config.json"):
        server.files[f"/{card.source}/resolve/main/{name}"] = (made / name).read_bytes()
    hashes = {}
    for path in card.dictionaries:
        repository, _, name = path.rpartition(":")
        content = (made / re.sub("_gc[0-9]+M", "_gctiny", name.rpartition("/")[2])).read_bytes()
        server.files[f"/{repository.replace('@', '/resolve/')}/{name}"] = content
        hashes[path] = sha(content)
    sizes = ScCelloConfig.from_dict(json.loads((made / "config.json").read_text())).architecture()
    specials = card.special_tokens | {"<cls>": sizes["vocab_size"] - 1}
    known = card.with_(dictionaries=hashes, architecture=sizes, special_tokens=specials)
    monkeypatch.setitem(registry.known_cards, card.id, known)
    adata = scfm.datasets.synthetic(5, n_genes=50, genes_per_cell=20)
    adata.var_names = [f"ENSG{i:011d}" for i in range(1, 51)]
    assert scfm.pp.match_genes(adata, "scCello").matched == 50
    scfm.tl.embed(adata, model="scCello", device="cpu")
    np.testing.assert_array_equal(adata.obsm["X_sccello"], scfm.model.load(made).embed(adata, device="cpu"))
    kept = ModelCard.read(scfm.settings.cache_dir / "models" / card.id)
    assert kept.source_sha256 == sha((made / weights).read_bytes())
    server.files[f"/{card.source}/resolve/v2/config.json"] = (made / "config.json").read_bytes()
    server.files[f"/{card.source}/resolve/v2/{weights}"] = (made / weights).read_bytes()
    assert scfm.model.load("scCello", revision="v2").card.id == "sccello-zeroshot@v2"


def test_genes_are_matched_without_weights(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = publish(server, V2, tmp_path / "made", monkeypatch)
    adata = scfm.datasets.synthetic(5, n_genes=50, genes_per_cell=20)
    adata.var_names = [f"ENSG{i:011d}" for i in range(1, 51)]
    assert scfm.pp.match_genes(adata, V2).matched == 50
    assert len(server.seen) == len(card.dictionaries)
    scfm.model.load(V2)
    assert len(server.seen) == len(card.dictionaries) + 2


def test_another_revision(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = publish(server, V2, tmp_path / "made", monkeypatch)
    known = scfm.model.load(V2)
    publish(server, V2, tmp_path / "other", monkeypatch, seed=1, n_layers=3)
    server.files.update({path.replace(str(known.card.revision), "main"): file for path, file in server.files.items()})
    other = scfm.model.load(V2, revision="main")
    assert other.card.revision == "main"
    assert other.card.id == f"{V2}@main"
    assert other.card.weights_sha256 != known.card.weights_sha256
    monkeypatch.setitem(registry.known_cards, V2, card)
    assert scfm.model.load(V2, revision=known.card.revision).card == known.card
    with pytest.raises(ValueError, match="tf-sapiens comes from https.*which has no revisions"):
        scfm.model.load("tf-sapiens", revision="main")
    with pytest.raises(ValueError, match="revision='main' is for a model given by its name"):
        scfm.model.load(tmp_path / "made", revision="main")


def test_a_revision_may_hold_slashes(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = publish(server, V2, tmp_path / "made", monkeypatch)
    for path, file in list(server.files.items()):
        server.files[path.replace(str(card.revision), "refs/pr/1")] = file
    made = scfm.model.load(V2, revision="refs/pr/1")
    assert (made.card.id, made.card.revision) == (f"{V2}@refs@pr@1", "refs/pr/1")
    assert list(scfm.model.list_cached().index) == scfm.model.verify_cached() == [made.card.id]
    seen = len(server.seen)
    assert scfm.model.load(V2, revision="refs/pr/1").card == made.card
    assert len(server.seen) == seen


BAD_REVISIONS = ("", ".", "..", "../../x", "a/../b", "/a", "a/", "a//b", "main?x=1", "a#b", "a b", "%2e%2e", "a@b", "a:b",
                 "a\\b", "a\nb", "a\r\nHost: b", "main\n", "\x1b[2J", "é", "a\0")  # fmt: skip


@pytest.mark.parametrize("revision", BAD_REVISIONS, ids=ascii)
def test_a_revision_leads_nowhere_else(revision: str, server: FileServer, tmp_path: Path) -> None:
    for call in (scfm.model.fetch, scfm.model.load):
        with pytest.raises(ValueError, match="revision='.*' cannot be part of a path or an address"):
            call(V2, revision=revision)
    assert not server.seen
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../x"},
        {"id": "a\x1b[2J"},
        {"id": ".."},
        {"id": ""},
        {"source": "../.."},
        {"source": "https://../x"},
        {"source_file": "a/../../x"},
        {"dictionaries": {"a/b@..:x": ""}},
        {"dictionaries": {"/etc/passwd": ""}},
    ],
    ids=str,
)
def test_nothing_of_a_card_leads_elsewhere(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be (part of a path|the name of a folder)"):
        card_of(V2).with_(**change)
    card_of(V2).write(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps(json.loads((tmp_path / "card.json").read_text()) | change))
    with pytest.raises(ValueError, match=r"card.json: .* cannot be .*Convert the model again"):
        ModelCard.read(tmp_path)


def test_wrong_weights(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = publish(server, V2, tmp_path / "made", monkeypatch)
    path = f"/{card.source}/resolve/{card.revision}/{card.source_file}"
    right = server.files[path]
    server.files[path] = right[:-1] + bytes([right[-1] ^ 1])
    with pytest.raises(ValueError, match=f"has sha256 .*expected {card.source_sha256}"):
        scfm.model.load(V2)
    assert not (scfm.settings.cache_dir / "models" / V2).exists()
    server.files[path] = right
    assert scfm.model.load(V2).card.id == V2


def test_an_interrupted_download(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, V2, tmp_path / "made", monkeypatch)
    server.script.extend([Fault(stop_after=1000), Fault(status=503), Fault(stop_after=1000)])
    assert scfm.model.load(V2).card.id == V2
    assert [asked for asked in server.ranges[:4] if asked] == ["bytes=1000-", "bytes=1000-", "bytes=2000-"]


def test_offline(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, V2, tmp_path / "made", monkeypatch)
    scfm.settings.offline = True
    with pytest.raises(FileNotFoundError, match=rf"{V2} is not on this machine .*SCFM_OFFLINE.*{server.url('')}"):
        scfm.model.load(V2)
    assert not server.seen
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("SCFM_OFFLINE", raising=False)
    scfm.settings.reset()
    assert scfm.settings.offline


def test_what_is_there_outlives_the_server(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, V2, tmp_path / "made", monkeypatch)
    folder = scfm.model.fetch(V2)
    server.files.clear()
    assert scfm.model.fetch(V2) == folder
    with pytest.raises(FileNotFoundError, match="is not there .*answered 404"):
        scfm.model.fetch(V2, revision="main")
    assert folder.is_dir()


def test_files_that_other_tools_have_fetched(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = publish(server, V2, tmp_path / "made", monkeypatch)
    asked = []

    def cached(repository: str, path: str, *, revision: str, repo_type: str) -> str | None:
        asked.append((repository, path, revision))
        assert repo_type == "model"
        file = tmp_path / "made" / path.rpartition("/")[2].replace("_gc104M", "_gctiny")
        return str(tmp_path / "made" / "config.json") if "mapping" in path else str(file)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    scfm.model.load(V2)
    assert (card.source, card.source_file, card.revision) in asked
    fetched = {seen.path.rpartition("/")[2] for seen in server.seen}
    assert fetched == {"config.json", "ensembl_mapping_dict_gc104M.pkl"}  # no hash is known, and the wrong one


def test_a_cache_that_cannot_be_written(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, V2, tmp_path / "made", monkeypatch)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="Set SCFM_CACHE_DIR to a folder that can be written"):
        scfm.model.load(V2)


def test_addresses() -> None:
    files = _fetch.remote_files(card_of(V2))
    path, weights = next(iter(files.items()))
    assert path == "Geneformer-V2-104M/model.safetensors"
    assert weights.url == f"https://huggingface.co/ctheodoris/Geneformer/resolve/{card_of(V2).revision}/{path}"
    assert weights.sha256 == card_of(V2).source_sha256
    assert len(files) == 6
    (tar,) = _fetch.remote_files(card_of("tf-sapiens")).values()
    assert tar.url == "https://czi-transcriptformer.s3.amazonaws.com/weights/tf_sapiens.tar.gz"
    with pytest.raises(ValueError, match="says neither where its weights are"):
        _fetch.remote_files(card_of(V2).with_(source=""))

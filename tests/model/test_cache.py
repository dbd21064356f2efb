"""What lies in the cache: whether it is what its name says, and what is removed of it."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

import scfm
from scfm.model import _cache, registry
from scfm.model.registry import card_of
from scfm.testing import write_geneformer
from scfm.weights import ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NAME = "geneformer-v2-104m"
SIZES: dict[str, Any] = {"n_genes": 6, "n_layers": 1, "hidden_size": 4, "max_tokens": 8}


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    scfm.settings.cache_dir = tmp_path / "cache"
    yield scfm.settings.cache_dir
    scfm.settings.reset()


@pytest.fixture
def put(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Convert a small model into the place of a registered one, whose card it has."""

    def put(weights: str = "model.safetensors", **changes: Any) -> Path:
        published = write_geneformer(tmp_path / "Published", **SIZES, weights=weights)
        made = ModelCard.read(scfm.model.convert(published, tmp_path / "made"))
        known = card_of(NAME).with_(
            architecture=made.architecture,
            special_tokens=made.special_tokens,
            source_file=f"a/{weights}",
            source_sha256=_cache.check_sha256(None, published / weights),
        )
        monkeypatch.setitem(registry.known_cards, NAME, known)
        place = scfm.model.convert(published, cache / "models" / NAME)
        assert ModelCard.read(place).id == NAME  # which is known by its hash
        card = json.loads((place / "card.json").read_text())
        assert set(changes) <= set(card)
        (place / "card.json").write_text(json.dumps(card | changes))
        return place

    return put


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_registered_model_that_was_put_there_is_loaded(weights: str, put: Callable[..., Path]) -> None:
    put(weights)
    assert scfm.model.load(NAME).n_features == scfm.model.load("GF-12L-104M-i4096").n_features == 4
    assert scfm.model.verify_cached() == [NAME]


PLANTED: dict[str, dict[str, Any]] = {
    "id": {"id": "another"},
    "family": {"family": "scfm_mini"},
    "revision": {"revision": "0" * 40},
    "source_sha256": {"source_sha256": "0" * 64},
    "source_sha256 ": {"source_sha256": None},
    "weights_sha256": {"weights_sha256": "0" * 64},
    "special_tokens": {"special_tokens": {"<pad>": 1, "<mask>": 0}},
    "architecture": {"architecture": {"n_layers": 2}},
}


@pytest.mark.parametrize("kind", PLANTED)
def test_another_model_in_its_place_is_refused(kind: str, put: Callable[..., Path]) -> None:
    place = put(**PLANTED[kind])
    match = rf"does not hold {NAME}: its card says {kind.strip()}.*prune_cache\('{NAME}'\) removes it"
    for call in (scfm.model.load, scfm.model.load_recipe, scfm.model.fetch):
        with pytest.raises(ValueError, match=match):
            call(NAME)
    with pytest.raises(ValueError, match=match):
        scfm.model.verify_cached()
    assert scfm.model.prune_cache(NAME) > 0
    assert not place.exists()


def test_another_revision_in_its_place_is_refused(put: Callable[..., Path]) -> None:
    place = put()
    other = place.rename(place.with_name(f"{NAME}@main"))
    with pytest.raises(ValueError, match="does not hold .*@main: its card says id='geneformer-v2-104m'"):
        scfm.model.load(NAME, revision="main")
    card = json.loads((other / "card.json").read_text())
    for revision in ("main", "other"):
        (other / "card.json").write_text(json.dumps(card | {"id": f"{NAME}@main", "revision": revision}))
        if revision == "main":
            assert scfm.model.load(NAME, revision="main").card.revision == "main"
        else:
            with pytest.raises(ValueError, match="its card says revision='other', expected 'main'"):
                scfm.model.load(NAME, revision="main")


def test_a_cache_that_everybody_can_write_is_told_once(cache: Path, put: Callable[..., Path]) -> None:
    put()
    (cache / "models").chmod(0o777)
    scfm.model.load("scfm-mini")  # which is not in the cache
    with pytest.warns(UserWarning, match=f"All users of this machine can change the models in {cache}"):
        scfm.model.load(NAME)
    scfm.model.load(NAME)


def file(path: Path, size: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def test_what_killed_processes_left_is_removed(cache: Path, put: Callable[..., Path]) -> None:
    place = put()
    left = [
        file(cache / "downloads" / "a--b" / "rev" / "model.safetensors.part"),
        file(cache / "downloads" / "a--b" / "rev" / "model.safetensors.part.json"),
        file(cache / "downloads" / "a--b" / "rev" / "model.safetensors.lock", 0),
        file(cache / "downloads" / "c" / "config.json"),
        file(cache / "models" / ".scfm-abcd" / NAME / "card.json"),
        file(cache / "models" / f".{NAME}-abcd" / "tf" / "weights.pt"),
    ]
    assert scfm.model.list_cached().index.tolist() == [NAME]
    assert scfm.model.prune_cache() == 500
    assert not any(path.exists() for path in left)
    assert not (cache / "downloads").exists()
    assert [path.name for path in (cache / "models").iterdir() if path.is_dir()] == [NAME]
    assert scfm.model.load(NAME).card.id == place.name
    assert scfm.model.prune_cache() == 0


def test_a_running_download_is_left_alone(cache: Path) -> None:
    folder = cache / "downloads" / "a" / "rev"
    running = [file(folder / f"model.bin{end}") for end in ("", ".part", ".part.json")]
    running += [file(folder / "model.bin.lock", 0)]
    other = file(folder / "config.json")
    with FileLock(folder / "model.bin.lock"):
        assert scfm.model.prune_cache() == 100
    assert all(path.exists() for path in running)
    assert not other.exists()
    assert scfm.model.prune_cache() == 300
    assert not folder.exists()


def test_a_running_conversion_is_left_alone(
    cache: Path, put: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    place = put()
    unfinished = [file(cache / "models" / ".scfm-abcd" / "x" / "a"), file(cache / "downloads" / "a" / "weights.bin")]
    with FileLock(cache / "models" / ".tf-sapiens.lock"), caplog.at_level(logging.WARNING, "scfm"):
        assert scfm.model.prune_cache(NAME) > 0
        assert not place.exists()
        assert all(path.exists() for path in unfinished)
        assert "tf-sapiens is being fetched or converted" in caplog.text
    assert scfm.model.prune_cache() == 200


def test_a_model_that_is_being_made_is_not_removed(cache: Path, put: Callable[..., Path]) -> None:
    place = put()
    with (
        FileLock(cache / "models" / f".{NAME}.lock"),
        pytest.raises(BlockingIOError, match=f"{NAME} is being fetched or converted by another process"),
    ):
        scfm.model.prune_cache(NAME)
    assert place.exists()


def test_convert_into_the_cache_holds_the_lock(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = write_geneformer(tmp_path / "published", **SIZES)
    seen = []
    monkeypatch.setattr("scfm.model._convert.convert_known", lambda *_: seen.append(scfm.model.prune_cache()))
    unfinished = file(cache / "models" / ".scfm-abcd" / "x" / "a")
    scfm.model.convert(published, cache / "models" / "mine")
    assert seen == [0]
    assert unfinished.exists()

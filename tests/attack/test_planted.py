"""What others put into a cache or install beside scfm is refused or left out by its name, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import scfm
from scfm.model.registry import card_of
from scfm.testing import write_geneformer

from .operations import N_OBS, THOROUGH, store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import Tally

pytestmark = [pytest.mark.attack, pytest.mark.filterwarnings("ignore")]
NAME = "geneformer-v2-104m"
ODD: tuple[Any, ...] = (None, "", "../x", -1, 10**9, [], {}, "0" * 64)


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[Path]:
    """A folder in the cache under a registered name that says it is that model, and is a tiny one."""
    published = write_geneformer(tmp_path / "other", n_genes=40, n_layers=1, hidden_size=8, max_tokens=16)
    scfm.settings.cache_dir = tmp_path / "cache"
    place = tmp_path / "cache" / "models" / NAME
    place.parent.mkdir(parents=True)
    scfm.model.convert(published, place)
    known = card_of(NAME)
    facts = {name: getattr(known, name) for name in ("id", "family", "revision", "source_sha256")}
    said(place, **facts, architecture=known.architecture, special_tokens=known.special_tokens)
    yield place
    scfm.settings.reset()


def said(folder: Path, **values: Any) -> None:
    file = folder / "card.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")


def other_vocabulary(folder: Path) -> None:
    file = folder / "vocabulary.tsv"
    file.write_text(file.read_text().replace("ENSG00000000001\t", "ENSG00000000099\t"))


CHANGES: dict[str, Callable[[Path], object]] = {
    "sizes of another model": lambda folder: None,
    "other weights": other_weights,
    "other vocabulary": other_vocabulary,
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no vocabulary": lambda folder: (folder / "vocabulary.tsv").unlink(),
    "a folder in place of weights": lambda folder: ((folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir()),
    **{
        f"{key}={value!r}": partial(said, **{key: value})
        for key in ("id", "family", "revision", "source_sha256", "architecture", "special_tokens", "weights_sha256")
        for value in ODD
    },
}  # fmt: skip


def test_caches(planted: Path, tally: Tally) -> None:
    loaded = []
    before = shutil.copytree(planted, planted.with_name("before"))
    for name, change in CHANGES.items():
        shutil.rmtree(planted)
        shutil.copytree(before, planted)
        change(planted)
        try:
            scfm.model.load(NAME)
        except (ValueError, OSError, TypeError):
            tally("planted models", refused=True)
        else:
            loaded.append(name)
    assert not loaded


LINKED = ("s.zarr/obsm/X_scfm_mini/.shards/00000000.lock", "s.zarr/obsm/X_scfm_mini/.shards/00000000.json")
STRAY = ("00000000.json", "00000009.json", "x.json", "00000001.sync-conflict.json", ".scfm-x")
CONTENTS = ("", "{", "[]", "{}", '{"start": 0, "stop": 10}', '{"start": 0, "stop": 1e99}', "9" * 9999)


def test_stores(tmp_path: Path, tally: Tally) -> None:
    """Markers of work that was not done are not believed, and links do not lead to what they would change."""
    scfm.datasets.pbmc68k()[:N_OBS].copy().write_h5ad(tmp_path / "a.h5ad")
    store("a.h5ad", tmp_path)
    expected = scfm.model.load("scfm-mini").embed(scfm.datasets.pbmc68k()[:N_OBS].copy(), device="cpu")
    victim = tmp_path / "victim"
    stray = list(product(STRAY, CONTENTS))
    for where in (*LINKED, *stray[:: 1 if THOROUGH else 9]):
        shutil.rmtree(tmp_path / "s.zarr")
        store("a.h5ad", tmp_path, shard="1/2")
        place = tmp_path / "s.zarr/obsm/X_scfm_mini/.shards"
        victim.write_text("mine")
        if isinstance(where, str):
            (tmp_path / where).unlink(missing_ok=True)
            (tmp_path / where).symlink_to(victim)
        else:
            (place / where[0]).write_text(where[1])
        try:
            store("a.h5ad", tmp_path)
        except OSError:
            assert where == LINKED[0]
        else:
            found = scfm.run.store.EmbeddingStore.open(tmp_path / "s.zarr")
            np.testing.assert_allclose(found.read(0, N_OBS), expected, atol=5e-6)
        assert victim.read_text() == "mine"
        tally("planted markers and links", harmed=False)


PLUGINS = {
    "raises": "raise ImportError('libfoo.so.1: no such file')",
    "no syntax": "def",
    "exits": "raise SystemExit(3)",
    "recursion": "def f(): f()\nf()",
    "interrupts": "raise KeyboardInterrupt",
    "nothing": "",
    "hangs on names": "import time\ndef __getattr__(name):\n    if name == 'weights':\n        time.sleep(600)\n    raise AttributeError(name)",
    "hangs on cards": "class bad:\n    @property\n    def cards(self):\n        while True: pass",
}  # fmt: skip


@pytest.mark.parametrize("kind", list(PLUGINS)[:: 1 if THOROUGH else 4])
def test_plugins(kind: str, tmp_path: Path, tally: Tally) -> None:
    info = tmp_path / "badplug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: badplug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[scfm.models]\nbad = badplug\n")
    (tmp_path / "badplug.py").write_text(PLUGINS[kind] + "\n")
    path = os.pathsep.join((str(tmp_path), str(Path(scfm.__file__).parents[1])))
    done = subprocess.run(
        [sys.executable, "-c", "import scfm; print(scfm.model.load('scfm-mini').card.id)"],
        env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.strip() == "scfm-mini", done.stderr[-500:]
    assert kind in ("nothing",) or kind.startswith("hangs") or "badplug" in done.stderr
    tally("plugins", disabled=False)

"""What others put into a cache or a store, or install beside scfm, is refused or left out by its name, and nothing else is."""

from __future__ import annotations

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

import scfm
from scfm.model.registry import card_of
from scfm.run.store import ShardStore
from scfm.testing import write_geneformer

from .lies import said
from .operations import N_OBS, THOROUGH, cells, model, store

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Tally

pytestmark = [pytest.mark.attack, pytest.mark.filterwarnings("ignore")]
NAME, FILES = "geneformer-v2-104m", ("model.safetensors", "vocabulary.tsv")


FACTS = ("id", "family", "revision", "source_sha256", "architecture", "special_tokens", "weights_sha256")
WRONG: tuple[Any, ...] = (None, "", "../x", -1, 10**9, [], {}, "0" * 64)


def other(name: str, folder: Path) -> None:
    """The end of a file of another model."""
    (folder / name).write_bytes((folder / name).read_bytes()[:-4] + b"\x01\x02\x03\x04")


CHANGES: list[Callable[[Path], object]] = [
    lambda folder: None,  # sizes of another model
    *(partial(other, name) for name in FILES),
    *(lambda folder, name=name: (folder / name).unlink() for name in FILES),  # type: ignore[misc]
    *(partial(said, "card.json", (fact,), value) for fact, value in product(FACTS, WRONG)),
]


def test_caches(tmp_path: Path, tally: Tally) -> None:
    """A folder in the cache under a registered name says that it is that model, and is a tiny one."""
    scfm.settings.cache_dir = tmp_path / "cache"
    place = tmp_path / "cache" / "models" / NAME
    place.parent.mkdir(parents=True)
    scfm.model.convert(
        write_geneformer(tmp_path / "other", n_genes=40, n_layers=1, hidden_size=8, max_tokens=16), place
    )
    for fact in FACTS[:-1]:
        said("card.json", (fact,), getattr(card_of(NAME), fact), place)
    before = shutil.copytree(place, tmp_path / "before")
    for change in CHANGES:
        shutil.rmtree(place)
        shutil.copytree(before, place)
        change(place)
        with pytest.raises((ValueError, OSError, TypeError)):
            scfm.model.load(NAME)
        tally("planted models", refused=True)


MARKERS = "s.zarr/obsm/X_scfm_mini/.shards"
LINKS = [("00000000.lock", None), ("00000000.json", None)]
STRAY = ("00000000.json", "00000009.json", "x.json", "00000001.sync-conflict.json", ".scfm-x")
CONTENTS = ("", "{", "[]", "{}", '{"start": 0, "stop": 10}', '{"start": 0, "stop": 1e99}', "9" * 9999)


def test_stores(tmp_path: Path, tally: Tally) -> None:
    """Markers of work that was not done are not believed, and links do not lead to what they would change."""
    cells("a.h5ad", tmp_path)
    expected = model().embed(scfm.datasets.pbmc68k()[:N_OBS].copy(), device="cpu")
    stray, victim = list(product(STRAY, CONTENTS)), tmp_path / "victim"
    for name, content in [*LINKS, *stray[:: 1 if THOROUGH else 9]]:
        shutil.rmtree(tmp_path / "s.zarr", ignore_errors=True)
        store("a.h5ad", tmp_path, shard="1/2")
        marker = tmp_path / MARKERS / name
        victim.write_text("mine")
        if content is None:
            marker.unlink(missing_ok=True)
            marker.symlink_to(victim)
        else:
            marker.write_text(content)
        try:
            store("a.h5ad", tmp_path)
        except OSError:
            assert marker.suffix == ".lock"
        else:
            found = ShardStore.open(tmp_path / "s.zarr")
            values = np.concatenate([found.read(shard)["obsm/X_scfm_mini"] for shard in found.shards])
            np.testing.assert_allclose(values, expected, atol=5e-6)
        assert victim.read_text() == "mine"
        tally("planted markers and links", harmed=False)


PLUGINS = {
    "raises": "raise ImportError('libfoo.so.1: no such file')",
    "no syntax": "def",
    "exits": "raise SystemExit(3)",
    "recursion": "def f(): f()\nf()",
    "interrupts": "raise KeyboardInterrupt",
    "nothing": "",
}


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
        check=False,
    )
    assert done.stdout.strip() == "scfm-mini", done.stderr[-500:]
    assert done.stderr.count("are left out") == (kind != "nothing"), done.stderr[-500:]
    tally("plugins", named="badplug" in done.stderr)

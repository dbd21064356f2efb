"""Models can be copied, and sent to other processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

import scfm
from scfm.model.recipe import NO_WEIGHTS
from scfm.testing import write_geneformer
from tests.rounding import close

from ..families import IDS, TINY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import anndata as ad

    from scfm.model import FoundationModel

COPIES: dict[str, Callable[[FoundationModel], FoundationModel]] = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}
MAX_BYTES = 2_000_000
"""Of a model that is sent: less than its weights."""


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return scfm.datasets.synthetic(4, 60, genes_per_cell=10, genes=IDS)


@pytest.mark.parametrize("name", TINY)
def test_copies_give_the_same(name: str, cells: ad.AnnData, tmp_path: Path) -> None:
    model = TINY[name].load(tmp_path)
    data = scfm.datasets.pbmc68k()[:4] if name == "scfm-mini" else cells
    unused = pickle.dumps(model)
    expected = model.embed(data, **TINY[name].options)
    for make in COPIES.values():
        other = make(model)
        assert other is not model
        np.testing.assert_array_equal(other.embed(data, **TINY[name].options), expected)
    assert len(pickle.dumps(model)) == len(unused)  # neither networks nor weights


def test_weights_are_sent_as_their_file(tmp_path: Path) -> None:
    model = scfm.model.load("scfm-mini")
    assert len(pickle.dumps(model)) < MAX_BYTES < (scfm.model.fetch("scfm-mini") / "model.safetensors").stat().st_size
    folder = write_geneformer(tmp_path / "published", n_layers=1)
    sent = pickle.dumps(scfm.model.load(folder))
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"model\.safetensors has sha256 .*, expected"):
        pickle.loads(sent)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match=r"its weights in .*published/model\.safetensors, which is not there"):
        pickle.loads(sent)


def test_a_model_without_weights_still_has_none() -> None:
    recipe = scfm.model.load_recipe("scfm-mini")
    for make in COPIES.values():
        assert make(recipe).tensors is NO_WEIGHTS


def test_weights_in_memory_are_sent_themselves(cells: ad.AnnData, tmp_path: Path) -> None:
    model = TINY["Geneformer V2"].load(tmp_path / "published")
    loose = type(model)(model.card, model.vocabulary, dict(model.tensors))
    expected = model.embed(cells)
    sent = pickle.dumps(loose)
    shutil.rmtree(tmp_path / "published")
    np.testing.assert_array_equal(pickle.loads(sent).embed(cells), expected)


def test_another_process_gets_it() -> None:
    model, cells = scfm.model.load("scfm-mini"), scfm.datasets.pbmc68k()[:4].copy()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        close(pool.apply(model.embed, (cells,)), model.embed(cells))

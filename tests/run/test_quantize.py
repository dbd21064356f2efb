"""Quantised weights: which layers, how close, and what is said where it cannot be."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import scfm
from scfm.nn.linear import is_plain
from scfm.run import quantize
from scfm.run.quantize import check_quantization, quantize_network

from ..families import IDS, TINY

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    from scfm.model import FoundationModel

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES = [name for name, tiny in TINY.items() if "linear layers" in tiny.offers]
SCHEMES: tuple[Any, ...] = ("int8", "int8_dynamic")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FoundationModel]:
    folder = tmp_path_factory.mktemp("models")
    return {name: TINY[name].load(folder / name) for name in TINY}


def cells(model: FoundationModel) -> AnnData:
    if model.family == "scfm_mini":
        return scfm.datasets.pbmc68k()[:24].copy()
    return scfm.datasets.synthetic(24, len(IDS), genes_per_cell=8, genes=IDS)


def cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    return (one * other).sum(1) / np.sqrt((one**2).sum(1) * (other**2).sum(1))


def rank_agreement(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Whether the similarities of all pairs of cells have the same order."""
    pairs = np.triu_indices(len(one), 1)
    return float(spearmanr(np.corrcoef(one)[pairs], np.corrcoef(other)[pairs]).statistic)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_are_close(name: str, scheme: str, dtype: str, models: dict[str, FoundationModel]) -> None:
    model = models[name]
    adata, how = cells(model), {"device": "cpu", "dtype": dtype}
    plain = model.embed(adata, **how)
    found = model.embed(adata, quantize=scheme, **how)
    assert not np.array_equal(found, plain)
    assert cosines(found, plain).min() > (0.99 if scheme == "int8" else 0.97)
    np.testing.assert_array_equal(model.embed(adata, **how), plain)  # the network is built anew


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", FAMILIES)
def test_linear_layers_of_the_layers_alone(name: str, scheme: Any, models: dict[str, FoundationModel]) -> None:
    model = models[name]
    (network,) = model.networks(model.n_layers, [torch.device("cpu")], torch.float32, scheme)
    linears = {n: module for n, module in network.named_modules() if isinstance(module, nn.Linear)}
    assert {n for n, module in linears.items() if not is_plain(module)} == {
        n for n in linears if n.startswith("layers.")
    }
    plain = dict(model.network(model.n_layers).named_parameters())
    for key, parameter in network.named_parameters():
        if not (key.startswith("layers.") and key.endswith("weight")):
            assert torch.equal(parameter, plain[key]), key


def test_similarities_of_cells_keep_their_order() -> None:
    model, adata = scfm.model.load("scfm-mini"), scfm.datasets.pbmc68k()[:200].copy()
    plain = model.embed(adata, device="cpu", dtype="float32")
    for scheme in SCHEMES:
        found = model.embed(adata, device="cpu", dtype="float32", quantize=scheme)
        assert rank_agreement(plain, found) > 0.99


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_cell_does_not_depend_on_others(scheme: Any, models: dict[str, FoundationModel]) -> None:
    model = models["Geneformer V2"]
    adata = cells(model)
    together = model.embed(adata, device="cpu", quantize=scheme)
    alone = np.concatenate([model.embed(adata[i : i + 1].copy(), device="cpu", quantize=scheme) for i in range(8)])
    plain = model.embed(adata, device="cpu")[:8]
    assert np.abs(together[:8] - alone).max() < np.abs(together[:8] - plain).max() / 2


def test_params_and_stores_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adata = scfm.datasets.pbmc68k()[:20].copy()
    with caplog.at_level("INFO", "scfm"):
        scfm.tl.embed(adata, "scfm-mini", device="cpu", quantize="int8")
    assert adata.uns["scfm_mini"]["params"]["quantize"] == "int8"
    assert "on cpu in float32 with int8 weights" in caplog.text
    adata.write_h5ad(tmp_path / "cells.h5ad")
    out = scfm.tl.embed_store(
        tmp_path / "cells.h5ad", "scfm-mini", tmp_path / "out.zarr", device="cpu", quantize="int8"
    )
    np.testing.assert_array_equal(ad.read_zarr(out).obsm["X_scfm_mini"], adata.obsm["X_scfm_mini"])
    with pytest.raises(FileExistsError, match="quantize"):
        scfm.tl.embed_store(tmp_path / "cells.h5ad", "scfm-mini", out, device="cpu")
    scfm.tl.embed(adata, "scfm-mini", device="cpu")
    assert adata.uns["scfm_mini"]["params"]["quantize"] is None
    adata.write_h5ad(tmp_path / "cells.h5ad")


def test_with_compat_the_same_tokens_are_read(models: dict[str, FoundationModel]) -> None:
    model = models["Geneformer V2"]
    how: dict[str, Any] = {"device": "cpu", "compat": "upstream"}
    adata = cells(model)
    assert cosines(model.embed(adata, quantize="int8", **how), model.embed(adata, **how)).min() > 0.999


def test_what_cannot_be_quantised(models: dict[str, FoundationModel], monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = [torch.device("cpu")]
    odd: Any = "int4"
    with pytest.raises(
        ValueError, match="quantize='int4' is not known; use one of 'int8', 'int8_dynamic', 'nf4', or None"
    ):
        check_quantization(odd, cpu)
    with pytest.raises(ValueError, match="quantize='nf4' is for devices of the kind cuda, not cpu"):
        check_quantization("nf4", cpu)
    with pytest.raises(TypeError, match="has no layers whose weights could be quantised"):
        quantize_network(nn.Linear(8, 8), "int8")
    with pytest.raises(TypeError, match="has no layers whose weights could be quantised"):
        models["ESM2-CE"].embed(cells(models["ESM2-CE"]), device="cpu", quantize="int8")
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs the package torchao: pip install .scfm-tools\[quantize\]"):
        scfm.model.load("scfm-mini").embed(scfm.datasets.pbmc68k()[:2], device="cpu", quantize="int8")
    with pytest.raises(ImportError, match="needs the package bitsandbytes: pip install bitsandbytes"):
        check_quantization("nf4", [torch.device("cuda")])


def test_torchao_is_imported_without_noise() -> None:
    code = (
        "import scfm; adata = scfm.datasets.pbmc68k()[:2]; model = scfm.model.load('scfm-mini');"
        "scfm.settings.progress = False; model.embed(adata, device='cpu', quantize='int8')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scheme", [*SCHEMES, "nf4"])
def test_on_cuda(scheme: Any) -> None:
    if scheme == "nf4":
        pytest.importorskip("bitsandbytes")
    model, adata = scfm.model.load("scfm-mini"), scfm.datasets.pbmc68k()[:64].copy()
    plain = model.embed(adata, device="cpu")
    for dtype in ("float32", "bfloat16", "float16"):
        found = model.embed(adata, device="cuda", dtype=dtype, quantize=scheme)
        assert rank_agreement(found, plain) > (0.95 if scheme == "nf4" else 0.99)
    (network,) = model.networks(model.n_layers, [torch.device("cuda")], torch.bfloat16, scheme)
    assert not is_plain(network.get_submodule("layers.0.qkv"))

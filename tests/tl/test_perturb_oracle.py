"""Every family and every kind equals a slow and obvious version, whatever the sizes, devices and stores."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import scfm
from scfm.testing import perturb_effects

from ..families import IDS, TINY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scfm.model import FoundationModel

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*zarr v[23]:UserWarning",  # of anndata about the format it writes by default
    "ignore:Consolidated metadata:UserWarning",
    r"ignore:\d+ of \d+ perturbations change none:UserWarning",  # of pairs that no cell expresses
)
NAMES = [name for name, tiny in TINY.items() if "perturbed genes" in tiny.offers]
KINDS = ("delete", "overexpress", "inhibit", "activate")
N_OBS, N_GENES, CLIP = 6, 14, 4
STATES = {"states_key": "state", "start": "a", "goal": "b"}
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FoundationModel]:
    folder = tmp_path_factory.mktemp("models")
    return {name: TINY[name].load(folder / name) for name in NAMES}


@pytest.fixture(autouse=True)
def default_settings() -> Iterator[None]:
    yield
    scfm.settings.reset()


@pytest.fixture(scope="module")
def wanted(models: dict[str, FoundationModel]) -> Any:
    """Effects on each cell of each gene, as an array; NaN where there is none."""

    @cache
    def effects(name: str, kind: Any) -> np.ndarray:
        model = models[name]
        adata = cells(model)
        return dense(perturb_effects(model, adata, kind, highest=CLIP, **options(name)), tokens_of(model, adata))

    return effects


def cells(model: FoundationModel) -> ad.AnnData:
    """Cells from a few genes to all, with counts beyond the largest."""
    rng = np.random.default_rng(3)
    counts = (rng.random((N_OBS, N_GENES)) < np.linspace(0.3, 1, N_OBS)[:, None]) * (
        1 + rng.poisson(2, (N_OBS, N_GENES))
    )
    counts[:, 0] = 1
    obs = pd.DataFrame({"state": list("ab") * (N_OBS // 2)}, index=[f"cell{i}" for i in range(N_OBS)])
    genes = model.vocabulary.genes[:N_GENES] if model.family == "scfm_mini" else IDS[:N_GENES]
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs, pd.DataFrame(index=genes))


def options(name: str) -> dict[str, Any]:
    return {"clip_counts": CLIP} if name == "TranscriptFormer" else {}


def tokens_of(model: FoundationModel, adata: ad.AnnData) -> list[int]:
    return [model.vocabulary.token_of[gene] for gene in adata.var_names]


def dense(effects: dict[tuple[int, int], np.ndarray], tokens: list[int], column: int = 0) -> np.ndarray:
    found = np.full((N_OBS, len(tokens)), np.nan)
    for (row, token), values in effects.items():
        found[row, tokens.index(token)] = values[column]
    return found


def stored(matrix: Any) -> np.ndarray:
    """A sparse matrix, NaN where nothing is stored."""
    entries, found = matrix.tocoo(), np.full(matrix.shape, np.nan)
    found[entries.row, entries.col] = entries.data
    return found


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert np.isfinite(expected).sum() > 20
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_each_gene(name: str, kind: Any, models: dict[str, FoundationModel], wanted: Any) -> None:
    adata = cells(models[name])
    scfm.tl.perturb(adata, models[name], kind=kind, device="cpu", **options(name))
    close(stored(adata.layers["perturb"]), wanted(name, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_genes_together_between_states(name: str, kind: Any, models: dict[str, FoundationModel]) -> None:
    """Two genes, of which cells may lack one or both."""
    model, adata = models[name], cells(models[name])
    pairs = {f"{i}": adata.var_names[[i, i + 3]].tolist() for i in range(10)}
    scfm.tl.perturb(adata, model, genes=pairs, kind=kind, device="cpu", **STATES, **options(name))
    tokens = tokens_of(model, adata)
    groups = [[tokens[i], tokens[i + 3]] for i in range(10)]
    targets = adata.uns["perturb"]["states"].to_numpy()
    effects = perturb_effects(model, adata, kind, groups, targets, highest=CLIP, **options(name))
    effects = {(row, tag): values for (row, tag), values in effects.items() if adata.obs["state"].iloc[row] == "a"}
    assert len(effects) > 10
    for column, state in enumerate(("start", "goal")):
        table = adata.obsm[f"perturb_{state}"].to_numpy()
        np.testing.assert_allclose(table, dense(effects, list(range(10)), column), rtol=1e-4, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods(kind: Any, models: dict[str, FoundationModel]) -> None:
    model, adata = models["TranscriptFormer"], cells(models["TranscriptFormer"])
    scfm.tl.perturb(adata, model, kind=kind, effect="likelihood", device="cpu", clip_counts=CLIP)
    effects = perturb_effects(model, adata, kind, effect="likelihood", highest=CLIP, clip_counts=CLIP)
    close(stored(adata.layers["perturb_llh"]), dense(effects, tokens_of(model, adata)), 2e-4)
    assert list(adata.layers) == ["perturb_llh"]
    assert adata.uns["perturb"]["params"]["effect"] == "likelihood"
    table = scfm.get.perturb_df(adata, table="raw")
    assert len(table) == adata.layers["perturb_llh"].nnz


@given(
    name=st.sampled_from(NAMES),
    kind=st.sampled_from(KINDS),
    order=st.permutations(range(N_OBS)),
    store=st.sampled_from(["memory", "backed", "h5ad", "zarr"]),
    device=st.sampled_from(["cpu", ["cpu", "cpu"]]),
    sizes=st.fixed_dictionaries(
        {
            "block_rows": st.integers(1, N_OBS + 1),
            "block_values": st.integers(1, N_OBS * N_GENES),
            "batch_tokens": st.integers(1, 4 * N_GENES),
            "threads": st.integers(1, 3),
        }
    ),
)
def test_order_sizes_devices_and_stores_do_not_matter(
    name: str,
    kind: Any,
    order: list[int],
    store: str,
    device: Any,
    sizes: dict[str, int],
    models: dict[str, FoundationModel],
    wanted: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    for setting, value in sizes.items():
        setattr(scfm.settings, setting, value)
    adata = cells(models[name])[order].copy()
    path: Path = tmp_path_factory.mktemp("store") / f"cells.{'zarr' if store == 'zarr' else 'h5ad'}"
    arguments = {"kind": kind, "device": device, **options(name)}
    if store == "memory":
        scfm.tl.perturb(adata, models[name], **arguments)
    else:
        getattr(adata, "write_zarr" if store == "zarr" else "write_h5ad")(path)
        if store == "backed":
            adata = ad.read_h5ad(path, backed="r")
            scfm.tl.perturb(adata, models[name], **arguments)
        else:
            out = scfm.tl.perturb(path, models[name], out=path.with_stem("out"), **arguments)
            adata = ad.read_zarr(out) if store == "zarr" else ad.read_h5ad(out)
    close(stored(adata.layers["perturb"]), wanted(name, kind)[order])

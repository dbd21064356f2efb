"""Screens of files into stores: the effects of the verb in memory, interrupted, shared, refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scfm

if TYPE_CHECKING:
    from pathlib import Path

N_CELLS, ROWS = 24, 5
STATES = {"states_key": "bulk_labels", "start": "CD19+ B", "goal": "CD56+ NK", "alternatives": ["CD34+"]}
CALL = (
    "import scfm, sys, torch; torch.set_num_threads(1); scfm.settings.threads = 1; "
    "scfm.tl.perturb_store(sys.argv[1], 'scfm-mini', sys.argv[2], shard_rows={rows}, device='cpu', **{extra})"
)
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding", "ignore:Consolidated metadata", "ignore:Writing zarr v2"),
]


@pytest.fixture(scope="module")
def model() -> Any:
    return scfm.model.load("scfm-mini")


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Some cells with some of their genes; those of the start state are neither the first nor the last ones."""
    whole = scfm.datasets.pbmc68k()
    labels = whole.obs["bulk_labels"].astype(str)
    rows = [np.flatnonzero(labels == name)[: N_CELLS // 3] for name in ("CD56+ NK", "CD19+ B", "CD34+")]
    columns = whole.var_names.isin(["CD74", "CD79A", "CD79B"]) | (np.arange(whole.n_vars) % 25 == 0)
    picked = whole[np.concatenate(rows)].copy()[:, columns]
    return ad.AnnData(picked.X, picked.obs, picked.var)


@pytest.fixture
def source(cells: ad.AnnData, tmp_path: Path) -> Path:
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def perturb(source: Any, model: Any, out: Path, **arguments: Any) -> Path:
    return scfm.tl.perturb_store(source, model, out, **{"shard_rows": ROWS, "device": "cpu"} | arguments)


def read(path: Path) -> ad.AnnData:
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


def check_equal(found: ad.AnnData, expected: ad.AnnData, key: str = "perturb") -> None:
    """The same fields with the same values, but for rounding."""
    assert {slot: sorted(getattr(found, slot)) for slot in ("layers", "obsm", "varm", "varp", "obs")} == {
        slot: sorted(getattr(expected, slot)) for slot in ("layers", "obsm", "varm", "varp", "obs")
    }
    for name, layer in expected.layers.items():
        assert found.layers[name].dtype == layer.dtype == np.float32
        np.testing.assert_array_equal(found.layers[name].indptr, layer.indptr)
        np.testing.assert_array_equal(found.layers[name].indices, layer.indices)
        np.testing.assert_allclose(found.layers[name].data, layer.data, atol=2e-6)
    for slot in ("obsm", "varm"):
        for name, table in getattr(expected, slot).items():
            pd.testing.assert_frame_equal(getattr(found, slot)[name], table, atol=2e-6, rtol=0, check_names=False)
    for name, matrix in expected.varp.items():
        assert found.varp[name].dtype == matrix.dtype
        np.testing.assert_allclose(found.varp[name].toarray(), matrix.toarray(), atol=2e-6)
    np.testing.assert_array_equal(found.obs[f"{key}_n"], expected.obs[f"{key}_n"])
    assert found.obs[f"{key}_n"].dtype == expected.obs[f"{key}_n"].dtype
    stored, wanted = found.uns[key], expected.uns[key]
    assert stored.keys() == wanted.keys()
    assert stored["params"].keys() == wanted["params"].keys()
    for name in ("n_cells", "n_cells_perturbed", "kind", "n_cells_empty", "function", "groups", "anchor"):
        assert stored["params"][name] == wanted["params"][name]
    if "states" in wanted:
        pd.testing.assert_frame_equal(stored["states"], wanted["states"], check_names=False)


CASES: dict[str, dict[str, Any]] = {
    "all genes": {},
    "states": STATES,
    "some cells": STATES | {"n_cells": 3, "seed": 1},
    "groups": {"genes": {"pair": ["CD74", "CD79A"], "CD74": ["CD74"], "absent": ["PAX5"]}, "kind": "overexpress"},
    "an anchor": {"genes": ["CD74", "CD79B"], "anchor": "CD79A", "gene_effects": True} | STATES,
    "effects on genes": {"gene_effects": True},
}


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("case", CASES)
def test_merged_it_is_what_the_verb_in_memory_gives(
    case: str, kind: str, cells: ad.AnnData, model: Any, tmp_path: Path
) -> None:
    source = tmp_path / f"cells.{kind}"
    getattr(cells, f"write_{kind}")(source)
    expected = read(source)
    scfm.tl.perturb(expected, model, device="cpu", **CASES[case])
    out = perturb(source, model, tmp_path / "screen.zarr", **CASES[case])
    assert scfm.tl.merge_store(out, source) == source
    check_equal(read(source), expected)

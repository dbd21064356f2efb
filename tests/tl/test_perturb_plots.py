from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import scfm

from ..pictures import looks_as_before

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    import matplotlib.pyplot as plt

    mpl.use("Agg")
    yield
    plt.close("all")


@pytest.fixture
def adata() -> AnnData:
    """Cells with statistics that are made up."""
    adata = scfm.datasets.pbmc68k()
    rng = np.random.default_rng(0)
    n = 40
    table = pd.DataFrame(
        {
            "group": pd.Categorical(["all"] * n),
            "names": adata.var_names[:n].astype(str),
            "effect": rng.normal(0, 0.1, n),
            "sd": 0.05,
            "pvals_adj": rng.random(n) ** 6,
        }
    )
    table["pvals"] = table["pvals_adj"] / 2
    adata.uns["perturb"] = {"stats": table.sort_values("pvals")}
    return adata


IMAGES = Path(__file__).parent / "images"


@pytest.mark.parametrize("kind", ["volcano", "bar"])
def test_pictures_of_genes(adata: AnnData, kind: Any, tmp_path: Path) -> None:
    with mpl.rc_context(mpl.rcParamsDefault | {"figure.constrained_layout.use": True, "backend": "Agg"}):
        looks_as_before(
            scfm.pl.perturb(adata, kind=kind, n_genes=6, show=False), IMAGES / f"perturb_{kind}.png", tmp_path
        )


def test_picture_of_cells(adata: AnnData, tmp_path: Path) -> None:
    """Embeddings that are the places themselves, so that a cell is drawn where it has been moved to."""
    places = adata.obsm["X_umap"][:60].astype(np.float32)
    moved = places[:20] * 0.5 + places.mean(axis=0) * 0.5
    names = ["control"] * 60 + ["GENE"] * 20
    cells = [*range(60), *range(20)]
    adata.uns["perturb"]["embeddings"] = {
        "X": np.vstack([places, moved]),
        "cells": cells,
        "obs_names": adata.obs_names[cells].to_numpy(),
        "perturbation": names,
    }
    with mpl.rc_context(mpl.rcParamsDefault | {"backend": "Agg"}):
        ax = scfm.pl.perturb_cells(adata, "GENE", n_neighbors=3, color="bulk_labels", legend_loc=None, show=False)
        looks_as_before(ax, IMAGES / "perturb_cells.png", tmp_path)


def test_a_volcano_names_the_smallest_p_values_without_overlap(adata: AnnData) -> None:
    ax: Any = scfm.pl.perturb(adata, n_genes=12, show=False)
    table = adata.uns["perturb"]["stats"]
    assert [text.get_text() for text in ax.texts] == table["names"].head(12).tolist()
    points = ax.collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 0], table["effect"])
    np.testing.assert_allclose(points[:, 1], -np.log10(table["pvals_adj"]))
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[:at])


def test_bars_of_both_directions(adata: AnnData) -> None:
    ax: Any = scfm.pl.perturb(adata, kind="bar", n_genes=3, show=False)
    table = adata.uns["perturb"]["stats"].sort_values("effect")
    wanted = pd.concat([table.head(3), table.tail(3)])
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], wanted["effect"])
    assert [label.get_text() for label in ax.get_yticklabels()] == wanted["names"].tolist()


def test_arrows_between_neighbours() -> None:
    adata = scfm.datasets.pbmc68k()[:30].copy()
    scfm.tl.perturb(adata, "scfm-mini", genes=["CD74"], embeddings=True, device="cpu")
    found = scfm.get.perturbed(adata)
    ax: Any = scfm.pl.perturb_cells(adata, "CD74", n_neighbors=5, color="bulk_labels", show=False)
    arrows = ax.collections[-1]
    control, changed = (found[found.obs["perturbation"] == name] for name in ("control", "CD74"))
    assert arrows.N == changed.n_obs
    cell = changed.obs_names[0].removesuffix("_CD74")
    distance = np.linalg.norm(control.X - changed.X[0], axis=1)
    distance[control.obs_names == f"{cell}_control"] = np.inf
    nearest = np.argsort(distance)[:5]
    place = np.average(adata.obsm["X_umap"][nearest], axis=0, weights=1 / distance[nearest])
    tip = [arrows.X[0] + arrows.U[0], arrows.Y[0] + arrows.V[0]]
    assert (
        np.abs(tip - place).max() < np.ptp(adata.obsm["X_umap"]) / 5
    )  # 5 or 6 neighbours, with or without the cell itself


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda adata: scfm.pl.perturb(adata, kind="pie"), ValueError, "'volcano' or 'bar'"),
        (lambda adata: scfm.pl.perturb(adata, "other"), KeyError, "perturb_stats"),
        (lambda adata: scfm.pl.perturb(adata, group="B"), KeyError, "no group"),
        (lambda adata: scfm.pl.perturb_cells(adata, "CD74"), KeyError, "embeddings=True"),
    ],
)
def test_what_is_refused(adata: AnnData, call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(adata)

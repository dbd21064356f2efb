"""scfm.pl.training: which curves are in which panel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import scfm

from ..pictures import looks_as_before

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGES = Path(__file__).parent / "images"


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    mpl.use("Agg")
    yield
    plt.close("all")


def history() -> dict[str, pd.DataFrame]:
    """As a logger of scvi-tools has it: columns of objects, by epoch."""
    epochs = np.arange(6)
    values = {
        "train_loss_step": 2 / (epochs + 2),
        "train_loss_epoch": 1 / (epochs + 1),
        "validation_loss": 1.2 / (epochs + 1),
        "validation_macro_f1": 1 - 0.8 / (epochs + 1),
        "lr-AdamW": 1e-4 * epochs,
    }
    return {
        name: pd.DataFrame({name: column.astype(object)}, index=pd.Index(epochs, name="epoch"))
        for name, column in values.items()
    }


def labels(ax: Any) -> list[str]:
    return [line.get_label() for line in ax.lines]


def test_picture(tmp_path: Path) -> None:
    with mpl.rc_context(mpl.rcParamsDefault | {"backend": "Agg"}):
        looks_as_before(scfm.pl.training(history(), show=False)[0], IMAGES / "training.png", tmp_path)


def test_losses_and_other_figures_have_a_panel_each() -> None:
    losses, others = scfm.pl.training(history(), show=False)
    assert labels(losses) == ["train_loss_epoch", "validation_loss"]
    assert labels(others) == ["validation_macro_f1"]
    assert losses.get_xlabel() == others.get_xlabel() == "epoch"
    training, validation = losses.lines
    np.testing.assert_array_equal(validation.get_ydata(), history()["validation_loss"]["validation_loss"].astype(float))
    assert training.get_color() == validation.get_color()
    assert (training.get_linestyle(), validation.get_linestyle()) == ("-", "--")


def test_names_choose() -> None:
    (ax,) = scfm.pl.training(history(), ["lr-AdamW"], show=False)
    assert labels(ax) == ["lr-AdamW"]
    losses, _ = scfm.pl.training(history(), ["train_loss_step", "lr-AdamW"], show=False)
    assert labels(losses) == ["train_loss_step"]
    alone = {"train_loss_step": history()["train_loss_step"]}
    assert len(scfm.pl.training(alone, show=False)) == 1


def test_curves_of_pretraining() -> None:
    curves = scfm.model.load("scfm-mini").card.training["curves"]
    losses, others = scfm.pl.training(curves, show=False)
    terms = ["anchor", "loss", "masked_genes"]
    assert labels(losses) == [f"{part}/{term}" for part in ("train", "validation") for term in terms]
    assert labels(others) == ["train/masked_genes/accuracy"]
    assert losses.get_xlabel() == "step"
    assert len({line.get_color() for line in losses.lines}) == 3
    np.testing.assert_array_equal(losses.lines[1].get_xydata(), curves["train/loss"])


@pytest.mark.parametrize(
    ("curves", "names", "message"),
    [
        ({}, None, "history or names hold no curve; found nothing"),
        ({"loss": [[0, 1]]}, [], "history or names hold no curve; found 'loss'"),
        ({"loss": [[0, 1]]}, ["f1"], "names='f1' is not in history; found 'loss'"),
        ({"loss": 5}, None, r"history\['loss'\] is neither a table .* got int"),
        ({"loss": [1.0, 2.0]}, None, "got list"),
        ({"loss": pd.DataFrame({"a": [1], "b": [2]})}, None, "got DataFrame"),
        ({"loss": pd.DataFrame({"a": ["high"]})}, None, "got DataFrame"),
    ],
)
def test_what_is_refused(curves: Any, names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scfm.pl.training(curves, names)

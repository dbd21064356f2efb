"""scfm.pl.confusion and scfm.pl.roc: what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import scfm

from ..pictures import looks_as_before

if TYPE_CHECKING:
    from collections.abc import Iterator

CLASSES = ["T cell", "B cell", "NK cell"]
IMAGES = Path(__file__).parent / "images"
PLAIN = mpl.rcParamsDefault | {"figure.constrained_layout.use": True, "backend": "Agg"}


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    mpl.use("Agg")
    yield
    plt.close("all")


def drawn(n: int = 90) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    codes = np.arange(n) % 3
    probabilities = rng.dirichlet(np.ones(3), n) + 0.5 * np.eye(3)[codes]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return {
        "labels": np.array(CLASSES)[codes],
        "probabilities": probabilities,
        "classes": CLASSES,
        "folds": np.arange(n) // 30,
    }


def report(unknown: bool = True) -> scfm.metrics.ClassificationReport:
    cells = drawn()
    predicted = np.array(CLASSES, dtype=object)[cells["probabilities"].argmax(axis=1)]
    if unknown:
        predicted[::9] = "unknown"
    return scfm.metrics.classification_report(cells.pop("labels"), predicted, **cells)


def test_pictures(tmp_path: Path) -> None:
    with mpl.rc_context(PLAIN):
        looks_as_before(scfm.pl.confusion(report(), show=False), IMAGES / "confusion.png", tmp_path)


@pytest.mark.parametrize("kind", ["roc", "pr"])
def test_pictures_of_curves(kind: str, tmp_path: Path) -> None:
    draw = scfm.metrics.roc_curves if kind == "roc" else scfm.metrics.pr_curves
    with mpl.rc_context(PLAIN):
        looks_as_before(scfm.pl.roc(draw(**drawn()), show=False), IMAGES / f"{kind}.png", tmp_path)


@pytest.mark.parametrize("normalize", [True, False])
def test_squares_in_the_order_of_the_classes(normalize: bool) -> None:
    table = report().confusion
    ax: Any = scfm.pl.confusion(report(), normalize=normalize, show=False)
    expected = table.div(table.sum(axis=1), axis=0) if normalize else table
    np.testing.assert_allclose(ax.images[0].get_array(), expected)
    assert [text.get_text() for text in ax.get_yticklabels()] == CLASSES
    assert [text.get_text() for text in ax.get_xticklabels()] == [*CLASSES, "no answer"]
    written = {(text.get_position()): text.get_text() for text in ax.texts}
    assert written[0, 1] == f"{expected.iloc[1, 0]:.{2 if normalize else 0}f}"


def test_a_class_without_cells_is_blank() -> None:
    found = scfm.metrics.classification_report(["a", "b"], ["a", "c"])
    ax: Any = scfm.pl.confusion(found, show=False)
    shown = np.ma.filled(ax.images[0].get_array().astype(float), np.nan)
    np.testing.assert_array_equal(shown, [[1, 0, 0], [0, 0, 1], [np.nan] * 3])
    assert len(ax.texts) == 2


def test_many_classes_have_no_numbers() -> None:
    names = [f"type {at:02d}" for at in range(16)]
    ax: Any = scfm.pl.confusion(scfm.metrics.classification_report(names, names), show=False)
    assert not ax.texts


def test_curves_with_bands_and_areas() -> None:
    curves = scfm.metrics.roc_curves(**drawn())
    ax: Any = scfm.pl.roc(curves, show=False)
    assert [line.get_label() for line in ax.lines[:4]] == [
        f"{name} ({row['area']:.3f} ± {row['sd']:.3f})" for name, row in curves.areas.iterrows()
    ]
    for line, name in zip(ax.lines, curves.mean, strict=False):
        np.testing.assert_array_equal(line.get_ydata(), curves.mean[name])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(min((curves.mean["T cell"] + curves.sd["T cell"]).max(), 1))
    chosen: Any = scfm.pl.roc(curves, ["macro"], show=False)
    assert len(chosen.lines) == 2  # and the diagonal


def test_curves_without_folds_have_no_band() -> None:
    cells = drawn()
    del cells["folds"]
    ax: Any = scfm.pl.roc(scfm.metrics.pr_curves(**cells), show=False)
    assert "±" not in ax.lines[0].get_label()
    assert ax.get_xlabel() == "recall"
    assert not any(len(path.vertices) for band in ax.collections for path in band.get_paths())


def test_what_is_refused() -> None:
    curves = scfm.metrics.roc_curves(**drawn())
    with pytest.raises(ValueError, match="classes='x' has no curve; there are 'T cell', 'B cell', 'NK cell', 'macro'"):
        scfm.pl.roc(curves, ["x", "macro"])
    with pytest.raises(ValueError, match="classes=nothing has no curve"):
        scfm.pl.roc(curves, [])
    with pytest.raises(TypeError, match="curves must be ClassificationCurves"):
        scfm.pl.roc(report())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="report must be ClassificationReport"):
        scfm.pl.confusion(report().confusion)  # type: ignore[arg-type]

"""Charts of the tables, as PNG files; matplotlib is imported only when one is asked for by ``--pictures``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pictures", type=folder, help="also draw a chart into this folder (needs matplotlib)")


def folder(text: str) -> Path:
    """A folder that can be written to; made if it is not there. Fails before the long work if matplotlib is missing."""
    from importlib.util import find_spec

    path = Path(text)
    if find_spec("matplotlib") is None:
        msg = "drawing needs matplotlib: pip install matplotlib"
        raise argparse.ArgumentTypeError(msg)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{path} cannot be a folder ({error.strerror})"
        raise argparse.ArgumentTypeError(msg) from error
    return path


def bars(path: Path, title: str, groups: Sequence[str], series: Mapping[str, Sequence[float]], what: str) -> None:
    """Draw one bar for each series in each group, on a logarithmic scale; series without any value are left out."""
    figure, axes = _axes(title, what)
    axes.set_yscale("log")
    series = {name: values for name, values in series.items() if any(values)}
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        at = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        axes.bar(at, values, width, label=name)
    axes.set_xticks(range(len(groups)), groups)
    _save(figure, axes, path)


def lines(path: Path, title: str, series: Mapping[str, Sequence[tuple[float, float]]], across: str, what: str) -> None:
    """Draw one line for each series of points."""
    figure, axes = _axes(title, what)
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xlabel(across)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(bottom=0)
    _save(figure, axes, path)


def _axes(title: str, what: str) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.set_title(title)
    axes.set_ylabel(what)
    return figure, axes


def _save(figure: Any, axes: Any, path: Path) -> None:
    from matplotlib import pyplot

    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    print(f"\ndrawn: {path}")

"""Plots beside pictures of what they looked like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from matplotlib.testing.compare import compare_images

if TYPE_CHECKING:
    from pathlib import Path

TOLERANCE = 12
"""Root mean square of the differences of pixels; versions of matplotlib and of fonts make some."""


def looks_as_before(ax: Any, expected: Path, folder: Path) -> None:
    """Compare with a picture, which is drawn if there is none: look at it, and run again."""
    path = folder / expected.name
    ax.figure.savefig(path, dpi=50)
    if not expected.exists():
        expected.parent.mkdir(exist_ok=True)
        expected.write_bytes(path.read_bytes())
        pytest.fail(f"drew {expected}")
    difference = compare_images(str(expected), str(path), TOLERANCE)
    assert difference is None, difference

"""What counts as equal where nothing but the order of sums differs."""

from __future__ import annotations

from typing import Any

import numpy as np


def close(found: Any, wanted: Any, tolerance: float = 5e-6) -> None:
    """Equal up to a share of the largest value: a model may give vectors of any size."""
    scale = max(1.0, float(np.nanmax(np.abs(wanted), initial=0)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale)

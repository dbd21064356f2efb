from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from scfm.annotate import Reference

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def draw() -> Callable[..., Reference]:
    """Cells of a few labels, and a direction without meaning that varies more than anything else."""

    def drawn(n_cells: int = 200, *, n_labels: int = 4, d: int = 6, seed: int = 0, noise: float = 30.0) -> Reference:
        rng = np.random.default_rng(seed)
        codes = rng.permutation(np.arange(n_cells) % n_labels).astype(np.int64)
        values = rng.normal(size=(n_cells, d)) + 7 * np.eye(d)[codes]
        values[:, -1] *= noise
        batches = np.arange(n_cells) % 3
        return Reference(values.astype(np.float32), codes, [f"type {i}" for i in range(n_labels)], batches)

    return drawn

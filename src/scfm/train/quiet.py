"""Training leaves no trace in the process: no advice of Lightning, no other random numbers or threads."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["own_state", "quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning from advice on what is chosen here."""
    import lightning.pytorch  # noqa: F401  (which sets the levels)

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [one.level for one in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", module=r"torch\..*")
        for one in loggers:
            one.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)


@contextmanager
def own_state() -> Iterator[None]:
    """Leave the random numbers and the threads of torch as they were."""
    import torch

    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            torch.set_num_threads(threads)

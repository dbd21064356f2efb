"""Version branches and private attributes of other packages: nothing outside this module touches either."""

from __future__ import annotations

import logging
import sys
import warnings
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._warn import warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["bar_hidden", "frame_of", "is_mudata", "kernel", "layer_names", "quiet_imports", "view_of"]


def is_mudata(data: object) -> bool:
    """Whether ``data`` is a :class:`mudata.MuData`, without importing mudata."""
    mudata = sys.modules.get("mudata")
    return mudata is not None and isinstance(data, mudata.MuData)


def layer_names(adata: AnnData) -> list[str]:
    """Names of the layers; anndata 0.13 keeps X in the same mapping under ``None``."""
    return [name for name in adata.layers if name is not None]


def frame_of(table: Any) -> pd.DataFrame:
    """Annotation as a new frame around the same columns; a lazy one (``anndata.experimental.read_lazy``) is read."""
    import pandas as pd

    frame = table.to_memory() if type(table).__name__ == "Dataset2D" else pd.DataFrame(table)
    # how anndata reads the index of a frame that was stored without its encoding
    return frame.set_index("_index") if "_index" in frame else frame


def view_of(adata: AnnData) -> tuple[AnnData, range | NDArray[np.int64], NDArray[np.int64] | None]:
    """Take a view apart.

    Parameters
    ----------
    adata
        A view or an actual object.

    Returns
    -------
    The object that holds the matrices, the position in it of each cell of ``adata``, and of each gene (``None``: all
    genes in order). For an object that is no view, the object itself and everything.
    """
    if not adata.is_view:
        return adata, range(adata.n_obs), None
    parent = adata._adata_ref
    rows, cols = _positions(adata._oidx, parent.n_obs), _positions(adata._vidx, parent.n_vars)
    if isinstance(cols, range):
        return parent, rows, None if cols == range(parent.n_vars) else np.arange(cols.start, cols.stop, cols.step)
    return parent, rows, cols


def _positions(index: Any, length: int) -> range | NDArray[np.int64]:
    """Turn an index of anndata (slice, positions, mask, or the index manager of 0.13) into positions."""
    if isinstance(index, slice):
        return range(length)[index]
    found = np.asarray(index)
    if found.dtype == np.bool_:
        return np.flatnonzero(found).astype(np.int64)
    found = found.astype(np.int64)
    return np.where(found < 0, found + length, found)


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that has numba compile a function without the interpreter lock, and keep the result where it can.

    Parameters
    ----------
    options
        Further ones of :func:`numba.njit`.
    """
    import numba

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            found: Callable[..., Any] = numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # neither beside the package nor at home is a place for the cache
            _warn_of_no_cache()
            found = numba.njit(nogil=True, **options)(function)
        return found

    return compiled


@cache
def _warn_of_no_cache() -> None:
    warn("numba finds no folder for compiled functions: every start takes longer. NUMBA_CACHE_DIR names one.")


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Hide warnings and lines of the log: on import torchao speaks of libraries for devices that are not here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def bar_hidden(progress: bool | None) -> bool | None:
    """What tqdm calls ``disable``; its ``None`` (only on terminals) would hide the bar in notebooks, too."""
    if sys.stderr is None:  # a program without a console
        return True
    if progress is not None:
        return not progress
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return False if shell is not None and "IPKernelApp" in shell.config else None

"""``open_counts``: which object, and which of its matrices."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from scfm._warn import warn
from scfm.read._containers import Element, open_container
from scfm.read.checks import check_counts
from scfm.read.counts import CountSource

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from mudata import MuData

    from scfm.read._containers import Container
    from scfm.read.checks import CountCheck

__all__ = ["open_counts"]

logger = logging.getLogger("scfm")


def open_counts(
    data: AnnData | MuData | str | PathLike[str],
    *,
    modality: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    prefer_raw: bool = False,
) -> CountSource:
    """Open the counts of an object or a file for reading in blocks of cells.

    Nothing is loaded, converted or written; a file given by its path is opened for reading only and stays open until
    the source is closed. Exception: a matrix in memory that is neither CSR nor dense is converted to CSR when it is
    read, which takes as much memory again as the matrix.

    Parameters
    ----------
    data
        An :class:`~anndata.AnnData` (in memory, backed, or a view of either), a :class:`~mudata.MuData`, or the path
        of a ``.h5ad`` file, a ``.h5mu`` file, or a zarr store of an AnnData or a MuData.
    modality
        Which AnnData of a MuData; required for a MuData, an error for anything else.
    layer
        Read ``layers[layer]``.
    use_raw
        ``True``: read raw. ``False``: read X. ``None``: read X if a sample of it holds counts; else raw if a sample
        of that does, which is logged; else X, with a warning.
    prefer_raw
        With neither ``layer`` nor ``use_raw``: read raw if there is one, else X, whatever they hold.

    Returns
    -------
    The source; also a context manager that closes the file.

    Raises
    ------
    TypeError
        If ``data`` cannot be read, or the matrix is on a GPU, or neither numeric nor boolean.
    FileNotFoundError
        If there is no such file.
    ValueError
        If the modality, layer or raw is not there, ``layer`` is given together with ``use_raw=True``, the matrix is
        stored by columns in a file, or a sample of it holds negative values, infinities or NaN.

    Warns
    -----
    UserWarning
        If a sample of the matrix holds values that are not integers.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> from scfm.read import open_counts
    >>> adata = ad.AnnData(np.array([[0, 2, 1], [3, 0, 0]], dtype="float32"))
    >>> with open_counts(adata) as source:
    ...     for block in source.blocks(rows=1):
    ...         print(block.row0, block.indices, block.data, block.totals)
    0 [1 2] [2. 1.] [3.]
    1 [0] [3.] [3.]
    """
    if layer is not None and use_raw:
        msg = f"layer={layer!r} and use_raw=True name two different matrices: pass one of layer and use_raw."
        raise ValueError(msg)
    container = open_container(data, modality)
    try:
        if layer is None and use_raw is None and not prefer_raw:
            return _autodetect(container)
        return _open_element(container, _requested(container, layer, use_raw))
    except BaseException:
        container.close()
        raise


def _requested(container: Container, layer: str | None, use_raw: bool | None) -> Element:
    """Name the matrix that the arguments choose, if it exists."""
    if layer is not None:
        if layer not in container.layers:
            layers = ", ".join(map(repr, container.layers)) or "none"
            msg = f"{container.label} has no layer {layer!r}. Its layers: {layers}."
            raise ValueError(msg)
        return Element("layer", layer)
    if use_raw or (use_raw is None and container.has_raw):
        if not container.has_raw:
            msg = f"use_raw=True, but {container.label} has no raw. It has: {_listed(container)}."
            raise ValueError(msg)
        return Element("raw")
    if not container.has_x:
        msg = f"{container.label} has no X (it is None). It has: {_listed(container)}."
        raise ValueError(msg)
    return Element("X")


def _autodetect(container: Container) -> CountSource:
    """Choose X if it holds counts, else raw if that does, else X."""
    x, x_check, text = None, None, "is None"
    if container.has_x:
        x = CountSource(container, Element("X"))
        x_check = check_counts(x)
        if x_check.integers:
            return x
        text = f"holds {x_check.text}"
    if container.has_raw:
        raw = CountSource(container, Element("raw"))
        if check_counts(raw).integers:
            logger.info("X %s; reading raw.X, which holds counts (use_raw=False reads X).", text)
            return raw
    if x is None or x_check is None:
        x = CountSource(container, _requested(container, None, False))
    return _validate(container, Element("X"), x, x_check or check_counts(x))


def _open_element(container: Container, element: Element) -> CountSource:
    source = CountSource(container, element)
    return _validate(container, element, source, check_counts(source))


def _validate(container: Container, element: Element, source: CountSource, check: CountCheck) -> CountSource:
    """Refuse values that no model can take, and warn of values that are no counts."""
    if check.integers:
        return source
    if check.bad is not None:
        cell, gene, value = check.bad
        msg = (
            f"{element.name} of {container.label} holds {value:g} for cell {source.obs_names[cell]!r} (row {cell}), "
            f"gene {source.var.index[gene]!r}. Counts are finite and not negative. {_advice(container, element)}"
        )
        raise ValueError(msg)
    msg = (
        f"{element.name} of {container.label} holds {check.text}, not counts, and the models are made for counts. "
        f"{_advice(container, element)}"
    )
    warn(msg)
    return source


def _advice(container: Container, element: Element) -> str:
    """Say which other matrices hold integers, and how to choose them."""
    found = []
    for other in container.elements():
        if other != element and _holds_integers(container, other):
            found.append(f"{other.argument} ({other.name})")
    if found:
        return f"Integers were found elsewhere; pass {' or '.join(found)}."
    return "Neither X, nor a layer, nor raw holds integers: put the counts into a layer and pass its name as layer=."


def _holds_integers(container: Container, element: Element) -> bool:
    try:
        return check_counts(CountSource(container, element)).integers
    except (TypeError, ValueError):  # a matrix that cannot be read is no advice
        return False


def _listed(container: Container) -> str:
    return ", ".join(f"{element.name} ({element.argument})" for element in container.elements()) or "no matrix"

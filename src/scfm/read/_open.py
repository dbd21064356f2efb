"""``open_counts``: which object, and which of its matrices."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from scfm._warn import warn
from scfm.read._container import Element
from scfm.read._containers import open_container
from scfm.read.checks import check_counts
from scfm.read.counts import CountSource

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from mudata import MuData

    from scfm.read._container import Container
    from scfm.read.checks import CountCheck

__all__ = ["open_counts"]

PARTS = ("unspliced", "ambiguous", "spanning")
"""Layers of RNA velocity, which hold some of the counts of each cell and are not what anybody looks for."""
NO_COUNTS = "Neither X, nor a layer, nor raw holds integers: put the counts into a layer and pass its name as layer=."


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
    the source is closed. Exceptions: a matrix in memory that is neither CSR nor dense is converted to CSR when it is
    read, which takes as much memory again as the matrix; and a ``matrix.mtx``, which is text, is read once into a
    temporary file of 12 bytes for each entry (20 if they are not sorted by cell) in :func:`tempfile.gettempdir`.

    Parameters
    ----------
    data
        An :class:`~anndata.AnnData` (in memory, backed, or a view of either), a :class:`~mudata.MuData`, or the path
        of a ``.h5ad`` file, a ``.h5mu`` file, a zarr store of an AnnData or a MuData, a ``.loom`` file, a ``.h5`` file
        of Cell Ranger, or a folder with ``matrix.mtx``, ``barcodes.tsv`` and ``features.tsv`` or ``genes.tsv`` (each
        perhaps ``.gz``; with a prefix, the path of the matrix); or the address of a zarr store.
    modality
        Which AnnData of a MuData, or which genome of a file of Cell Ranger 2 with several; required for these, an
        error for anything else.
    layer
        Read ``layers[layer]``.
    use_raw
        ``True``: read raw. ``False``: read X. ``None``: read X if a sample of it holds counts that are not all 0; else raw
        if that does, else the one layer that does, either with a warning; else X, with a warning.
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
        If there is no such file, or a 10x folder lacks a table.
    ConnectionError
        If an address does not answer.
    OSError
        If a file cannot be opened.
    ValueError
        If the modality, layer or raw is not there, ``layer`` is given together with ``use_raw=True``, the matrix is
        stored by columns in a file, a sample of it holds negative values, infinities or NaN, none is named and only
        several layers hold counts, or a file is damaged.

    Warns
    -----
    UserWarning
        If a sample of the matrix holds values that are not integers, or another matrix than X is read unasked.

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
    """Choose X if it holds counts, else raw if that does, else the one layer that does, else X."""
    x = check = None
    found = "is None"
    if container.has_x:
        x, check = _checked(container, Element("X"))
        if check.integers and not check.all_zero:
            return x
        found = f"holds {check.kind}"
    holding = _with_integers(container, Element("X"))
    holding = [source for source in holding if source.element.kind == "raw"] or holding
    if len(holding) > 1:
        names = " or ".join(source.element.argument for source in holding)
        msg = f"X of {container.label} {found}, and several layers hold counts: pass {names}."
        raise ValueError(msg)
    if holding:
        undo = " (use_raw=False reads X)" if container.has_x else ""
        warn(f"X {found}; reading {holding[0].matrix}, which holds counts{undo}.")
        return holding[0]
    if x is None or check is None:
        return _open_element(container, _requested(container, None, False))
    return _validate(container, x, check)


def _open_element(container: Container, element: Element) -> CountSource:
    return _validate(container, *_checked(container, element))


def _checked(container: Container, element: Element) -> tuple[CountSource, CountCheck]:
    """A matrix and what a sample of it holds; other matrices are named where it cannot be read."""
    try:
        source = CountSource(container, element)
        return source, check_counts(source)
    except ValueError as error:
        elsewhere = _elsewhere(container, element)
        if not elsewhere:
            raise
        msg = f"{error}\n\n{elsewhere}"
        raise ValueError(msg) from error


def _validate(container: Container, source: CountSource, check: CountCheck) -> CountSource:
    """Refuse values that no model can take, and warn of values that are no counts."""
    element = source.element
    if check.integers:
        return source
    where = f"{element.name} of {container.label}"
    elsewhere = _elsewhere(container, element)
    if check.bad is not None:
        cell, gene, value = check.bad
        advice = elsewhere or NO_COUNTS
        if check.only_bad:
            advice = f"The other values are counts: set this one to 0, say, or leave the cell out. {elsewhere}"
        msg = (
            f"{where} holds {value:g} for cell {source.obs_names[cell]!r} (row {cell}), gene {source.var.index[gene]!r}. "
            f"Counts are finite and not negative. {advice}"
        )
        raise ValueError(msg.rstrip())
    warn(f"{where} holds {check.text}, not counts, and the models are made for counts. {elsewhere or NO_COUNTS}")
    return source


def _elsewhere(container: Container, element: Element) -> str:
    """Say which other matrices hold integers, and how to choose them; empty if there are none."""
    others = [source.element for source in _with_integers(container, element)]
    found = " or ".join(f"{other.argument} ({other.name})" for other in others)
    return f"Integers were found elsewhere; pass {found}." if others else ""


def _with_integers(container: Container, element: Element) -> list[CountSource]:
    """All matrices but this one of which a sample holds integers."""
    found = []
    for other in container.elements():
        if other != element and other.layer not in PARTS:
            with suppress(TypeError, ValueError):  # a matrix that cannot be read is no advice
                source = CountSource(container, other)
                check = check_counts(source)
                if check.integers and not check.all_zero:
                    found.append(source)
    return found


def _listed(container: Container) -> str:
    return ", ".join(f"{element.name} ({element.argument})" for element in container.elements()) or "no matrix"

"""Folders with a ``matrix.mtx`` and tables beside it, as Cell Ranger, STARsolo and others write them."""

from __future__ import annotations

import csv
import gzip
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pandas as pd

from scfm._paths import check_regular
from scfm.read._container import Element, Stored, TableContainer
from scfm.read._door import PER_BYTE, ROWS
from scfm.read._matrix_market import TextMatrix
from scfm.read.memory import SparseMemory

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MtxContainer", "mtx_files"]

MATRIX = "matrix.mtx"
FEATURES = ("gene_ids", "symbols", "feature_types")
"""First columns of the table of features."""


def mtx_files(path: Path) -> list[Path]:
    """The matrices in a folder, or the one that ``path`` itself is; their names may have a prefix."""
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in found if file.name.endswith((MATRIX, f"{MATRIX}.gz"))]


ROOM, RATIO = 2**24, 100
"""Bytes that a table may unpack to whatever it takes, and how many more for each of those."""


class MtxContainer(TableContainer):
    """A matrix of genes × cells with the tables of its barcodes and features (or genes).

    Tables are as :func:`scanpy.read_10x_mtx` makes them, but all features are there, not genes alone, and names that
    repeat stay as they are.

    Parameters
    ----------
    path
        The matrix, ``.mtx`` or ``.mtx.gz``.
    """

    def __init__(self, path: Path) -> None:
        features = _table(path, "features", "genes")
        columns = {name: features[number].to_numpy() for number, name in enumerate(FEATURES) if number in features}
        var = pd.DataFrame(columns, index=columns.pop("symbols", columns["gene_ids"]))
        super().__init__(str(path), pd.DataFrame(index=_table(path, "barcodes")[0].to_numpy()), var)
        self._matrix = TextMatrix(path)
        if self._matrix.shape != (self.n_obs, len(var)):
            n_obs, n_vars = self._matrix.shape
            msg = (
                f"{path} holds {n_vars} genes (rows) × {n_obs} cells (columns), but the tables beside it name "
                f"{len(var)} genes and {self.n_obs} cells."
            )
            raise ValueError(msg)

    def stored(self, element: Element) -> Stored:
        """The matrix."""
        matrix = SparseMemory(self._matrix, f"{element.name} of {self.label}")
        return Stored(matrix, range(self.n_obs), None, self.var)


def _table(path: Path, *names: str) -> pd.DataFrame:
    """The table of one of these names beside a matrix."""
    prefix = path.name.partition(MATRIX)[0]
    places = [path.with_name(f"{prefix}{name}.tsv{end}") for name in names for end in ("", ".gz")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        msg = f"{path} needs a table beside it: {' or '.join(place.name for place in places)}."
        raise FileNotFoundError(msg)
    text = _text(found)
    n_columns = text.partition(b"\n")[0].count(b"\t") + 1
    if b"\t" in text:
        _check_columns(found, text, n_columns)
    read = list(range(min(n_columns, len(FEATURES))))
    layout: dict[str, Any] = {"sep": "\t", "header": None, "usecols": read, "dtype": str, "keep_default_na": False}
    table = pd.read_csv(
        BytesIO(text), quoting=csv.QUOTE_NONE, **layout
    )  # a quote in a name would swallow the lines after it
    return table.apply(lambda column: column.str.strip('"'))


def _check_columns(path: Path, text: bytes, n_columns: int) -> None:
    """Raise a ValueError if a line has more columns than the first one, of which pandas would leave some out."""
    for number, line in enumerate(text.split(b"\n"), start=1):
        n_here = line.count(b"\t") + 1
        if n_here > n_columns:
            msg = (
                f"{path} is damaged: line {number} has {n_here} columns, and the first line {n_columns}. "
                "Copy or write the table again."
            )
            raise ValueError(msg)


def _text(path: Path) -> bytes:
    """The text of a table, unless it unpacks to more than such tables do."""
    check_regular(path)
    stored = path.stat().st_size
    most, lines = ROOM + RATIO * stored, ROWS + PER_BYTE * stored
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        text = file.read(most + 1)
    if len(text) > most or text.count(b"\n") > lines:
        msg = (
            f"{path} has {stored:,} bytes and unpacks to more than {most:,} bytes or {lines:,} lines, and is not read. "
            "Unpack it yourself if you trust the source."
        )
        raise ValueError(msg)
    return text

"""Cells that are tokenised already, as Hugging Face ``datasets`` keeps them: Arrow and Parquet files of token ids."""

from __future__ import annotations

import json
import re
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pandas as pd

from scfm._types import TokenBlock
from scfm.read._arrow import ArrowFile, Cells, arrow, cells_of, reading, table_of
from scfm.read.paths import expand, is_url
from scfm.read.source import check_blocks

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from scfm.read.source import SourceFile

    Paths = str | PathLike[str] | Sequence[str | PathLike[str]]

__all__ = ["TokenizedSource", "is_tokenized", "open_tokenized"]

INDEX = "__index_level_0__"
NAMES = ("barcode", "cell_id", INDEX)
"""Columns that name the cells, the first that is there."""
SUFFIXES = (".parquet", ".arrow")
LARGEST = np.iinfo(np.int32).max
SHARD = re.compile(r"(.+?)-\d{5}-of-(\d{5})(?:-\w+)?$")
"""How ``datasets`` names one of several files."""


def is_tokenized(data: Any) -> bool:
    """Whether ``data`` names what :func:`open_tokenized` reads, by the names of files; none is opened.

    Parameters
    ----------
    data
        Anything.

    Returns
    -------
    True for a path or pattern that ends in ``.parquet`` or ``.arrow``, for a folder that ``save_to_disk`` of
    ``datasets`` wrote or that holds such files, and for a list of these.

    Examples
    --------
    >>> is_tokenized("cells.parquet"), is_tokenized("shards/*.arrow"), is_tokenized("cells.h5ad")
    (True, True, False)
    """
    if isinstance(data, list | tuple):
        return bool(data) and all(map(is_tokenized, data))
    if not isinstance(data, str | PathLike):
        return False
    path = Path(data).expanduser()
    if not path.is_dir():
        return path.suffix in SUFFIXES
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json")) or bool(_data_files(path))


def open_tokenized(data: Paths, *, vocab_size: int | None = None) -> TokenizedSource:
    """Open cells that are tokenised already, for reading in blocks.

    Parameters
    ----------
    data
        A ``.parquet`` file, an ``.arrow`` file (IPC stream or file), a folder of either, a folder that ``save_to_disk``
        of ``datasets`` wrote (as Geneformer's ``.dataset``), a pattern, or a list of these. Token ids are in a column
        ``input_ids``, or else ``gene_token_ids``. Files of a folder are read in the order of their names.
    vocab_size
        Number of tokens of the model; an id beyond it is an error when it is read.

    Returns
    -------
    The source; also a context manager.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    FileNotFoundError
        If there is no such file.
    ValueError
        If a file is damaged, has no column of token ids or other columns than the ones before it; or if a folder holds
        several datasets, not all files of one, or none.

    Examples
    --------
    >>> import pyarrow as pa, pyarrow.parquet, tempfile
    >>> path = tempfile.mkdtemp() + "/cells.parquet"
    >>> pa.parquet.write_table(pa.table({"input_ids": [[7, 2], [5]], "cell_type": ["T", "B"]}), path)
    >>> with open_tokenized(path) as source:
    ...     for block in source.blocks(rows=1):
    ...         print(block.row0, block.tokens, source.obs["cell_type"].iloc[block.row0])
    0 [7 2] T
    1 [5] B
    """
    arrow()
    files = [ArrowFile.of(path) for path in _files(data)]
    first = files[0]
    for file in files[1:]:
        found, expected = ([one.tokens, *sorted(one.scalars)] for one in (file, first))
        if found != expected:
            msg = f"{file.path} has columns {found}, but {first.path} has {expected}: all files must have the same."
            raise ValueError(msg)
    return TokenizedSource(files, vocab_size)


class TokenizedSource:
    """Cells that are tokenised already, read in blocks of consecutive cells; made by :func:`open_tokenized`.

    Nothing is loaded beyond the block at hand and the record batch that it is cut from; Arrow files are mapped into
    memory, so their pages are the cache of the system. One thread may run :meth:`blocks` while another uses the
    attributes.
    """

    files: Sequence[SourceFile] = ()
    """Empty: the files of a dataset are one source."""

    def __init__(self, files: list[ArrowFile], vocab_size: int | None) -> None:
        self._files = files
        self._largest = LARGEST if vocab_size is None else vocab_size - 1
        self._ahead: _Ahead | None = None
        self.paths = [file.path for file in files]
        """The files, in the order of the cells."""
        self.matrix = files[0].tokens
        """Name of the column that holds the token ids."""
        self.n_obs = sum(file.n_obs for file in files)
        """Number of cells."""
        self.obs_columns = [name for name in files[0].scalars if name != INDEX]
        """Names of the columns of :attr:`obs`."""

    @cached_property
    def obs_names(self) -> pd.Index:
        """Names of the cells: the column ``barcode`` or ``cell_id``, or a stored pandas index, else their numbers."""
        return pd.Index(self.names(0, self.n_obs))

    @cached_property
    def obs(self) -> pd.DataFrame:
        """Annotation of the cells: all columns but lists; read on first use. Not to be modified."""
        return self._frame(self.obs_columns, 0, self.n_obs).set_index(self.obs_names)

    def column(self, name: str) -> pd.Series:
        """One column of :attr:`obs`; no other is read. A KeyError if it is not there."""
        if name not in self.obs_columns:
            raise KeyError(name)
        return self._frame([name], 0, self.n_obs).set_index(self.obs_names)[name]

    def names(self, start: int, stop: int) -> NDArray[Any]:
        """Names of cells ``start`` to ``stop`` as an array of str objects, ``(stop - start,)``; no others are read."""
        known = [name for name in NAMES if name in self._files[0].scalars]
        if not known:
            return np.arange(start, stop).astype(str).astype(object)
        return self._frame(known[:1], start, stop)[known[0]].astype(str).to_numpy(dtype=object)

    def blocks(
        self, rows: int = 4096, *, start: int = 0, stop: int | None = None, max_nnz: int | None = None
    ) -> Iterator[TokenBlock]:
        """Read cells in order, block after block.

        Going on where the last call stopped costs nothing; starting elsewhere reads a file from its start (Arrow) or
        from the start of a row group (Parquet).

        Parameters
        ----------
        rows
            Most cells of a block.
        start, stop
            Which cells; all of them by default.
        max_nnz
            Most tokens of a block: it closes before the cell that would exceed them, but holds at least one cell.

        Yields
        ------
        Token ids as they are stored, int32; ``n_genes`` is the number of stored tokens of each cell.

        Raises
        ------
        ValueError
            If the positions are not in the source, or ``rows`` or ``max_nnz`` is less than 1; while reading, if a file
            is damaged, or a list or an id is missing, or an id is not in the vocabulary.
        """
        stop = self.n_obs if stop is None else stop
        check_blocks(self.n_obs, start, stop, rows, max_nnz)
        return self._blocks(rows, start, stop, np.iinfo(np.int64).max if max_nnz is None else max_nnz)

    def close(self) -> None:
        """Close the file that is open."""
        if self._ahead is not None:
            self._ahead.rest.close()
            self._ahead = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        files = f"{len(self.paths)} file{'s' if len(self.paths) > 1 else ''}"
        return f"TokenizedSource({self.paths[0]}: {self.matrix}, {self.n_obs} cells in {files})"

    def _blocks(self, rows: int, start: int, stop: int, max_nnz: int) -> Iterator[TokenBlock]:
        row, (cells, rest) = start, self._from(start)
        while row < stop:
            parts, n_cells, n_tokens = [], 0, 0
            while n_cells < min(rows, stop - row):
                cells = cells if cells.n_cells else next(rest)
                n = cells.fitting(min(rows, stop - row) - n_cells, max_nnz - n_tokens, at_least=n_cells == 0)
                parts.append(cells.cut(0, n))
                n_cells, n_tokens = n_cells + n, n_tokens + parts[-1].n_tokens
                cells = cells.cut(n, cells.n_cells)
                if cells.n_cells:
                    break
            lengths = np.concatenate([np.diff(part.offsets) for part in parts])
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            yield TokenBlock(row, np.concatenate([part.tokens for part in parts]), offsets, lengths)
            row += n_cells
        self._ahead = _Ahead(row, cells, rest)

    def _from(self, start: int) -> tuple[Cells, Generator[Cells, None, None]]:
        """Cells from ``start`` on: what was read ahead when the last blocks ended there, and what comes then."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.row == start:
            return ahead.cells, ahead.rest
        if ahead is not None:
            ahead.rest.close()
        return Cells(np.empty(0, np.int32), np.zeros(1, np.int64)), self._read(start)

    def _read(self, start: int) -> Generator[Cells, None, None]:
        for file, first in self._parts(start):
            row = first
            for batch in file.batches([self.matrix], first):
                yield cells_of(batch.column(0), file.path, row, self._largest)
                row += batch.num_rows

    def _parts(self, start: int) -> Iterator[tuple[ArrowFile, int]]:
        """The files that hold cells from ``start`` on, and where in each of them these start."""
        for file in self._files:
            if start < file.n_obs:
                yield file, max(start, 0)
            start -= file.n_obs

    def _frame(self, columns: list[str], start: int, stop: int) -> pd.DataFrame:
        """Some columns of cells ``start`` to ``stop``, numbered."""
        pa, tables, wanted = arrow(), [], stop - start
        for file, first in self._parts(start):
            if not wanted or not columns:
                break
            with reading(file.path):
                table = table_of(_first(file.batches(columns, first), wanted))
            tables.append(table)
            wanted -= table.num_rows
        if not tables:
            return pd.DataFrame(columns=columns, index=range(stop - start))
        try:
            found = pa.concat_tables(tables, promote_options="permissive").to_pandas()
        except pa.ArrowException as error:
            msg = f"Columns {columns} do not have the same types in all of {len(tables)} files: {error}"
            raise ValueError(msg) from error
        for name in {*columns} & {*self._files[0].texts}:
            categories = np.array([*found[name].cat.categories, None], object)  # -1: none
            found[name] = pd.Series(categories[found[name].cat.codes], found.index, dtype=object)
        return found


class _Ahead(NamedTuple):
    """What was read when the blocks before ``row`` were made."""

    row: int
    cells: Cells
    rest: Generator[Cells, None, None]


def _first(batches: Generator[Any, None, None], n_rows: int) -> Iterator[Any]:
    """No more than the first ``n_rows``."""
    for batch in batches:
        yield batch.slice(0, n_rows)
        n_rows -= batch.num_rows
        if n_rows <= 0:
            batches.close()


def _files(data: Paths) -> list[Path]:
    """The files that are meant, in order."""
    expanded = expand(data)
    found: list[Path] = []
    for name in expanded if isinstance(expanded, list) else [expanded]:
        if is_url(name):
            msg = f"{name} must be downloaded first: tokenised datasets are read from local files."
            raise ValueError(msg)
        path = Path(name)
        if path.is_dir():
            found += _files_in(path)
        elif not path.exists():
            msg = f"There is no file {path}."
            raise FileNotFoundError(msg)
        elif path.suffix in SUFFIXES:
            found.append(path)
        else:
            msg = f"{path} is no tokenised dataset. Accepted: {', '.join(SUFFIXES)} files and folders of them."
            raise ValueError(msg)
    return found


def _files_in(folder: Path) -> list[Path]:
    splits, state = folder / "dataset_dict.json", folder / "state.json"
    if splits.is_file():
        msg = f"{folder} holds several datasets: {', '.join(_names_in(splits, 'splits'))}. Pass the folder of one."
        raise ValueError(msg)
    if state.is_file():
        if _names_in(state, "_indices_data_files", optional=True):
            msg = f"{folder} holds a selection of rows; call flatten_indices() of the dataset before save_to_disk."
            raise ValueError(msg)
        found = [folder / name for name in _names_in(state, "_data_files")]
    else:
        found = _data_files(folder)
        _check_shards(folder, found)
    if not found:
        msg = f"{folder} holds no {' or '.join(SUFFIXES)} file with cells."
        raise ValueError(msg)
    missing = [path.name for path in found if not path.is_file()]
    if missing:
        msg = f"{folder} lacks {', '.join(missing)}, which its state.json names."
        raise FileNotFoundError(msg)
    return found


def _data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.name[0] not in "._")


def _check_shards(folder: Path, files: list[Path]) -> None:
    """Refuse files that are named as parts of several datasets, or as some of the parts of one."""
    parts = [match.groups() for file in files if (match := SHARD.match(file.stem))]
    datasets = sorted({name for name, _ in parts})
    if len(datasets) > 1 or len({file.suffix for file in files}) > 1:
        kinds = [f"{name}-*" for name in datasets] if len(datasets) > 1 else [f"*{suffix}" for suffix in SUFFIXES]
        msg = f"{folder} holds several datasets: {', '.join(kinds)}. Pass a pattern such as {folder / kinds[0]!s}."
        raise ValueError(msg)
    if parts and len(parts) != int(parts[0][1]):
        msg = f"{folder} holds {len(parts)} of the {int(parts[0][1])} files of {datasets[0]}."
        raise ValueError(msg)


def _names_in(path: Path, key: str, *, optional: bool = False) -> list[str]:
    """Names in a list of a JSON file, which holds them or descriptions with a ``filename``."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get(key)
        found = [] if found is None and optional else found
        return [Path(item if isinstance(item, str) else item["filename"]).name for item in found]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path} is damaged: it holds no names under {key!r}."
        raise ValueError(msg) from error

"""Arrow and Parquet files of tokenised cells: what they hold, and their rows from anywhere on."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scfm._package import pip_install
from scfm._paths import check_regular
from scfm.read._door import RATIO, ROOM

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["ArrowFile", "Cells", "arrow", "cells_of", "reading", "table_of"]

TOKENS = ("input_ids", "gene_token_ids")
"""Columns of token ids, the first that is there: what a network was given comes before what it is named for."""
VALUE_BYTES = 4
"""Of a token id in memory, however many of them were packed together."""
STEP = 1024
"""Most cells that are decoded together."""
TOGETHER = 2**24
"""Bytes of batches that are kept before their categories are brought together."""
END = b"\xff\xff\xff\xff\0\0\0\0"
"""Last bytes of an Arrow stream that was written to its end."""


class Cells(NamedTuple):
    """Token sequences of consecutive cells, flat."""

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    """Cell ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``."""

    @property
    def n_cells(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    def cut(self, start: int, stop: int) -> Cells:
        """Cells ``start`` to ``stop``."""
        offsets = self.offsets[start : stop + 1]
        return Cells(self.tokens[offsets[0] : offsets[-1]], offsets - offsets[0])

    def fitting(self, n_cells: int, n_tokens: int, *, at_least: bool) -> int:
        """How many of the first ``n_cells`` have no more than ``n_tokens`` together."""
        return max(int(at_least), int(np.searchsorted(self.offsets[1 : n_cells + 1], n_tokens, side="right")))


@dataclass(frozen=True)
class ArrowFile:
    """A file of tokenised cells, which is open only while it is read."""

    path: Path
    n_obs: int
    names: list[str]
    """All columns, as stored."""
    scalars: list[str]
    """Columns of one value a cell."""
    texts: list[str]
    """Of these the columns of text, which Parquet may store once for many cells."""
    tokens: str
    """The column of token ids."""

    @classmethod
    def of(cls, path: Path) -> ArrowFile:
        """Look at the columns and the number of cells of a file."""
        pa = arrow()
        check_regular(path)
        with reading(path):
            if path.suffix == ".parquet":
                with pa.parquet.ParquetFile(path, memory_map=True) as file:
                    schema, n_obs = file.schema_arrow, file.metadata.num_rows
                    _check_backed(file.metadata, path)
            else:
                with pa.memory_map(str(path)) as source:
                    schema, n_obs = _ipc_reader(source, None).schema, None
            names = schema.names
            scalars = [field.name for field in schema if not _nested(field.type)]
            tokens = _token_column(schema, path)
            texts = [name for name in scalars if _is_text(schema.field(name).type)]
            if n_obs is None:  # a stream does not say; counted on a small column
                counted = _ipc_batches(path, [names.index(name) for name in [*scalars, tokens][:1]], 0)
                n_obs = sum(batch.num_rows for batch in counted)
        return cls(path, n_obs, names, scalars, texts, tokens)

    def batches(self, columns: list[str], start: int) -> Generator[Any, None, None]:
        """Record batches of some columns, in this order, from row ``start`` on; text of Parquet files as categories."""
        row = start
        with reading(self.path):
            if self.path.suffix == ".parquet":
                found = _parquet_batches(self.path, columns, self.texts, start)
            else:
                found = _ipc_batches(self.path, [self.names.index(name) for name in columns], start)
            for batch in found:
                row += batch.num_rows
                yield batch.select(columns)
        if row != self.n_obs:
            msg = f"{self.path} is damaged: it holds {row} cells instead of {self.n_obs}."
            raise ValueError(msg)


def _check_backed(metadata: Any, path: Path) -> None:
    """Refuse a Parquet file whose values would take far more memory than any file of its size holds."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    parts = [group.column(number) for group in groups for number in range(group.num_columns)]
    declared = sum(max(part.total_uncompressed_size, VALUE_BYTES * part.num_values) for part in parts)
    stored = path.stat().st_size
    if declared > ROOM + RATIO * stored:
        msg = f"{path} declares {declared:,} bytes of values in {stored:,}, and is not read. Accepted: {RATIO} for each byte."
        raise ValueError(msg)


def table_of(batches: Iterable[Any]) -> Any:
    """A table of record batches, with text as categories; each batch may hold the same ones again."""
    table, pending, n_bytes = None, [], 0
    for batch in batches:
        batch.validate(full=True)
        batch = _with_categories(batch)
        pending.append(batch)
        n_bytes += batch.nbytes
        if n_bytes > max(TOGETHER, table.nbytes if table is not None else 0):
            table, pending, n_bytes = _joined(table, pending), [], 0
    return _joined(table, pending) if pending or table is None else table


def _with_categories(batch: Any) -> Any:
    """A record batch whose columns of text are stored as those of Parquet files are read."""
    columns = [column.dictionary_encode() if _is_text(column.type) else column for column in batch.columns]
    return arrow().record_batch(columns, batch.schema.names)


def _joined(table: Any, batches: list[Any]) -> Any:
    pa = arrow()
    more = pa.Table.from_batches(batches)
    return (more if table is None else pa.concat_tables([table, more])).unify_dictionaries().combine_chunks()


def cells_of(column: Any, path: Path, row: int, largest: int) -> Cells:
    """Token ids of an array of lists, whose first is in row ``row`` of a file."""
    pa = arrow()
    with reading(path):
        column.validate(full=True)  # an Arrow file may hold offsets that point anywhere
    if column.null_count:
        msg = f"Row {row + _first_null(column)} of {path} has no list of token ids (null)."
        raise ValueError(msg)
    lengths = pa.compute.list_value_length(column).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = column.flatten()
    if values.null_count:
        at, value = _first_null(values), "null"
    else:
        tokens = values.to_numpy(zero_copy_only=False)
        if not len(tokens) or (tokens.min() >= 0 and tokens.max() <= largest):
            return Cells(tokens.astype(np.int32), offsets)
        at = int(np.argmax((tokens < 0) | (tokens > largest)))
        value = str(tokens[at])
    cell = int(np.searchsorted(offsets, at, side="right")) - 1
    msg = f"Row {row + cell} of {path} holds the token id {value}; ids are integers from 0 to {largest}."
    raise ValueError(msg)


def _first_null(array: Any) -> int:
    return int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))


def _parquet_batches(path: Path, columns: list[str], texts: list[str], start: int) -> Iterator[Any]:
    with arrow().parquet.ParquetFile(path, memory_map=True, read_dictionary=texts) as file:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        ends = np.cumsum([0, *sizes])
        first = int(np.searchsorted(ends, start, side="right")) - 1
        # batches of several groups would hold the categories of all of them
        groups = [[group] for group in range(first, len(sizes))]
        batches = (batch for group in groups for batch in file.iter_batches(STEP, row_groups=group, columns=columns))
        yield from _skipped(batches, start - int(ends[first]))


def _ipc_batches(path: Path, fields: list[int], start: int) -> Iterator[Any]:
    pa = arrow()
    with pa.memory_map(str(path)) as source:
        reader = _ipc_reader(source, pa.ipc.IpcReadOptions(included_fields=fields))
        stored = map(reader.get_batch, range(reader.num_record_batches)) if hasattr(reader, "get_batch") else reader
        for batch in _skipped(stored, start):
            for row in range(0, batch.num_rows, STEP):
                yield batch.slice(row, STEP)


def _ipc_reader(source: Any, options: Any) -> Any:
    """A reader of an Arrow file of either format."""
    pa = arrow()
    is_file = source.read(6) == b"ARROW1"
    source.seek(max(0, source.size() - len(END)))
    if not is_file and source.read() != END:  # else pyarrow reads as many cells as were written
        msg = "it does not end as a stream does."
        raise pa.ArrowInvalid(msg)
    source.seek(0)
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source, options=options)


def _skipped(batches: Any, n_rows: int) -> Iterator[Any]:
    """All but the first ``n_rows``."""
    for batch in batches:
        if n_rows < batch.num_rows:
            yield batch.slice(n_rows)
        n_rows = max(0, n_rows - batch.num_rows)


def _token_column(schema: Any, path: Path) -> str:
    """Name of the column of token ids, which is a list of integers."""
    types = arrow().types
    if len(set(schema.names)) < len(schema.names):
        msg = f"{path} has several columns of one name: {schema.names}."
        raise ValueError(msg)
    found = [name for name in TOKENS if name in schema.names]
    if not found:
        msg = f"{path} has no column {' or '.join(map(repr, TOKENS))} of token ids; found {schema.names}."
        raise ValueError(msg)
    kind = schema.field(found[0]).type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not is_list or not (types.is_integer(kind.value_type) or types.is_null(kind.value_type)):
        msg = f"Column {found[0]!r} of {path} holds {kind}; token ids are lists of integers."
        raise ValueError(msg)
    return found[0]


def _is_text(kind: Any) -> bool:
    types = arrow().types
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _nested(kind: Any) -> bool:
    pa = arrow()
    return pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file in errors of pyarrow, which has no error of its own for damage."""
    pa = arrow()
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            raise
        msg = f"{path} is damaged or no {path.suffix} file: {error}"
        raise ValueError(msg) from error


def arrow() -> Any:
    """The package pyarrow with the parts that are used here, which is optional."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.dataset
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        msg = f"Tokenised datasets need pyarrow: {pip_install('arrow')}."
        raise ImportError(msg) from error
    return pyarrow

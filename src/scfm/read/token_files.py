"""Write tokenised cells in the format of Hugging Face ``datasets``."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.read._arrow import arrow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import pandas as pd

    from scfm._types import TokenBlock

__all__ = ["is_file", "is_saved", "write_tokens"]

TOKENS, LENGTH = "input_ids", "length"
SHARD = "data-00000-of-00001.arrow"
SAVED = re.compile(r"(data|cache|indices)-[\w-]+\.arrow")
"""Names of the files of a dataset beside the two that describe it."""
STATE_FILE, INFO_FILE = "state.json", "dataset_info.json"
STATE: dict[str, Any] = {
    "_format_columns": None,
    "_format_kwargs": {},
    "_format_type": None,
    "_output_all_columns": False,
    "_split": None,
}


def is_file(path: Path) -> bool:
    """Whether :func:`write_tokens` writes a file there rather than a folder."""
    return path.suffix in (".parquet", ".arrow")


def is_saved(folder: Path) -> bool:
    """Whether a folder holds what ``save_to_disk`` of ``datasets`` writes, and nothing else that would be lost with it."""
    names = {path.name for path in folder.iterdir()}
    return STATE_FILE in names and all(name in (STATE_FILE, INFO_FILE) or SAVED.fullmatch(name) for name in names)


def write_tokens(path: Path, blocks: Iterable[TokenBlock], obs: pd.DataFrame, about: Mapping[str, Any]) -> int:
    """Write cells block by block, in their order, without those that an option of the model drops.

    Parameters
    ----------
    path
        A ``.parquet`` file, an ``.arrow`` file (an IPC stream), or else a folder as ``save_to_disk`` of ``datasets``
        writes one. It must not exist.
    blocks
        Tokens of the cells.
    obs
        Columns to write beside ``input_ids`` (int32) and ``length`` (int64), in the order of the cells.
    about
        Provenance of the tokens, stored as JSON in the metadata of the schema under ``scfm``.

    Returns
    -------
    Number of cells written.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    ValueError
        If the name of a column is taken, or Arrow cannot store its values.
    """
    pa = arrow()
    taken = [name for name in (TOKENS, LENGTH) if name in obs.columns]
    if taken:
        msg = f"obs[{taken[0]!r}] cannot be written: the tokens have a column of that name."
        raise ValueError(msg)
    columns = {str(name): _column(obs[name]) for name in obs.columns}
    fields = [
        (TOKENS, pa.list_(pa.int32())),
        (LENGTH, pa.int64()),
        *((n, column.type) for n, column in columns.items()),
    ]
    schema = pa.schema(fields, metadata={"scfm": json.dumps(about, default=str)})
    n_cells, fingerprint = 0, hashlib.sha256()
    with _writer(path, schema) as write:
        for block in blocks:
            kept = np.flatnonzero(block.n_genes >= 0)
            lengths = np.diff(block.offsets)[kept]  # dropped cells have no tokens
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            tokens = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(block.tokens))
            others = [column.take(pa.array(block.row0 + kept)) for column in columns.values()]
            write(pa.record_batch([tokens, pa.array(lengths, pa.int64()), *others], schema=schema))
            fingerprint.update(block.tokens.tobytes())
            n_cells += len(kept)
    if path.is_dir():
        state = {"_data_files": [{"filename": SHARD}], "_fingerprint": fingerprint.hexdigest()[:16], **STATE}
        (path / STATE_FILE).write_text(json.dumps(state, indent=2), encoding="utf-8")
        (path / INFO_FILE).write_text("{}", encoding="utf-8")  # the types are those of the file
    return n_cells


def _column(values: pd.Series) -> Any:
    """A column of ``obs`` for Arrow; categories are written as their values."""
    pa = arrow()
    try:
        found = pa.array(values, from_pandas=True)
        return found.dictionary_decode() if pa.types.is_dictionary(found.type) else found
    except (pa.ArrowException, UnicodeEncodeError) as error:
        msg = f"obs[{values.name!r}] cannot be written: {error}. Leave it out, or convert it to one type."
        raise ValueError(msg) from error


@contextmanager
def _writer(path: Path, schema: Any) -> Iterator[Any]:
    """A function that appends a record batch to a file, in the format of its suffix."""
    pa = arrow()
    with ExitStack() as stack:
        if path.suffix == ".parquet":
            writer = stack.enter_context(pa.parquet.ParquetWriter(path, schema))
        else:
            if not is_file(path):
                path.mkdir()
                path = path / SHARD
            writer = stack.enter_context(pa.ipc.new_stream(path, schema))
        yield writer.write_batch

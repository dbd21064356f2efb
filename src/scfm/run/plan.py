"""What stores are made up of: arrays, and shards of consecutive cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scfm._checks import is_int
from scfm._keys import check_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["CHUNK_ROWS", "Shard", "ShardedArray", "StorePlan", "is_count", "is_plan", "plan_shards"]

CHUNK_ROWS = 1024
"""Most rows of a chunk of a store; shards are whole chunks."""
MOST_SHARDS = 10**6
"""Shards of a store, each of which has a marker."""


@dataclass(frozen=True)
class ShardedArray:
    """An array that has as many rows for each shard of a store, and fewer for the last one at most."""

    path: str
    """Place in the store, such as ``"obsm/X_scfm_mini"``."""
    shape: Sequence[int]
    dtype: str
    fill: float
    """What values are that nobody has written."""
    shard_rows: int
    """Rows of a shard."""
    chunk_rows: int
    """Rows of a chunk, by which those of a shard can be divided."""

    @staticmethod
    def is_one(values: Mapping[str, Any]) -> bool:
        """Whether the values of the fields, read from a file, make sense."""
        shape, rows, chunk = (values.get(name) for name in ("shape", "shard_rows", "chunk_rows"))
        return (
            values.keys() == ShardedArray.__annotations__.keys()
            and all(isinstance(values[name], str) for name in ("path", "dtype"))
            and all(map(_is_name, values["path"].split("/")))
            and isinstance(values["fill"], int | float)
            and isinstance(shape, list)
            and len(shape) > 0
            and all(is_int(size) and size >= 0 for size in shape)
            and is_int(rows)
            and is_int(chunk)
            and 0 < chunk <= rows
            and rows % chunk == 0
        )

    def rows_of(self, number: int) -> slice:
        """Rows of a shard."""
        return slice(number * self.shard_rows, min((number + 1) * self.shard_rows, self.shape[0]))

    def chunks(self, number: int) -> Iterator[str]:
        """Files of the rows of a shard."""
        rows, zeros = self.rows_of(number), "/0" * (len(self.shape) - 1)
        for start in range(rows.start, rows.stop, self.chunk_rows):
            yield f"{self.path}/c/{start // self.chunk_rows}{zeros}"


@dataclass(frozen=True, slots=True)
class Shard:
    """A range of consecutive cells that is computed as a whole."""

    number: int
    start: int
    stop: int
    work: int = 0
    """Cells or sequences that are computed for it."""


@dataclass(frozen=True)
class StorePlan:
    """What a store is going to hold."""

    verb: str
    """Name of the function of ``scfm.tl`` whose results it holds."""
    key: str
    """Key of the provenance in ``uns``."""
    arrays: Sequence[ShardedArray]
    """The results. The first one has a row for each cell and is in ``obsm``."""
    shard_rows: int
    """Cells of a shard."""
    uns: Mapping[str, Any]
    """What is known before anything is computed, for ``uns[key]``."""
    sequences: Sequence[int] | None = None
    """Number of the sequences of each shard, where that is not the number of cells; shards without any are no shards."""
    fields: Any = None
    """What merging the results takes, as JSON."""


def is_count(value: object) -> bool:
    """Whether it is a whole number from 0 on."""
    return is_int(value) and value >= 0


def _is_name(text: str) -> bool:
    """Whether it is the name of an entry, which leads nowhere else."""
    try:
        check_key(text)
    except ValueError:
        return False
    return True


def is_plan(plan: dict[str, Any], folder: str) -> bool:
    """Whether a plan has what a store needs, and is that of this folder."""
    identity, arrays, sequences = plan.get("identity"), plan.get("arrays"), plan.get("sequences")
    files = identity.get("source") if isinstance(identity, dict) else None
    return (
        all(isinstance(plan.get(name), str) for name in ("verb", "key"))
        and all(is_count(plan.get(name)) for name in ("n_obs", "shard_rows"))
        and _is_name(plan["key"])
        and plan["shard_rows"] > 0
        and plan["n_obs"] <= MOST_SHARDS * plan["shard_rows"]
        and isinstance(arrays, list)
        and all(isinstance(array, dict) and ShardedArray.is_one(array) for array in arrays)
        and [array["path"] for array in arrays[:1]] == [f"obsm/{folder}"]
        and "sequences" in plan
        and (sequences is None or (isinstance(sequences, list) and all(map(is_count, sequences))))
        and (sequences is None or len(sequences) == -(-plan["n_obs"] // plan["shard_rows"]))
        and isinstance(identity, dict)
        and isinstance(identity.get("parameters", {}), dict)
        and isinstance(files, list)
        and all(isinstance(file, dict) and is_count(file.get("n_obs")) for file in files)
        and sum(file["n_obs"] for file in files) == plan["n_obs"]
    )


def plan_shards(n_obs: int, rows: int, sequences: Sequence[int] | None = None) -> list[Shard]:
    """Cut ``n_obs`` cells into shards of ``rows`` cells; the last one may be shorter.

    Given the number of sequences that each of them takes, those that take none are left out.
    """
    ranges = [(start, min(start + rows, n_obs)) for start in range(0, n_obs, rows)]
    work = [stop - start for start, stop in ranges] if sequences is None else sequences
    return [Shard(i, *ranges[i], n) for i, n in enumerate(work) if n]

"""What stores are made up of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import zarr

from scfm.run.plan import Shard, ShardedArray, plan_shards

if TYPE_CHECKING:
    from pathlib import Path


def test_shards() -> None:
    assert plan_shards(10, 4) == [Shard(0, 0, 4, 4), Shard(1, 4, 8, 4), Shard(2, 8, 10, 2)]
    assert plan_shards(10, 4, [7, 0, 1]) == [Shard(0, 0, 4, 7), Shard(2, 8, 10, 1)]
    assert plan_shards(0, 4) == []


def test_rows_and_files_of_a_shard(tmp_path: Path) -> None:
    array = ShardedArray("uns/a", (7, 3, 2), "float32", 0, 4, 2)
    whole = zarr.create_array(tmp_path / array.path, shape=array.shape, chunks=(2, 3, 2), dtype=array.dtype)
    for number, rows in enumerate([slice(0, 4), slice(4, 7)]):
        assert array.rows_of(number) == rows
        before = set(tmp_path.rglob("c/*/0/0"))
        whole[rows] = np.ones((rows.stop - rows.start, 3, 2))
        assert {tmp_path / file for file in array.chunks(number)} == set(tmp_path.rglob("c/*/0/0")) - before

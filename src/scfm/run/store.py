"""Embeddings of cells in a zarr store that is filled shard by shard, by one process or many.

The store is an AnnData: names of the cells in ``obs``, the embeddings in ``obsm``, provenance in ``uns``. A shard is
a range of consecutive cells on the chunk borders of the embeddings, so no two shards write to one file. A finished
shard has a marker, written after its values, inside the folder of the embeddings.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._keys import PARAMS, Keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import TokenBatch
    from scfm.run.engine import RunStats

__all__ = ["CHUNK_ROWS", "COUNTED", "EmbeddingStore", "Shard", "ShardSink", "fingerprint", "plan_shards"]

FORMAT = 1
PLAN_FILE = ".scfm.json"
SHARDS_FOLDER = ".shards"
CHUNK_ROWS = 1024
"""Rows of a chunk of a store; shards are whole chunks."""
UNSHARDED = {"shards": None}
"""Said aloud, because anndata is about to change its default."""
COUNTED = ("n_cells", "n_truncated", "n_empty", "n_dropped")


@dataclass(frozen=True, slots=True)
class Shard:
    """A range of consecutive cells that is computed as a whole."""

    number: int
    start: int
    stop: int


def plan_shards(n_obs: int, rows: int) -> list[Shard]:
    """Cut ``n_obs`` cells into shards of ``rows`` cells; the last one may be shorter."""
    return [Shard(i, start, min(start + rows, n_obs)) for i, start in enumerate(range(0, n_obs, rows))]


def fingerprint(path: Path) -> dict[str, int]:
    """Size and time of the last change of a file, or of all files of a folder, in bytes and ns."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    found = [file.stat() for file in files]
    return {
        "bytes": sum(stat.st_size for stat in found),
        "modified": max((stat.st_mtime_ns for stat in found), default=0),
    }


class EmbeddingStore:
    """A store of embeddings on disk, complete or not; made by :meth:`create` or :meth:`open`.

    Parameters
    ----------
    path
        Folder of the store.
    plan
        Content of the plan file.
    """

    def __init__(self, path: Path, plan: dict[str, Any]) -> None:
        self.path = path
        self._plan = plan
        self.keys = Keys(str(plan["obsm"]), str(plan["uns"]))
        self.identity: dict[str, Any] = plan["identity"]
        """What makes two runs the same: the source and all parameters."""
        self.n_obs, self.n_features = int(plan["n_obs"]), int(plan["n_features"])
        self.shards = plan_shards(self.n_obs, int(plan["shard_rows"]))

    @classmethod
    def create(
        cls,
        path: Path,
        keys: Keys,
        obs_names: pd.Index,
        n_features: int,
        shard_rows: int,
        identity: dict[str, Any],
        params: dict[str, Any],
    ) -> EmbeddingStore:
        """Make an empty store; it appears when it is complete but for the values, which are NaN.

        If another process makes it at the same moment, the one that was first stays.
        """
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.absolute().parent))
        plan = {
            "format": FORMAT,
            "obsm": keys.obsm,
            "uns": keys.uns,
            "n_obs": len(obs_names),
            "n_features": n_features,
            "shard_rows": shard_rows,
            "identity": identity,
        }
        try:
            _write_empty(work / path.name, keys, obs_names, n_features, shard_rows, params)
            folder = work / path.name / "obsm" / keys.obsm
            (folder / SHARDS_FOLDER).mkdir()
            (folder / PLAN_FILE).write_text(json.dumps(plan), encoding="utf-8")
            try:
                (work / path.name).rename(path)
            except OSError:
                if not path.is_dir():
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> EmbeddingStore:
        """Open a store that :meth:`create` made.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ValueError
            If it is of another format, or none of ours.
        """
        found = sorted(path.glob(f"obsm/*/{PLAN_FILE}"))
        if not found:
            msg = f"{path} is no store of embeddings that scfm.tl.embed_store made."
            raise FileNotFoundError(msg) if not path.exists() else ValueError(msg)
        plan = json.loads(found[0].read_text(encoding="utf-8"))
        if plan.get("format") != FORMAT:
            msg = f"{path} was made by another version of scfm (format {plan.get('format')}, here {FORMAT})."
            raise ValueError(msg)
        return cls(path, plan)

    @property
    def folder(self) -> Path:
        """Folder of the embeddings."""
        return self.path / "obsm" / self.keys.obsm

    @property
    def _markers(self) -> Path:
        return self.folder / SHARDS_FOLDER

    def _marker(self, shard: Shard) -> Path:
        return self._markers / f"{shard.number:08d}.json"

    def done(self) -> dict[int, dict[str, Any]]:
        """Number and marker of every finished shard."""
        found = {}
        for file in self._markers.glob("*.json"):
            found[int(file.stem)] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def missing(self) -> list[Shard]:
        """Shards that are not finished, in order; their markers are not read."""
        done = {int(file.stem) for file in self._markers.glob("*.json")}
        return [shard for shard in self.shards if shard.number not in done]

    def is_done(self, shard: Shard) -> bool:
        """Whether a shard is finished."""
        return self._marker(shard).exists()

    def write(self, shard: Shard, values: NDArray[np.float32], facts: dict[str, Any]) -> None:
        """Store the rows of a shard and then its marker; both replace what is there in one step each."""
        import zarr

        zarr.open_array(self.folder, mode="r+")[shard.start : shard.stop] = values
        marker = {"start": shard.start, "stop": shard.stop, "sha256": hashlib.sha256(values.tobytes()).hexdigest()}
        file = self._marker(shard)
        beside = file.with_suffix(f".{os.getpid()}")
        with beside.open("w", encoding="utf-8") as text:
            json.dump({**marker, **facts}, text)
            text.flush()
            os.fsync(text.fileno())
        beside.replace(file)

    def read(self, shard: Shard) -> NDArray[np.float32]:
        """Read the rows of a shard."""
        import zarr

        rows: NDArray[np.float32] = zarr.open_array(self.folder, mode="r")[shard.start : shard.stop]  # type: ignore[assignment]
        return rows

    def obs_names(self) -> NDArray[np.str_]:
        """Names of the cells."""
        import zarr
        from anndata.io import read_elem

        obs: Any = zarr.open_group(self.path / "obs", mode="r")
        names: NDArray[np.str_] = read_elem(obs[obs.attrs["_index"]])
        return names

    def uns(self) -> dict[str, Any]:
        """The provenance."""
        import zarr
        from anndata.io import read_elem

        found: dict[str, Any] = read_elem(zarr.open_group(self.path / "uns" / self.keys.uns, mode="r"))
        return found

    def is_of(self, source: Path) -> bool:
        """Whether a file is the source, unchanged since."""
        return self.identity["source"] == fingerprint(source) | {"n_obs": self.n_obs}

    def set_source(self, source: Path) -> None:
        """Take a file for the source that was changed by nothing but these embeddings."""
        self.identity["source"] = fingerprint(source) | {"n_obs": self.n_obs}
        beside = self.folder / f"{PLAN_FILE}.{os.getpid()}"
        beside.write_text(json.dumps(self._plan | {"identity": self.identity}), encoding="utf-8")
        beside.replace(self.folder / PLAN_FILE)

    def set_params(self, values: dict[str, Any]) -> None:
        """Change entries of the provenance in place."""
        import zarr
        from anndata.io import write_elem

        root = zarr.open_group(self.path, mode="r+")
        for name, value in values.items():
            write_elem(root[f"uns/{self.keys.uns}/{PARAMS}"], name, value, dataset_kwargs=UNSHARDED)

    @contextmanager
    def locked(self, shards: Sequence[Shard]) -> Iterator[None]:
        """Keep other processes from computing the same shards.

        Raises
        ------
        RuntimeError
            If one of them is being computed; locks of a process end with it, however it ends.
        """
        from filelock import FileLock, Timeout

        with ExitStack() as stack:
            for shard in shards:
                lock = FileLock(self._marker(shard).with_suffix(".lock"), timeout=0)
                try:
                    stack.enter_context(lock)
                except Timeout as error:
                    msg = (
                        f"Another process is filling {self.path} (cells {shard.start} to {shard.stop}). Wait for it, or "
                        "give each process shards of its own with shard=."
                    )
                    raise RuntimeError(msg) from error
            yield


class ShardSink:
    """Collect the embeddings of shards, one after the other, and store each when it is complete.

    Parameters
    ----------
    store
        Where they go.
    shards
        The shards of the run, in the order in which their cells come.
    """

    def __init__(self, store: EmbeddingStore, shards: Sequence[Shard]) -> None:
        self._store = store
        self._waiting = list(shards)
        self._before = dict.fromkeys(COUNTED, 0)
        self._values = self._empty()

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Keep one vector per cell, shape ``(n_cells, n_features)``."""
        self._values[batch.rows - self._waiting[0].start] = output.float().cpu().numpy()

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Store the shard if this was its last block."""
        if stop < self._waiting[0].stop:
            return
        now = {name: getattr(stats, name) for name in COUNTED}
        facts = {name: now[name] - self._before[name] for name in COUNTED}
        self._store.write(self._waiting.pop(0), self._values, facts)
        self._before, self._values = now, self._empty()

    def _empty(self) -> NDArray[np.float32]:
        n_rows = self._waiting[0].stop - self._waiting[0].start if self._waiting else 0
        return np.full((n_rows, self._store.n_features), np.nan, dtype=np.float32)


def _write_empty(
    path: Path, keys: Keys, obs_names: pd.Index, n_features: int, shard_rows: int, params: dict[str, Any]
) -> None:
    import pandas as pd
    import zarr
    from anndata import AnnData
    from anndata.io import write_elem

    root = zarr.open_group(path, mode="w-", zarr_format=3)
    empty = AnnData(obs=pd.DataFrame(index=obs_names.astype(str)), uns={keys.uns: {PARAMS: params}})
    write_elem(root, "/", empty, dataset_kwargs=UNSHARDED)
    shape, chunks = (len(obs_names), n_features), (min(shard_rows, CHUNK_ROWS), n_features)
    obsm: Any = root["obsm"]
    array = obsm.create_array(keys.obsm, shape=shape, chunks=chunks, dtype="f4", fill_value=np.nan)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

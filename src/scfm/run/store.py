"""Embeddings of cells in a zarr store that is filled shard by shard, by one process or many.

The store is an AnnData: names of the cells in ``obs``, the embeddings in ``obsm``, provenance in ``uns``. A shard is
a range of consecutive cells on the chunk borders of the embeddings, so no two shards write to one file. A finished
shard has a marker, written after its values, inside the folder of the embeddings.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._checks import is_int
from scfm._keys import PARAMS, Keys
from scfm._lock import hold
from scfm._paths import atomic, read_json
from scfm.read.paths import is_url
from scfm.read.remote import open_url

if TYPE_CHECKING:
    from contextlib import ExitStack

    from numpy.typing import NDArray

    from scfm.read import Source

__all__ = [
    "CHUNK_ROWS",
    "COUNTED",
    "INDEX",
    "UNSHARDED",
    "EmbeddingStore",
    "Shard",
    "fingerprint",
    "plan_shards",
    "replaced",
]

FORMAT = 1
MAX_PLAN_BYTES = 2**28
"""Of a plan, which has an entry for each file of the source."""
PLAN_FILE = ".scfm.json"
SHARDS_FOLDER = ".shards"
INDEX = "_index"
PIECE = 2**16
"""Entries of ``obs`` that are written at a time."""
CHUNK_ROWS = 1024
"""Rows of a chunk of a store; shards are whole chunks."""
UNSHARDED = {"shards": None}
"""Explicit, because anndata is about to change its default."""
COUNTED = ("n_cells", "n_truncated", "n_empty", "n_dropped", "n_fractional", "n_not_finite")


@dataclass(frozen=True, slots=True)
class Shard:
    """A range of consecutive cells that is computed as a whole."""

    number: int
    start: int
    stop: int


def _is_count(value: object) -> bool:
    return is_int(value) and value >= 0


def _is_plan(plan: dict[str, Any], folder: str) -> bool:
    """Whether a plan has what a store needs, and is that of this folder."""
    identity = plan.get("identity")
    files = identity.get("source") if isinstance(identity, dict) else None
    return (
        plan.get("obsm") == folder
        and isinstance(plan.get("uns"), str)
        and all(_is_count(plan.get(name)) for name in ("n_obs", "n_features", "shard_rows"))
        and plan["shard_rows"] > 0
        and isinstance(identity, dict)
        and isinstance(identity.get("parameters", {}), dict)
        and isinstance(files, list)
        and all(isinstance(file, dict) and _is_count(file.get("n_obs")) for file in files)
        and sum(file["n_obs"] for file in files) == plan["n_obs"]
    )


def plan_shards(n_obs: int, rows: int) -> list[Shard]:
    """Cut ``n_obs`` cells into shards of ``rows`` cells; the last one may be shorter."""
    return [Shard(i, start, min(start + rows, n_obs)) for i, start in enumerate(range(0, n_obs, rows))]


def fingerprint(source: str | Path) -> dict[str, int | str]:
    """What changes when a file does.

    Of a file, or of all files of a folder: bytes, and ns of the last change. Of an address: hash of its metadata.
    """
    if is_url(source):
        metadata = open_url(str(source)).metadata.to_dict()
        return {"metadata_sha256": hashlib.sha256(json.dumps(metadata, default=str).encode()).hexdigest()}
    path = Path(source)
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
        source: Source[Any],
        n_features: int,
        shard_rows: int,
        identity: dict[str, Any],
        params: dict[str, Any],
    ) -> EmbeddingStore:
        """Make an empty store; it appears when it is complete but for the values, which are NaN.

        If another process makes it at the same moment, the one that was first stays. ``identity["source"]`` has an
        entry with the number of cells ``"n_obs"`` for each file.
        """
        plan = {
            "format": FORMAT,
            "obsm": keys.obsm,
            "uns": keys.uns,
            "n_obs": source.n_obs,
            "n_features": n_features,
            "shard_rows": shard_rows,
            "identity": identity,
        }
        try:
            with atomic(path) as work:
                _write_empty(work, keys, source, n_features, min(shard_rows, CHUNK_ROWS), params)
                folder = work / "obsm" / keys.obsm
                (folder / SHARDS_FOLDER).mkdir()
                (folder / PLAN_FILE).write_text(json.dumps(plan), encoding="utf-8")
        except OSError:
            if not path.is_dir():
                raise
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> EmbeddingStore:
        """Open a store that :meth:`create` made.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ValueError
            If it is of another format, or not a store.
        """
        found = sorted(path.glob(f"obsm/*/{PLAN_FILE}"))
        if not found:
            msg = f"{path} is no store of embeddings that scfm.tl.embed_store made."
            raise FileNotFoundError(msg) if not path.exists() else ValueError(msg)
        plan = read_json(found[0], MAX_PLAN_BYTES)
        if plan.get("format") != FORMAT:
            msg = f"{path} was made by another version of scfm (format {plan.get('format')}, here {FORMAT})."
            raise ValueError(msg)
        if not _is_plan(plan, found[0].parent.name):
            msg = (
                f"{found[0]} is damaged: it does not say how the store is made up. Remove the store and make it again."
            )
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
            marker = read_json(file)
            if not file.stem.isdecimal() or not all(_is_count(marker.get(name)) for name in COUNTED):
                msg = f"{file} is damaged: remove it, and its shard is computed again."
                raise ValueError(msg)
            found[int(file.stem)] = marker
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
        with atomic(self._marker(shard)) as work, work.open("w", encoding="utf-8") as text:
            json.dump({**marker, **facts}, text)
            text.flush()
            os.fsync(text.fileno())

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Read the rows of some cells."""
        import zarr

        rows: NDArray[np.float32] = zarr.open_array(self.folder, mode="r")[start:stop]  # type: ignore[assignment]
        return rows

    def obs_names(self, start: int, stop: int) -> NDArray[Any]:
        """Names of some cells."""
        import zarr

        return np.asarray(zarr.open_array(self.path / "obs" / INDEX, mode="r")[start:stop]).astype(object)

    def files(self) -> list[Shard]:
        """Number, first and last cell of each file of the source."""
        stops = np.cumsum([file["n_obs"] for file in self.identity["source"]]).tolist()
        return [Shard(*place) for place in zip(range(len(stops)), [0, *stops[:-1]], stops, strict=True)]

    def uns(self) -> dict[str, Any]:
        """The provenance."""
        import zarr
        from anndata.io import read_elem

        found: dict[str, Any] = read_elem(zarr.open_group(self.path / "uns" / self.keys.uns, mode="r"))
        return found

    def is_of(self, number: int, path: Path) -> bool:
        """Whether a file is the one of this number in the source, unchanged since."""
        known = self.identity["source"][number]
        return bool(known == fingerprint(path) | {"n_obs": known["n_obs"]})

    def set_source(self, number: int, path: Path) -> None:
        """Take a file for the one of this number: it was changed by nothing but these embeddings."""
        known = self.identity["source"]
        known[number] = fingerprint(path) | {"n_obs": known[number]["n_obs"]}
        with atomic(self.folder / PLAN_FILE) as work:
            work.write_text(json.dumps(self._plan), encoding="utf-8")

    def set_params(self, values: dict[str, Any]) -> None:
        """Change entries of the provenance in place."""
        import zarr
        from anndata.io import write_elem

        root = zarr.open_group(self.path, mode="r+")
        for name, value in values.items():
            write_elem(root[f"uns/{self.keys.uns}/{PARAMS}"], name, value, dataset_kwargs=UNSHARDED)

    def lock(self, shard: Shard | None, wait: float = 0) -> ExitStack:
        """Keep other processes from computing a shard, or for ``None`` other clusters from filling the store, until it is closed.

        Raises
        ------
        RuntimeError
            If it is locked, and still is after ``wait`` seconds. A lock ends with its process at the latest.
        """
        file = self._markers / "cluster.lock" if shard is None else self._marker(shard).with_suffix(".lock")
        try:
            return hold(file, wait)
        except TimeoutError as error:
            which = "" if shard is None else f" (cells {shard.start} to {shard.stop})"
            msg = (
                f"Another process is filling {self.path}{which}. Wait for it, or give each process shards of its own "
                "with shard=."
            )
            raise RuntimeError(msg) from error


def _write_empty(
    path: Path, keys: Keys, source: Source[Any], n_features: int, chunk_rows: int, params: dict[str, Any]
) -> None:
    """Write an AnnData of nothing but names and NaN; names are copied a piece at a time."""
    import pandas as pd
    import zarr
    from anndata import AnnData
    from anndata.io import write_elem
    from zarr.dtype import VariableLengthUTF8

    root = zarr.open_group(path, mode="w-", zarr_format=3)
    obs_table = pd.DataFrame(index=pd.Index([], dtype=str))
    if source.files:
        obs_table["file"] = pd.Categorical([], categories=list(dict.fromkeys(file.path for file in source.files)))
    empty = AnnData(obs=obs_table, uns={keys.uns: {PARAMS: params}})
    write_elem(root, "/", empty, dataset_kwargs=UNSHARDED)
    obs: Any = root["obs"]
    names = replaced(obs, INDEX, (source.n_obs,), VariableLengthUTF8())
    for start in range(0, source.n_obs, PIECE):
        stop = min(start + PIECE, source.n_obs)
        names[start:stop] = source.names(start, stop)
    if source.files:
        categories = list(obs["file/categories"][:])
        codes = replaced(obs["file"], "codes", (source.n_obs,), "int32")
        start = 0
        for file in source.files:
            codes[start : start + file.n_obs] = categories.index(file.path)
            start += file.n_obs
    obsm: Any = root["obsm"]
    shape, chunks = (source.n_obs, n_features), (chunk_rows, n_features)
    array = obsm.create_array(keys.obsm, shape=shape, chunks=chunks, dtype="f4", fill_value=np.nan)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def replaced(group: Any, name: str, shape: tuple[int, ...], dtype: Any, *, chunk_rows: int = PIECE) -> Any:
    """Put an array of another shape in the place of one that anndata wrote."""
    attrs = dict(group[name].attrs)
    del group[name]
    array = group.create_array(name, shape=shape, chunks=(chunk_rows, *shape[1:]), dtype=dtype)
    array.attrs.update(attrs)
    return array

"""Results for cells in a zarr store that is filled shard by shard, by one process or many.

The store is an AnnData: names of the cells in ``obs``, arrays with rows for cells in ``obsm``, provenance in ``uns``. A
shard is a range of consecutive cells. It has the same number of rows as every other one in each array, on chunk borders,
so no two shards write to one file. A finished shard has a marker inside the folder of the first array, written when its
values are on the disk. It says how large their files are, and what is their hash.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._keys import PARAMS
from scfm._lock import hold
from scfm._paths import atomic, read_json, settle, sync
from scfm._text import some
from scfm.read.paths import is_url
from scfm.read.remote import open_url
from scfm.run.empty import INDEX, UNSHARDED, write_empty
from scfm.run.plan import Shard, ShardedArray, is_count, is_plan, plan_shards

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack

    from numpy.typing import NDArray

    from scfm.read import Source
    from scfm.run.plan import StorePlan

__all__ = ["COUNTED", "ShardStore", "fingerprint"]

logger = logging.getLogger("scfm")

FORMAT = 2
MAX_PLAN_BYTES = 2**28
"""Of a plan, which has an entry for each file of the source."""
PLAN_FILE = ".scfm.json"
FIELDS_FILE = ".fields.json"
SHARDS_FOLDER = ".shards"
MERGED_FOLDER = ".merged"
COUNTED = ("n_cells", "n_truncated", "n_empty", "n_dropped", "n_fractional", "n_not_finite")


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


class ShardStore:
    """A store of results on disk, complete or not; made by :meth:`create` or :meth:`open`.

    Parameters
    ----------
    path
        Folder of the store.
    plan
        Content of the plan file.
    """

    def __init__(self, path: Path, plan: dict[str, Any]) -> None:
        self.path = path
        self.verb, self.key = str(plan["verb"]), str(plan["key"])
        self.identity: dict[str, Any] = plan["identity"]
        """What makes two runs the same: the source and all parameters."""
        self.n_obs, self.shard_rows = int(plan["n_obs"]), int(plan["shard_rows"])
        self.arrays = [ShardedArray(**array) for array in plan["arrays"]]
        self.unit = "cell" if plan["sequences"] is None else "sequence"
        """What the work of a shard is counted in."""
        self.shards = plan_shards(self.n_obs, self.shard_rows, plan["sequences"])
        self._told = False

    @classmethod
    def create(cls, path: Path, source: Source[Any], plan: StorePlan, identity: dict[str, Any]) -> ShardStore:
        """Make an empty store; it appears when it is complete but for the values.

        If another process makes it at the same moment, the one that was first stays. ``identity["source"]`` has an
        entry with the number of cells ``"n_obs"`` for each file.
        """
        written = {
            "format": FORMAT,
            "verb": plan.verb,
            "key": plan.key,
            "n_obs": source.n_obs,
            "shard_rows": plan.shard_rows,
            "arrays": [asdict(array) for array in plan.arrays],
            "sequences": None if plan.sequences is None else list(plan.sequences),
            "identity": identity,
        }
        try:
            with atomic(path) as work:
                write_empty(work, plan.key, source, plan.arrays, plan.uns)
                folder = work / plan.arrays[0].path
                (folder / SHARDS_FOLDER).mkdir()
                (folder / MERGED_FOLDER).mkdir()
                (folder / FIELDS_FILE).write_text(json.dumps({"fields": plan.fields}), encoding="utf-8")
                (folder / PLAN_FILE).write_text(json.dumps(written), encoding="utf-8")
        except OSError:
            if not path.is_dir():
                raise
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> ShardStore:
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
            msg = f"{path} is no store that scfm.tl.embed_store or scfm.tl.perturb_store made."
            raise FileNotFoundError(msg) if not path.exists() else ValueError(msg)
        plan = read_json(found[0], MAX_PLAN_BYTES)
        if plan.get("format") != FORMAT:
            msg = f"{path} was made by another version of scfm (format {plan.get('format')}, here {FORMAT})."
            raise ValueError(msg)
        if not is_plan(plan, found[0].parent.name):
            msg = (
                f"{found[0]} is damaged: it does not say how the store is made up. Remove the store and make it again."
            )
            raise ValueError(msg)
        return cls(path, plan)

    @property
    def folder(self) -> Path:
        """Folder of the first array, with the markers."""
        return self.path / self.arrays[0].path

    @property
    def _markers(self) -> Path:
        return self.folder / SHARDS_FOLDER

    @property
    def _params(self) -> Path:
        return self.path / "uns" / self.key / PARAMS

    def _marker(self, shard: Shard) -> Path:
        return self._markers / f"{shard.number:08d}.json"

    def _chunks(self, shard: Shard) -> list[Path]:
        """Files of the values of a shard; zarr writes none for a chunk of nothing but the fill value."""
        return [self.path / chunk for array in self.arrays for chunk in array.chunks(shard.number)]

    def _sizes(self, shard: Shard) -> list[int | None]:
        return [chunk.stat().st_size if chunk.exists() else None for chunk in self._chunks(shard)]

    def _finished(self, shard: Shard) -> dict[str, Any] | None:
        """The marker of a shard; ``None`` if there is none, or it or a file that it promises is damaged."""
        try:
            marker = read_json(self._marker(shard))
        except (FileNotFoundError, ValueError):
            return None
        promised = {"start": shard.start, "stop": shard.stop, "sizes": self._sizes(shard)}
        whole = promised.items() <= marker.items() and all(is_count(marker.get(name)) for name in COUNTED)
        return marker if whole else None

    def done(self) -> dict[int, dict[str, Any]]:
        """Number and marker of every finished shard."""
        markers = {shard.number: self._finished(shard) for shard in self.shards}
        found = {number: marker for number, marker in markers.items() if marker is not None}
        known = {f"{number:08d}.json" for number in found}
        stray = sorted(file.name for file in self._markers.glob("*.json") if file.name not in known)
        if stray and not self._told:
            logger.warning("ignoring %s in %s: no marker of a shard that is whole", some(stray), self._markers)
            self._told = True
        return found

    def missing(self) -> list[Shard]:
        """Shards that are not finished, in order."""
        done = self.done()
        return [shard for shard in self.shards if shard.number not in done]

    def is_done(self, shard: Shard) -> bool:
        """Whether a shard is finished, and its files are as large as they were."""
        return self._finished(shard) is not None

    def write(self, shard: Shard, values: Mapping[str, NDArray[Any]], facts: dict[str, Any]) -> None:
        """Store the rows of a shard of every array, by its path, and, when they are on the disk, its marker.

        Both replace what is there.
        """
        import zarr

        for stray in (part for chunk in self._chunks(shard) for part in chunk.parent.glob(f"{chunk.name}.*.partial")):
            stray.unlink()  # of a process that was killed
        for array in self.arrays:
            zarr.open_array(self.path / array.path, mode="r+")[array.rows_of(shard.number)] = values[array.path]
        chunks = self._chunks(shard)
        folders = {folder for chunk in chunks for folder in chunk.parents if folder.is_relative_to(self.path)}
        sync(path for path in (*chunks, *folders) if path.exists())
        promised = {"start": shard.start, "stop": shard.stop, "sizes": self._sizes(shard), "sha256": self._hash(values)}
        with atomic(self._marker(shard)) as work:
            work.write_text(json.dumps(promised | facts), encoding="utf-8")

    def values(self, shard: Shard) -> dict[str, NDArray[Any]]:
        """Read the rows of a finished shard of every array, by its path.

        Raises
        ------
        ValueError
            If they are not those that were computed. The shard is then no longer finished.
        """
        marker = read_json(self._marker(shard))
        try:
            values = self.read(shard)
            whole = self._hash(values) == marker.get("sha256")
        except (ValueError, RuntimeError):  # of a decoder
            whole = False
        if not whole:
            self._marker(shard).unlink()
            msg = (
                f"Cells {shard.start} to {shard.stop} of {self.path} are damaged; call scfm.tl.{self.verb}_store again "
                "as before, and they are computed again."
            )
            raise ValueError(msg)
        return values

    def read(self, shard: Shard) -> dict[str, NDArray[Any]]:
        """Read the rows of a shard of every array, by its path."""
        import zarr

        return {
            array.path: np.asarray(zarr.open_array(self.path / array.path, mode="r")[array.rows_of(shard.number)])
            for array in self.arrays
        }

    def _hash(self, values: Mapping[str, NDArray[Any]]) -> str:
        found = hashlib.sha256()
        for array in self.arrays:
            found.update(np.ascontiguousarray(values[array.path]).data)
        return found.hexdigest()

    def obs_names(self, start: int, stop: int) -> NDArray[Any]:
        """Names of some cells."""
        import zarr

        return np.asarray(zarr.open_array(self.path / "obs" / INDEX, mode="r")[start:stop]).astype(object)

    def files(self) -> list[Shard]:
        """Number, first and last cell of each file of the source."""
        stops = np.cumsum([file["n_obs"] for file in self.identity["source"]]).tolist()
        return [Shard(*place) for place in zip(range(len(stops)), [0, *stops[:-1]], stops, strict=True)]

    def uns(self) -> dict[str, Any]:
        """The provenance, and what else was known before anything was computed."""
        import zarr
        from anndata.io import read_elem

        place, own = f"uns/{self.key}", {array.path for array in self.arrays}
        group = zarr.open_group(self.path / place, mode="r")
        return {name: read_elem(group[name]) for name in group if f"{place}/{name}" not in own}

    def fields(self) -> Any:
        """What merging the results takes."""
        return read_json(self.folder / FIELDS_FILE, MAX_PLAN_BYTES)["fields"]

    def known(self, number: int) -> list[dict[str, Any]]:
        """Fingerprints that the file of this number in the source may have: before and after results were added."""
        first = self.identity["source"][number]
        return [first, *({**later, "n_obs": first["n_obs"]} for later in self._note(number).values())]

    def _note(self, number: int) -> dict[str, Any]:
        file = self._note_file(number)
        return read_json(file) if file.exists() else {}

    def _note_file(self, number: int) -> Path:
        return self.folder / MERGED_FOLDER / f"{number:08d}.json"

    def is_of(self, number: int, path: Path) -> bool:
        """Whether a file is the one of this number in the source, changed by nothing but these results."""
        return fingerprint(path) | {"n_obs": self.identity["source"][number]["n_obs"]} in self.known(number)

    def is_merged(self, number: int, path: Path) -> bool:
        """Whether these results were added to the file of this number, which is unchanged since."""
        note = self._note(number)
        return bool(note) and fingerprint(path) == note["after"]

    def note_merge(self, number: int, target: Path, completed: Path) -> None:
        """Note before the file of this number is replaced by one with these results what that will be."""
        notes = {"before": fingerprint(target), "after": fingerprint(completed)}
        with atomic(self._note_file(number)) as work:
            work.write_text(json.dumps(notes), encoding="utf-8")

    def settle(self) -> None:
        """Remove what killed processes left beside the store and in it."""
        for folder in (self.path.resolve().parent, self._markers, self.folder / MERGED_FOLDER, self._params.parent):
            settle(folder)

    def set_params(self, values: dict[str, Any]) -> None:
        """Change entries of the provenance, all in one step, also such as a power failure damaged."""
        import zarr
        from anndata.io import write_elem

        with hold(self._markers / "params.lock"), atomic(self._params, overwrite=True) as work:
            shutil.copytree(self._params, work)
            group = zarr.open_group(work, mode="r+")
            for name, value in values.items():
                shutil.rmtree(work / name, ignore_errors=True)
                write_elem(group, name, value, dataset_kwargs=UNSHARDED)

    def n_bytes(self, shards: Sequence[Shard]) -> int:
        """About how many bytes the results of shards take, but for sums over their cells."""
        inner = 1 if self.unit == "cell" else 2  # rows of several sequences are filled in part
        arrays = [array for array in self.arrays if array.path.startswith("obsm/")]
        each = sum(np.dtype(array.dtype).itemsize * math.prod(array.shape[inner:]) for array in arrays)
        return int(each * sum(shard.work for shard in shards))

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

"""Results of a store, added to the file of the cells."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm._checks import typed
from scfm._keys import PARAMS
from scfm._paths import settle
from scfm._text import some
from scfm._write import Results, add_mappings, completed_copy, fill, has_entry
from scfm.read import check_links, is_anndata_file, open_container
from scfm.read.errors import reading
from scfm.run.store import ShardStore
from scfm.tl._gene_effects import GeneEffects
from scfm.tl._placing import Placing, digest, places
from scfm.tl._target import FileTarget

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scfm.run.plan import Shard
    from scfm.tl._placing import Table

__all__ = ["merge", "merge_store"]

PIECE = 2**16
"""Names that are compared at a time, and values of a chunk."""


@typed
def merge_store(store: str | Path, target: str | Path, *, modality: str | None = None) -> Path:
    """Add the results of a complete store to a file of its cells, a shard at a time.

    The file is completed in a copy that takes its place in one step; that of a zarr store shares the chunks. If it has these
    results already, nothing is done.

    Parameters
    ----------
    store
        Folder that :func:`scfm.tl.embed_store` or :func:`scfm.tl.perturb_store` filled.
    target
        The file that was embedded or perturbed, or a copy of it: ``.h5ad``, ``.h5mu`` or a zarr store.
    modality
        Modality of a MuData that takes the results.

    Returns
    -------
    ``target``, with the same fields as :func:`scfm.tl.embed` or :func:`scfm.tl.perturb` would have set.

    Raises
    ------
    FileNotFoundError
        If there is no such store.
    OSError
        If the file cannot be replaced, or there is no room for the copy.
    RuntimeError
        If another process changes the file meanwhile.
    ValueError
        If shards are missing or damaged, the cells or genes of the file are others or its cells may be those of several
        files, or something else would be overwritten.

    Examples
    --------
    >>> import scfm, tempfile, anndata
    >>> folder = tempfile.mkdtemp()
    >>> scfm.datasets.pbmc68k().write_h5ad(f"{folder}/cells.h5ad")
    >>> store = scfm.tl.embed_store(f"{folder}/cells.h5ad", "scfm-mini", f"{folder}/embedding.zarr")
    >>> merged = scfm.tl.merge_store(store, f"{folder}/cells.h5ad")
    >>> anndata.read_h5ad(merged).obsm["X_scfm_mini"].shape
    (700, 128)
    """
    target = Path(target).expanduser()
    merge(ShardStore.open(Path(store).expanduser()), target, modality)
    return target


def merge(store: ShardStore, target: Path, modality: str | None = None, *, number: int | None = None) -> None:
    """As :func:`merge_store`.

    ``number`` says which of the files that the store was made of it is. By default it is the one with cells of the same
    names; of several with the same names, the one that is this very file, unchanged.
    """
    from anndata.io import write_elem

    settle(target.resolve().parent)
    if not target.exists():
        msg = f"There is no file {target}."
        raise FileNotFoundError(msg)
    if not is_anndata_file(target):
        msg = f"{target} is no file of an AnnData, and no other is written into; scfm.tl.{store.verb}(..., out=) makes one of it."
        raise ValueError(msg)
    missing = store.missing()
    if missing:
        msg = f"{store.path} lacks {len(missing)} of {len(store.shards)} shards; finish it with scfm.tl.{store.verb}_store first."
        raise ValueError(msg)
    check_links(store.path)
    if store.verb not in CONTENTS:
        msg = f"{store.path} holds results of {store.verb!r}; those of {' and '.join(CONTENTS)} can be merged."
        raise ValueError(msg)
    file = _file_of(store, target, modality, number)
    if has_entry(target, modality, f"uns/{store.key}") and store.is_merged(file.number, target):
        return
    with reading(str(store.path)):
        results, params = CONTENTS[store.verb](store, file, target, modality), store.uns()
    FileTarget(target, target, modality, store.verb).check_free(store.key, *results.places)
    note = partial(store.note_merge, file.number, target) if store.is_of(file.number, target) else None
    with completed_copy(target, target, results.n_bytes(), note) as root:
        group = root if modality is None else root["mod"][modality]
        add_mappings(group, "uns")
        results.write(group)
        write_elem(group["uns"], store.key, params)


class _Embeddings:
    """Embeddings, which go from the store to the file shard by shard."""

    def __init__(self, store: ShardStore, file: Shard, target: Path, modality: str | None) -> None:
        self._store, self._file = store, file
        (self._array,) = store.arrays
        slot, self._key = self._array.path.split("/")
        self.places = [(slot, self._key)]
        self._shape = (file.stop - file.start, *self._array.shape[1:])

    def n_bytes(self) -> int:
        """How many bytes they take."""
        return 4 * int(np.prod(self._shape))

    def write(self, group: Any) -> None:
        """Add them to the group of an AnnData."""
        add_mappings(group, "obsm")
        obsm = group["obsm"]
        if self._key in obsm:
            del obsm[self._key]
        create = getattr(obsm, "create_array", None) or obsm.create_dataset  # of zarr, of h5py
        array = create(self._key, shape=self._shape, dtype="f4")
        for start, stop, values in _pieces_of(self._store, self._file):
            array[start:stop] = values[self._array.path]
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


class _Effects:
    """Effects of perturbations; what is no layer is read before anything is written, and held in memory."""

    def __init__(self, store: ShardStore, file: Shard, target: Path, modality: str | None) -> None:
        self._store, self._file = store, file
        fields = store.fields()
        own = fields["files"][file.number]
        with open_container(target, modality) as found:
            var_names = found.var.index
        if own["var_names"] != digest(var_names):
            msg = f"{target} has other genes than the file that was perturbed; nothing was changed."
            raise ValueError(msg)
        self._placing = Placing.from_json(own["placing"])
        self.places = places(self._placing.key, self._placing.n_states, self._placing.effect)
        self._n_obs = file.stop - file.start
        self._others = self._read_others(var_names, fields["affected"])

    def _read_others(self, var_names: pd.Index, affected: list[int] | None) -> Results:
        placing, counts = self._placing, np.zeros(self._n_obs, np.int64)
        sums = None if affected is None else GeneEffects(placing.tags, np.asarray(affected, np.int64))
        parts, seen = [placing.nothing()], np.empty(0, np.int64)
        for start, stop, values in _pieces_of(self._store, self._file):
            table = self._table(values, start)
            counts[start:stop] = np.bincount(table[0] - start, minlength=stop - start)
            seen = np.union1d(seen, table[1])
            kept = np.isin(table[1], placing.tags[placing.columns < 0])
            parts.append((table[0][kept], table[1][kept], table[2][kept]))
            if sums is not None:
                for name, array in sums.arrays.items():
                    array += values[f"uns/{placing.key}/{name}"][: len(array)]
        names = pd.Index(self._store.obs_names(self._file.start, self._file.stop))
        rows, tags, effects = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        varm, varp = ({}, {}) if sums is None else placing.on_genes(sums, seen, var_names)
        obsm = placing.tables((rows, tags, effects), seen, names)
        return Results(obs={f"{placing.key}_n": counts}, obsm=obsm, varm=varm, varp=varp)

    def _table(self, values: dict[str, NDArray[Any]], start: int) -> Table:
        effects, tags = (values[array.path] for array in self._store.arrays[:2])
        row, place = np.nonzero(tags >= 0)
        return row + start, tags[row, place].astype(np.int64), effects[row, place]

    def n_bytes(self) -> int:
        """About how many bytes they take."""
        layers = 8 * len(self._placing.endings) * (int(self._others.obs[f"{self._placing.key}_n"].sum()) + self._n_obs)
        return layers + self._others.nbytes

    def write(self, group: Any) -> None:
        """Add them to the group of an AnnData; layers go from the store to the file shard by shard."""
        from anndata.io import sparse_dataset, write_elem

        for name, layer in self._placing.layers(self._placing.nothing(), 0).items():
            add_mappings(group, "layers")
            layer.indptr = layer.indptr.astype(np.int64)  # which a matrix cannot get when it has grown
            write_elem(group["layers"], name, layer, dataset_kwargs={"chunks": (PIECE,)})
        written = 0
        for start, stop, values in _pieces_of(self._store, self._file):
            rows, tags, effects = self._table(values, start)
            for name, layer in self._placing.layers((rows - written, tags, effects), stop - written).items():
                sparse_dataset(group["layers"][name]).append(layer)
            written = stop
        for name, layer in self._placing.layers(self._placing.nothing(), self._n_obs - written).items():
            sparse_dataset(group["layers"][name]).append(layer)
        fill(group, self._others, [place for place in self.places if place not in self._written()])

    def _written(self) -> set[tuple[str, str]]:
        """Slot and key of all that is written; what an earlier run left in other places is removed."""
        layers = self._placing.layers(self._placing.nothing(), 0)
        return {("layers", name) for name in layers} | {(slot, name) for slot, name, _ in self._others.items()}


CONTENTS: dict[str, type[_Embeddings | _Effects]] = {"embed": _Embeddings, "perturb": _Effects}
"""What stores of a verb hold."""


def _pieces_of(store: ShardStore, file: Shard) -> Iterator[tuple[int, int, dict[str, NDArray[Any]]]]:
    """Values of each shard that has cells of a file, and which cells of the file these are."""
    for shard in store.shards:
        start, stop = max(shard.start, file.start), min(shard.stop, file.stop)
        if start < stop:
            values = store.values(shard)
            for array in store.arrays:
                if array.path.startswith("obsm/"):
                    values[array.path] = values[array.path][start - shard.start : stop - shard.start]
            yield start - file.start, stop - file.start, values


def _file_of(store: ShardStore, target: Path, modality: str | None, number: int | None) -> Shard:
    """Which file of the source it is; names of cells alone do not tell, for plates and lanes share them."""
    candidates = store.files()
    with open_container(target, modality) as found:
        fitting = [
            file
            for file in (candidates if number is None else [candidates[number]])
            if file.stop - file.start == found.n_obs
            and all(
                (store.obs_names(file.start + low, file.start + high) == found.names(low, high)).all()
                for low, high in _pieces(found.n_obs)
            )
        ]
    if not fitting:
        msg = f"{target} does not hold the cells of {store.path}; nothing was changed."
        raise ValueError(msg)
    same = fitting if len(fitting) == 1 else [file for file in fitting if store.is_of(file.number, target)]
    if not same:
        paths = store.uns()[PARAMS]["files"]["path"]
        msg = (
            f"The cells of {target} have the names of those of {some(paths[file.number] for file in fitting)}, and it is not "
            "one of these files as they were then: nothing was changed. Merge into those files."
        )
        raise ValueError(msg)
    return same[0]


def _pieces(n_rows: int) -> list[tuple[int, int]]:
    return [(start, min(start + PIECE, n_rows)) for start in range(0, n_rows, PIECE)]

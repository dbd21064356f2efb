"""Screens that outgrow memory or an evening, into a store on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm._keys import PARAMS, PERTURB, STATES, check_key, made_by
from scfm.model.arguments import Arguments
from scfm.model.registry import check_offers
from scfm.run.device import local_device
from scfm.run.plan import CHUNK_ROWS, ShardedArray, StorePlan
from scfm.tasks.perturbations import Kind  # noqa: TC001  compared with arguments
from scfm.tl._fill import Filling, fill_store
from scfm.tl._perturb_genes import ALL
from scfm.tl._placing import digest, places
from scfm.tl._screen import PERTURBED, Screen
from scfm.tl._states import StateAverage, average_states, states_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from distributed import Client
    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import Compat, TokenBatch
    from scfm.model import FoundationModel
    from scfm.model.session import Session
    from scfm.run.device import Device
    from scfm.run.plan import Shard
    from scfm.run.store import ShardStore
    from scfm.tasks import Perturb

__all__ = ["perturb_store"]

SHARD_SEQUENCES = 2**16
"""About how many sequences a shard has by default: those that are lost when a run is killed."""


@typed
@with_parameters
def perturb_store(
    source: str | Path | Sequence[str | Path],
    model: str | Path | FoundationModel,
    out: str | Path,
    *,
    genes: str | Sequence[str | Sequence[str]] | Mapping[str, Sequence[str]] = ALL,
    kind: Kind = "delete",
    anchor: str | None = None,
    states_key: str | None = None,
    start: str | None = None,
    goal: str | None = None,
    alternatives: Sequence[str] | None = None,
    state_average: StateAverage = "mean",
    gene_effects: bool = False,
    n_cells: int | None = None,
    seed: int = 0,
    shard: str | None = None,
    shard_rows: int | None = None,
    resume: bool = True,
    into_source: bool = False,
    client: Client | None = None,
    modality: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    pooling: str | None = None,
    hidden_layer: int | None = None,
    max_tokens: int | None = None,
    device: Device | Sequence[Device] | None = None,
    dtype: str | torch.dtype | None = None,
    compat: Compat | None = None,
    key_added: str = PERTURB,
    **options: Any,
) -> Path:
    """Change genes in silico as :func:`scfm.tl.perturb`, into a store: for screens that outgrow memory or an evening.

    Cells are computed in shards of consecutive rows, as by :func:`scfm.tl.embed_store`: called again with the same
    arguments after an interruption, only what is missing is computed, and several processes, each with its own ``shard``,
    or the workers of a dask cluster fill one store. What is the same for all shards (embeddings of the states, which cells
    are drawn, how many sequences there are) is found out once and kept in the store. :func:`scfm.tl.merge_store` adds the
    effects to the file of the cells.

    Parameters
    ----------
    %(store_source)s
    model
        Id, alias, folder, or a loaded model, of a family that reads ranked genes, as Geneformer; others are a TypeError.
    out
        Folder of the store; made if it does not exist.
    %(perturbations)s
    gene_effects
        Also measure what happens to the states of the other genes of the cell; takes one file.
    %(n_perturbed)s
    %(store_shard)s
    shard_rows
        Cells of a shard, a multiple of 1,024 or less than that; by default as many as give about 65,000 sequences.
    %(store_fill)s
    %(matrix)s
    pooling
        As for :func:`scfm.tl.perturb`.
    %(hidden_layer)s
    %(max_tokens)s
    %(device)s
    %(dtype)s
    compat
        As for :func:`scfm.tl.perturb`.
    key_added
        Name of all results.
    %(options)s

    Returns
    -------
    ``out``. Merged, it gives the fields of :func:`scfm.tl.perturb`. Before that, :func:`anndata.read_zarr` opens it:
    ``obs_names`` as in the source, in ``uns['perturb' | key_added]`` the ``params`` and ``states``, and row by row the
    perturbations of each cell: their numbers (of the token or the group, −1 for none) in ``obsm['perturb_tags']`` and their
    effects in ``obsm['perturb']``, float32, NaN where there is none.

    Raises
    ------
    FileExistsError
        If ``out`` is no such store, was made of another or since changed source or with other parameters, or exists
        and ``resume`` is off.
    RuntimeError
        If another process is computing the same shards.
    OSError
        If ``out``, or with ``into_source`` a source, cannot be written, or the disk has no room for what is missing.
    %(errors)s

    Examples
    --------
    >>> import scfm, tempfile, anndata
    >>> folder = tempfile.mkdtemp()
    >>> scfm.datasets.pbmc68k()[:20].copy().write_h5ad(f"{folder}/cells.h5ad")
    >>> store = scfm.tl.perturb_store(
    ...     f"{folder}/cells.h5ad", "scfm-mini", f"{folder}/screen.zarr", genes=["NKG7", "CD74"]
    ... )
    >>> merged = scfm.tl.merge_store(store, f"{folder}/cells.h5ad")
    >>> anndata.read_h5ad(merged).layers["perturb"].shape
    (20, 765)
    """
    arguments = Arguments(
        modality=modality,
        layer=layer,
        use_raw=use_raw,
        gene_key=gene_key,
        pooling=pooling,
        hidden_layer=hidden_layer,
        max_tokens=max_tokens,
        device=local_device() if shard == "auto" and device is None else device,
        dtype=dtype,
        compat=compat,
        options=options,
    )
    check_key(key_added)
    work = ScreenWork(
        genes,
        kind,
        anchor,
        states_key,
        start,
        goal,
        alternatives,
        state_average,
        gene_effects,
        n_cells,
        seed,
        key_added,
    )
    how = Filling(shard, shard_rows, resume=resume, into_source=into_source)
    return fill_store(source, model, out, arguments, work, how, client)


@dataclass(frozen=True)
class ScreenWork:
    """Effects of perturbations; see :func:`perturb_store`."""

    genes: str | Sequence[str | Sequence[str]] | Mapping[str, Sequence[str]]
    kind: Kind
    anchor: str | None
    states_key: str | None
    start: str | None
    goal: str | None
    alternatives: Sequence[str] | None
    state_average: StateAverage
    gene_effects: bool
    n_cells: int | None
    seed: int
    key_added: str
    verb: ClassVar[str] = "perturb"

    def open(self, session: Session) -> ScreenFiller:
        """What it takes to fill a store."""
        return ScreenFiller(session, self)


class ScreenFiller:
    """Fills a store with effects."""

    row_bytes = 0

    def __init__(self, session: Session, work: ScreenWork) -> None:
        check_offers(session.model.card, "perturber", PERTURBED)
        if work.gene_effects and len(session.source.files) > 1:
            msg = f"gene_effects=True takes one file, whose genes the result has; got {len(session.source.files)}."
            raise ValueError(msg)
        self._session, self._work, self.key = session, work, work.key_added
        self._states = states_of(session, work.states_key, work.start, work.goal, work.alternatives)
        self._screen = Screen(
            session,
            work.genes,
            work.kind,
            work.anchor,
            self._states,
            work.n_cells,
            work.seed,
            gene_effects=work.gene_effects,
        )
        self.cells: NDArray[np.int64] | None = self._screen.cells
        self._n_states = 0 if self._states is None else len(self._states.names)
        self.path = f"obsm/{self.key}"
        self.places = places(self.key, self._n_states)
        unlike = ("genes", "key_added")
        self.parameters = {name: value for name, value in asdict(work).items() if name not in unlike}
        self.parameters["genes"] = self._screen.called or ALL

    def plan(self, shard_rows: int | None) -> StorePlan:
        """Average the states, count the sequences of each shard, and lay out arrays with a row for each cell."""
        work, screen, n_obs = self._work, self._screen, self._session.source.n_obs
        counts = screen.counts()
        screen.log_workload(counts)
        counts = counts[:, 0]
        rows = shard_rows or int(np.clip(n_obs * SHARD_SEQUENCES // counts.sum(), 1, CHUNK_ROWS))
        n_shards, width = -(-n_obs // rows), int(counts.max())
        sequences = np.bincount(screen.cells // rows, counts, n_shards).astype(int).tolist()
        described = self._session.description() | screen.described(work.state_average)
        uns: dict[str, Any] = {PARAMS: made_by("perturb") | described}
        if self._states is not None:
            uns[STATES], _ = average_states(self._session, self._states, work.state_average)
        chunk = min(rows, CHUNK_ROWS)
        arrays = [
            ShardedArray(self.path, (n_obs, width, max(1, self._n_states)), "float32", np.nan, rows, chunk),
            ShardedArray(f"{self.path}_tags", (n_obs, width), "int32", -1, rows, chunk),
        ]
        sums = {} if screen.gene_effects is None else screen.gene_effects.arrays
        for name, array in sums.items():
            n = len(array) if len(array) <= CHUNK_ROWS else -(-len(array) // CHUNK_ROWS) * CHUNK_ROWS
            shape = (n_shards * n, *array.shape[1:])
            path = f"uns/{self.key}/{name}"
            arrays.append(ShardedArray(path, shape, str(array.dtype), 0, n, min(n, CHUNK_ROWS)))
        return StorePlan("perturb", self.key, arrays, rows, uns, sequences, self._fields())

    def _fields(self) -> dict[str, Any]:
        """Where the effects on the cells of each file go, and which genes are affected."""
        effects, files = self._screen.gene_effects, []
        for file in self._session.files():
            var_names = file.source.var_names
            placing = self._screen.placing(file, self.key, var_names)
            files.append({"var_names": digest(var_names), "placing": placing.to_json()})
        return {"files": files, "affected": None if effects is None else effects.tokens.tolist()}

    def task(self, store: ShardStore) -> tuple[Perturb, EffectsCollector]:
        """What is computed, and what collects it."""
        targets = None if self._states is None else store.uns()[STATES].to_numpy()
        task = self._screen.task(targets)
        return task, EffectsCollector(store, task, self._screen)


class EffectsCollector:
    """The perturbations of each cell and their effects, side by side.

    Parameters
    ----------
    store
        Where they go.
    task, screen
        What collects effects, and sums over cells.
    """

    def __init__(self, store: ShardStore, task: Perturb, screen: Screen) -> None:
        self._arrays, self._effects = store.arrays, task.effects
        self._sums = {} if screen.gene_effects is None else screen.gene_effects.arrays

    def begin(self, shard: Shard) -> None:
        """Forget what is there; results of this shard come next."""
        self._shard = shard
        self._effects.clear()
        for array in self._sums.values():
            array[:] = 0

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Keep the effects of the copies of a batch."""
        self._effects.write(batch, output)

    def values(self) -> dict[str, NDArray[Any]]:
        """Rows of the shard for each array of the store, by its path."""
        cells, tags, effects = self._effects.table()
        rows = cells - self._shard.start
        place = rows, np.arange(len(rows)) - np.searchsorted(rows, rows)
        found = {}
        for array in self._arrays:
            at = array.rows_of(self._shard.number)
            found[array.path] = np.full((at.stop - at.start, *array.shape[1:]), array.fill, array.dtype)
        by_cell, tags_by_cell, *sums = found.values()
        by_cell[place], tags_by_cell[place] = effects, tags
        for padded, summed in zip(sums, self._sums.values(), strict=True):
            padded[: len(summed)] = summed
        return found

"""The rules of :func:`scfm.testing.check_model`, each a function that raises an AssertionError."""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
from scipy import sparse

from scfm import get, tl
from scfm._keys import PARAMS, result_keys, score_keys
from scfm._settings import settings
from scfm.testing._small_cells import containers_of, descending, fingerprint, with_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch
    from numpy.typing import ArrayLike, NDArray

    from scfm.model import FoundationModel
    from scfm.tasks import Kind

__all__ = ["LONGEST", "RULES", "NotOfferedError", "Subject"]

ROUNDING = 1e-5
"""Largest difference attributed to float32 rounding, relative to the largest value."""
LONGEST = 24
"""Default maximum of tokens per cell; some cells are truncated."""
KEY = "checked"
"""Key of results."""


@dataclass(frozen=True)
class Subject:
    """A model, the arguments and the cells of a check."""

    model: FoundationModel
    arguments: dict[str, Any]
    cells: ad.AnnData

    def embed(self, data: Any = None, **more: Any) -> NDArray[np.float32]:
        return self.model.embed(self.cells if data is None else data, **self.arguments | more)

    def stored(self, adata: ad.AnnData, **more: Any) -> ad.AnnData:
        """Embed into an AnnData."""
        tl.embed(adata, self.model, key_added=KEY, **self.arguments | more)
        return adata

    def without(self, *names: str) -> dict[str, Any]:
        """Arguments for a verb that does not take ``names``."""
        return {name: value for name, value in self.arguments.items() if name not in names}


class NotOfferedError(Exception):
    """The model does not offer what the rule checks."""


def _require(condition: object, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _same(found: ArrayLike, wanted: ArrayLike, what: str) -> None:
    """Require equal shapes, NaN in the same places, and values that differ by rounding."""
    here, there = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    _require(here.shape == there.shape, f"{what} has the shape {here.shape}, not {there.shape}.")
    _require(np.array_equal(np.isnan(here), np.isnan(there)), f"{what} is NaN in other places.")
    error, scale = (np.nanmax(np.abs(x), initial=0) for x in (here - there, there))
    _require(error <= ROUNDING * max(1, scale), f"{what} differs by up to {error:.2g}, more than rounding explains.")


@contextmanager
def _settings(**values: int) -> Iterator[None]:
    before = {name: getattr(settings, name) for name in values}
    try:
        for name, value in values.items():
            setattr(settings, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


def result(subject: Subject) -> None:
    found, again = subject.embed(), subject.embed()
    wanted = (subject.cells.n_obs, subject.model.n_features)
    _require(found.shape == wanted, f"the embeddings have the shape {found.shape}, not {wanted}.")
    _require(found.dtype == np.float32, f"the embeddings are {found.dtype}, not float32.")
    _require(np.isfinite(found).all(), "the embedding of a cell with genes is not finite.")
    _require(len(np.unique(found, axis=0)) > 1, "all cells have the same embedding.")
    _require(np.array_equal(found, again), "the same call gives other numbers the second time.")


_SIZES: tuple[dict[str, int], ...] = (
    {"block_rows": 1},
    {"block_rows": 5, "block_values": 30, "batch_tokens": 50, "threads": 3},
    {"batch_tokens": 1, "threads": 1},
)


def batches(subject: Subject) -> None:
    wanted = subject.embed()
    alone = [subject.embed(subject.cells[row].copy())[0] for row in range(subject.cells.n_obs)]
    _same(alone, wanted, "a cell alone")
    for sizes in _SIZES:
        with _settings(**sizes):
            _same(subject.embed(), wanted, f"a cell with {sizes}")


def cell_order(subject: Subject) -> None:
    order = np.random.default_rng(1).permutation(subject.cells.n_obs)
    _same(subject.embed(subject.cells[order].copy()), subject.embed()[order], "a cell in another row")


def gene_order(subject: Subject) -> None:
    order = np.random.default_rng(1).permutation(subject.cells.n_vars)
    _same(subject.embed(subject.cells[:, order].copy()), subject.embed(), "a cell with its genes in another order")


def unknown_genes(subject: Subject) -> None:
    other = with_values(subject.cells, sparse.csr_matrix(np.full(subject.cells.shape, 50, np.float32)))
    other.var_names = other.var["ensembl_id"] = _unknown_names(other.n_vars)
    wider = ad.concat([subject.cells, other], axis="var", merge="same")
    _same(subject.embed(wider), subject.embed(), "a cell with unknown genes")


def _unknown_names(n: int) -> list[str]:
    return [f"no gene {i}" for i in range(n)]


def containers(subject: Subject) -> None:
    wanted = subject.embed()
    with tempfile.TemporaryDirectory() as folder:
        for name, data, arguments in containers_of(subject.cells, Path(folder)):
            _same(subject.embed(data, **arguments), wanted, f"a cell in {name}")


def empty_cells(subject: Subject) -> None:
    empty = np.arange(subject.cells.n_obs) % 5 == 2
    counts = sparse.csr_matrix(subject.cells.X.toarray() * ~empty[:, None])
    adata = subject.stored(with_values(subject.cells, counts))
    found, said = adata.obsm[KEY], subject.model.embeds_empty
    text = "the row of an empty cell is {}, but embeds_empty is {}."
    _require(not said or np.isfinite(found[empty]).all(), text.format("not finite", said))
    _require(said or np.isnan(found[empty]).all(), text.format("not NaN", said))
    _same(found[~empty], subject.embed()[~empty], "a cell beside empty ones")
    counted = adata.uns[KEY][PARAMS]["n_cells_empty"]
    _require(counted == empty.sum(), f"params count {counted} empty cells of {empty.sum()}.")


def bad_input(subject: Subject) -> None:
    cases = {}
    for value in (-1, np.nan, np.inf):
        counts = subject.cells.X.copy()
        counts.data[3] = value
        cases[f"the count {value}"] = with_values(subject.cells, counts)
    cases["no gene that the model knows"] = with_values(subject.cells, subject.cells.X)
    names = _unknown_names(subject.cells.n_vars)
    cases["no gene that the model knows"].var = subject.cells.var.assign(ensembl_id=names).set_axis(names)
    for what, adata in cases.items():
        try:
            subject.stored(adata)
        except ValueError:
            _require(not (len(adata.obsm) or len(adata.uns)), f"something was stored although {what} was refused.")
        else:
            msg = f"{what} was accepted; a ValueError is expected."
            raise AssertionError(msg)


def unchanged_input(subject: Subject) -> None:
    dense = subject.cells.X.toarray()
    for x in (dense, descending(dense)):
        adata = with_values(subject.cells, x)
        adata.raw = adata.copy()
        adata.layers["other"] = sparse.csr_matrix(2 * dense)
        before, parts = fingerprint(adata), (adata.X, adata.obs, adata.var)
        for pooling in subject.model.usable_poolings:
            subject.stored(adata, pooling=pooling)
        _require(fingerprint(adata) == before, "X, layers, raw, obs or var of the caller were changed.")
        kept = all(now is then for now, then in zip((adata.X, adata.obs, adata.var), parts, strict=True))
        _require(kept, "X, obs or var of the caller were replaced.")
        added = {*adata.obsm, *adata.varm, *adata.uns, *adata.obsp, *adata.layers} - {"other"}
        _require(added == {KEY}, f"more than the results was added: {', '.join(sorted(added - {KEY}))}.")


def provenance(subject: Subject) -> None:
    adata = subject.stored(subject.cells.copy())
    keys = result_keys(KEY, KEY)
    params = adata.uns[keys.uns][PARAMS]
    _require(params["model"] == subject.model.card.id, f"params call the model {params['model']!r}.")
    with tempfile.TemporaryDirectory() as folder, ad.settings.override(zarr_write_format=3):
        adata.write_h5ad(Path(folder) / "a.h5ad")
        adata.write_zarr(Path(folder) / "a.zarr")
        for found in (ad.read_h5ad(Path(folder) / "a.h5ad"), ad.read_zarr(Path(folder) / "a.zarr")):
            _require(np.array_equal(found.obsm[keys.obsm], adata.obsm[keys.obsm]), "a file holds other embeddings.")
            read = found.uns[keys.uns][PARAMS]
            changed = [name for name in params if name not in read or not _equal(read[name], params[name])]
            _require(not changed, f"a file gives other params back: {', '.join(changed)}.")


def _equal(found: Any, wanted: Any) -> bool:
    """Whether a value is what was written; lists come back as arrays."""
    if isinstance(wanted, dict):
        return set(found) == set(wanted) and all(_equal(found[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list | tuple | np.ndarray):
        return list(found) == list(wanted)
    return bool(found == wanted)


def devices(subject: Subject) -> None:
    import torch

    model, cpus = subject.model, (torch.device("cpu"),) * 2
    n_cuda = torch.cuda.device_count()
    wanted = subject.embed(hidden_layer=0)
    for network in model.networks(model.n_layers, cpus, torch.float32):
        network.register_forward_pre_hook(lambda *_: time.sleep(0.002))  # so that both copies get work
    with _settings(batch_tokens=LONGEST):
        _same(subject.embed(device=["cpu", "cpu"], hidden_layer=0), wanted, "a cell on one of two devices")
    if n_cuda:
        devices = [f"cuda:{i}" for i in range(n_cuda)]
        error = np.abs(subject.embed(device=devices, hidden_layer=0) - wanted).max()
        _require(error <= 1e-3 * max(1, np.abs(wanted).max()), f"a cell on a GPU differs by up to {error:.2g}.")


def linear_layers(subject: Subject) -> None:
    import torch

    model = subject.model
    networks = model.networks(model.n_layers, (torch.device("cpu"),), torch.float32)
    linears = {name: one for name, one in networks[0].named_modules() if isinstance(one, torch.nn.Linear)}
    if not linears:
        raise NotOfferedError
    for pooling in subject.model.usable_poolings:
        arguments: dict[str, Any] = {"hidden_layer": 0, "pooling": pooling}
        called = _called(linears, partial(subject.embed, **arguments))
        plain = subject.embed(**arguments)
        for name in set(linears) - called:
            with _changed(linears[name].weight):
                read = not np.array_equal(subject.embed(**arguments), plain, equal_nan=True)
            _require(not read, f"the weights of {name} are read, but the module is not called: a hook has no effect.")


def _called(modules: Mapping[str, torch.nn.Module], run: Callable[[], object]) -> set[str]:
    """Names of the modules whose forward hooks fire during a run."""
    called: set[str] = set()
    handles = [one.register_forward_hook(lambda *_, name=name: called.add(name)) for name, one in modules.items()]
    run()
    for handle in handles:
        handle.remove()
    return called


@contextmanager
def _changed(weight: torch.Tensor) -> Iterator[None]:
    """Change weights within a block."""
    import torch

    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(-2).add_(0.5)
    yield
    with torch.no_grad():
        weight.copy_(before)


def genes(subject: Subject) -> None:
    if "gene" not in subject.model.poolings:
        raise NotOfferedError
    means = subject.embed(pooling="gene")
    states: Any = tl.gene_embeddings(subject.cells, subject.model, **subject.without("pooling"))
    columns = states.obs["gene"].cat.codes.to_numpy()
    sums = np.zeros((subject.cells.n_vars, states.n_vars))
    np.add.at(sums, columns, states.X)
    with np.errstate(invalid="ignore"):
        wanted = sums / np.bincount(columns, minlength=len(sums))[:, None]
    _same(means, wanted, "the mean of a gene")
    alone: Any = tl.gene_embeddings(subject.cells[3].copy(), subject.model, **subject.without("pooling"))
    _same(alone.X, states.X[states.obs["cell"].cat.codes == 3], "the state of a gene of a cell alone")


def scores(subject: Subject) -> None:
    def scored(adata: ad.AnnData) -> NDArray[np.float32]:
        keys = score_keys(KEY)
        found: Any = tl.score(
            adata, subject.model, key_added=KEY, copy=True, **subject.without("pooling", "hidden_layer")
        )
        return found.obs[[keys.count_llh, keys.gene_llh]].to_numpy()

    try:
        wanted = scored(subject.cells)
    except TypeError as error:
        raise NotOfferedError from error
    _require(wanted.dtype == np.float32, f"scores are {wanted.dtype}, not float32.")
    _require(np.isfinite(wanted).all(), "the score of a cell with genes is not finite.")
    alone = [scored(subject.cells[row].copy())[0] for row in range(subject.cells.n_obs)]
    _same(alone, wanted, "the score of a cell alone")
    with _settings(batch_tokens=50, block_rows=5):
        _same(scored(subject.cells), wanted, "the score of a cell in other batches")


def masked_genes(subject: Subject) -> None:
    def scored(adata: ad.AnnData) -> NDArray[np.float32]:
        found: Any = tl.marker_genes(adata, subject.model, key_added=KEY, copy=True, **subject.arguments)
        return found.layers[KEY].toarray()

    try:
        wanted = scored(subject.cells)
    except TypeError as error:
        raise NotOfferedError from error
    _require(((wanted >= -ROUNDING) & (wanted <= 2 + ROUNDING)).all(), "the score of a gene is not between 0 and 2.")
    _require((wanted[subject.cells.X.toarray() == 0] == 0).all(), "a gene that a cell does not express has a score.")
    _require(wanted.any(), "all scores are 0.")
    alone = [scored(subject.cells[row].copy())[0] for row in range(subject.cells.n_obs)]
    _same(alone, wanted, "the score of a gene in a cell alone")


def perturbed_genes(subject: Subject) -> None:
    cells, genes = subject.cells[::4].copy(), subject.cells.var_names[:5].tolist()

    def perturbed(adata: ad.AnnData, kind: Kind) -> Any:
        return tl.perturb(
            adata, subject.model, genes=genes, kind=kind, embeddings=True, key_added=KEY, copy=True, **subject.arguments
        )

    def embedded(adata: ad.AnnData, kind: Kind) -> NDArray[np.float32]:
        return get.perturbed(perturbed(adata, kind), KEY).to_df().sort_index().to_numpy()

    try:
        effects = perturbed(cells, "delete").layers[KEY].toarray()
    except TypeError as error:
        raise NotOfferedError from error
    _require(np.isfinite(effects).all(), "the effect of a gene is not finite.")
    _require((effects[cells.X.toarray() == 0] == 0).all(), "a gene that a cell does not express has an effect.")
    together = embedded(cells, "overexpress")
    distinct = np.unique((together / np.abs(together).max()).round(5), axis=0)  # but for rounding
    _require(len(distinct) > cells.n_obs, "no embedding changes with the genes of a cell.")
    alone = [embedded(cells[row].copy(), "overexpress") for row in range(cells.n_obs)]
    _same(np.concatenate(alone), together, "the embedding of a changed cell alone")


_ALL = (
    *(result, batches, cell_order, gene_order, unknown_genes, containers, empty_cells, bad_input, unchanged_input),
    *(provenance, devices, linear_layers, genes, scores, masked_genes, perturbed_genes),
)
RULES: dict[str, Callable[[Subject], None]] = {rule.__name__.replace("_", " "): rule for rule in _ALL}
"""Rules by name, in the order in which they are checked."""

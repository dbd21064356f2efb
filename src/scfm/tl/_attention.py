"""Attention between genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfm._checks import check_least, is_int, typed
from scfm._docs import with_parameters
from scfm._keys import ATTENTION, GROUPS, PARAMS, check_key, made_by
from scfm._write import Results
from scfm.batch import ranges_of
from scfm.genes import first_index
from scfm.metrics.ranking import cells_of_groups
from scfm.model import load
from scfm.model.arguments import Arguments
from scfm.model.registry import check_offers
from scfm.tasks import Attention, PairMeans
from scfm.tl._checkpoint import Checkpoint
from scfm.tl._named_genes import NamedGenes
from scfm.tl._target import target_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scfm._types import Compat
    from scfm.model import FoundationModel
    from scfm.model.session import CountSession
    from scfm.run.device import Device

__all__ = ["attention"]

COLUMNS = ["query", "key", "weight", "n_cells"]


@typed
@with_parameters
def attention(
    data: AnnData | MuData | str | Path,
    model: str | Path | FoundationModel,
    *,
    groupby: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    checkpoint: str | Path | None = None,
    genes: str | Sequence[str] | None = None,
    heads: Literal["mean", "max"] | Sequence[int] = "mean",
    n_top: int = 50,
    n_cells: int | None = None,
    seed: int = 0,
    modality: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    hidden_layer: int = 0,
    max_tokens: int | None = None,
    device: Device | Sequence[Device] | None = None,
    dtype: str | torch.dtype | None = None,
    compat: Compat | None = None,
    key_added: str = ATTENTION,
    copy: bool = False,
    **options: Any,
) -> AnnData | MuData | Path | None:
    """Average how much genes attend to each other over the cells that express both.

    The weight of a pair is that by which a gene, the query, averages the values of another one, the key, in one layer of
    the model. In each cell the weights of a query on all genes are scaled to a sum of 1; what it spends on special tokens
    is kept apart. Weights say what a layer reads, not what changes its output: for that, mask
    (:func:`scfm.tl.marker_genes`) or perturb (:func:`scfm.tl.perturb`) genes.

    Parameters
    ----------
    %(data)s
    model
        Id, alias, folder, or a loaded model, of a family with attention; others are a TypeError. The attention of
        TranscriptFormer is causal, and higher counts draw more of it.
    groupby
        Column of ``obs``; weights are averaged for each of its values, too. Cells without a value are left out.
    %(out)s
    %(checkpoint)s
    genes
        Queries, by any of their names, as in ``var_names``, another column of ``var``, or as the model knows them. All by
        default. Keys are always all genes.
    heads
        ``"mean"`` or ``"max"`` over all heads, or the numbers of heads to average, from 0 on.
    n_top
        Keys of each query to keep, those with the highest weights.
    n_cells
        Most cells of each group (of all cells without ``groupby``), drawn at random; all by default.
    seed
        Seed of the draw.
    %(matrix)s
    hidden_layer
        Layer whose attention is read: 0 is the last, −1 the one before it. Layers behind it are not computed.
    %(max_tokens)s
    %(device)s
    %(dtype)s
    %(compat)s
    key_added
        Name of all results.
    %(copy)s
    %(options)s

    Returns
    -------
    ``None``, the changed copy with ``copy=True``, or the path ``out``. Sets these fields:

    ``.varp['attention' | key_added]`` : sparse float32, shape ``(n_vars, n_vars)``
        Mean weight of each query (row) on its ``n_top`` heaviest keys. Of several columns of one gene the first has the
        weights.
    ``.varp['attention_n' | f'{key_added}_n']`` : sparse int32, shape ``(n_vars, n_vars)``
        Number of cells that express both.
    ``.uns['attention' | key_added]`` : dict
        ``params``: everything needed to repeat the run, and ``special_tokens``, the mean weight on each of them. With
        ``groupby``, ``groups``: a DataFrame of the heaviest keys with the columns ``group``, ``query``, ``key``,
        ``weight`` and ``n_cells``.

    Raises
    ------
    %(errors)s
    FileExistsError
        If ``out`` exists and ``overwrite`` is not set, or ``checkpoint`` is of another run, or no checkpoint.
    RuntimeError
        If another process goes on with ``checkpoint``.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()[:50].copy()
    >>> scfm.tl.attention(adata, "scfm-mini", genes=["LYZ", "NKG7"], n_top=5)
    >>> scfm.get.attention_df(adata, "LYZ").columns.tolist()
    ['query', 'key', 'weight', 'n_cells']
    """
    arguments = Arguments(
        modality=modality,
        layer=layer,
        use_raw=use_raw,
        gene_key=gene_key,
        pooling="gene",
        hidden_layer=hidden_layer,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
        compat=compat,
        options=options,
    )
    check_key(key_added)
    check_least("n_top", n_top)
    target = target_of(data, ATTENTION, modality=modality, out=out, overwrite=overwrite, copy=copy)
    target.check_free(key_added, ("varp", key_added), ("varp", f"{key_added}_n"))
    loaded = load(model)
    check_offers(loaded.card, "attention_tiles", "has no attention; models of these families have")
    _check_heads(loaded, heads)
    arguments.check_attention(loaded)
    named_heads = heads if isinstance(heads, str) else list(heads)
    asked: dict[str, Any] = {"genes": genes, "heads": named_heads, "groupby": groupby, "n_cells": n_cells, "seed": seed}
    with Checkpoint(checkpoint, target.data, out) as saved:
        with loaded.count_session(target.data, arguments) as session:
            n_obs = session.source.n_obs
            labels: pd.Categorical[Any] = (
                pd.Categorical(["all"] * n_obs) if groupby is None else session.groups(groupby)
            )
            cells = cells_of_groups(None if groupby is None else labels, n_obs, n_cells, seed)
            named = NamedGenes(session, genes)
            pairs = _pairs(session, named, labels, cells)
            task = Attention(session.model, session.options, heads, pairs)
            params = session.params(saved.run(session, task, made_by(ATTENTION) | asked, ranges_of(cells)))
            named.check_expressed(pairs.expressed(), len(cells))
            params |= {"heads": named_heads, "n_top": n_top, "n_cells_averaged": len(cells), "seed": seed}
            params |= {"special_tokens": _named(session, pairs)}
            tokens = session.tokens_for(target.var_names)
        del params["pooling"]
        found = _Pairs(pairs, tokens, target.var_names, n_top)
        result: dict[str, Any] = {PARAMS: params}
        if groupby is not None:
            params["groupby"] = groupby
            result[GROUPS] = found.tables(labels.categories.astype(str).tolist())
        weights, counts = found.matrices()
        return target.store(Results(varp={key_added: weights, f"{key_added}_n": counts}, uns={key_added: result}))


def _check_heads(model: FoundationModel, heads: Literal["mean", "max"] | Sequence[int]) -> None:
    """Raise a ValueError if a head is not there."""
    n_heads = model.config.n_heads
    if not isinstance(heads, str) and not (heads and all(is_int(head) and 0 <= head < n_heads for head in heads)):
        msg = (
            f"heads={heads!r}: {model.card.id} has the heads 0 to {n_heads - 1}; name one at least, or 'mean' or 'max'."
        )
        raise ValueError(msg)


def _pairs(
    session: CountSession, named: NamedGenes, labels: pd.Categorical[Any], cells: NDArray[np.int64]
) -> PairMeans:
    """Where the weights of the chosen cells are added up."""
    tokens = session.genes.tokens
    groups = np.full(session.source.n_obs, -1)
    groups[cells] = labels.codes[cells]
    return PairMeans(named.tokens, np.unique(tokens[tokens >= 0]), groups, len(labels.categories))


def _named(session: CountSession, pairs: PairMeans) -> dict[str, float]:
    """Mean weight on tokens that are no genes, by their names."""
    names = session.model.vocabulary.token_names
    return {names.get(token, f"token {token}"): mean for token, mean in pairs.special_means().items()}


class _Pairs:
    """The heaviest keys of each query, in the columns of an AnnData."""

    def __init__(self, pairs: PairMeans, tokens: NDArray[np.int32], names: pd.Index, n_top: int) -> None:
        self._queries, self._keys = (first_index(pd.Index(tokens), pd.Index(of)) for of in (pairs.queries, pairs.keys))
        self._pairs, self._names, self._n_top = pairs, names, n_top

    def matrices(self) -> tuple[Any, Any]:
        """Weights and numbers of cells over all groups."""
        from scipy import sparse

        table = self._top(self._pairs.sums.sum(axis=0), self._pairs.counts.sum(axis=0))
        n = len(self._names)
        place = table["query"].to_numpy(), table["key"].to_numpy()
        weights = sparse.csr_matrix((table["weight"].to_numpy(np.float32), place), shape=(n, n))
        return weights, sparse.csr_matrix((table["n_cells"].to_numpy(np.int32), place), shape=(n, n))

    def tables(self, groups: list[str]) -> pd.DataFrame:
        """The same for each group, with names of genes."""
        parts = []
        for group, sums, counts in zip(groups, self._pairs.sums, self._pairs.counts, strict=True):
            table = self._top(sums, counts)
            table.insert(0, "group", group)
            parts.append(table)
        found = pd.concat(parts, ignore_index=True)
        for column in ("query", "key"):
            found[column] = self._names[found[column]].astype(str)
        return found.astype({"weight": np.float32})

    def _top(self, sums: NDArray[np.float64], counts: NDArray[np.int32]) -> pd.DataFrame:
        """Columns of queries and keys, heaviest key first; of equal ones, the first in the vocabulary."""
        there = np.flatnonzero(self._keys >= 0)
        parts = [pd.DataFrame({name: [] for name in COLUMNS}).astype({"query": int, "key": int})]
        for row in np.flatnonzero(self._queries >= 0):
            keys = there[sums[row, there] > 0]
            weights = sums[row, keys] / counts[row, keys]
            best = np.argsort(-weights, kind="stable")[: self._n_top]
            columns = self._queries[row], self._keys[keys[best]], weights[best], counts[row, keys[best]]
            parts.append(pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))))
        return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)

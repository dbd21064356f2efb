"""Probabilities of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfm._checks import check_least, check_memory, typed
from scfm._docs import with_parameters
from scfm._keys import PARAMS, PREDICT_GENES, PREDICTED, check_key, made_by
from scfm._write import Results
from scfm.batch import ranges_of
from scfm.metrics.ranking import cells_of_groups
from scfm.model import load
from scfm.model.arguments import Arguments
from scfm.model.registry import check_offers
from scfm.tasks import PredictGenes
from scfm.tl._checkpoint import Checkpoint
from scfm.tl._named_genes import NamedGenes
from scfm.tl._target import target_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scfm._types import Compat
    from scfm.model import FoundationModel
    from scfm.model.session import CountSession
    from scfm.run.device import Device

__all__ = ["predict_genes"]

EACH = "each"


@typed
@with_parameters
def predict_genes(
    data: AnnData | MuData | str | Path,
    model: str | Path | FoundationModel,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    checkpoint: str | Path | None = None,
    genes: str | Sequence[str] | None = None,
    mask: Literal["each", "given"] | float = "each",
    n_top: int = 20,
    n_cells: int | None = None,
    seed: int = 0,
    modality: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    max_tokens: int | None = None,
    device: Device | Sequence[Device] | None = None,
    dtype: str | torch.dtype | None = None,
    compat: Compat | None = None,
    key_added: str = PREDICT_GENES,
    copy: bool = False,
    **options: Any,
) -> AnnData | MuData | Path | None:
    """Compute how probable each expressed gene is to the model, and what it would put in its place.

    Models that were trained with masked genes (Geneformer, scCello, scfm-mini) see the cell with ``<mask>`` in the place of
    the gene, whose rank they so know; TranscriptFormer sees the genes that are read before it. The probability is the softmax
    of the head that the model was trained with, over all tokens.

    Parameters
    ----------
    %(data)s
    model
        Id, alias, folder, or a loaded model, of a family that predicts genes; others are a TypeError.
    %(out)s
    %(checkpoint)s
    %(genes)s
    mask
        ``"each"``: one gene at a time, which takes a run of the network for every gene of every cell. ``"given"``: all of
        ``genes`` together. A number above 0 and up to 1: this share of the genes of a cell together, drawn by ``seed`` and the
        cell, so that one run gives many probabilities. TranscriptFormer masks nothing.
    n_top
        Most probable genes in the place of each gene to store; 0 for none.
    n_cells
        Number of cells, drawn at random; all by default.
    seed
        Seed of the draws.
    %(matrix)s
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

    ``.layers['predict_genes' | key_added]`` : sparse float32, shape ``(n_obs, n_vars)``
        Probability of each gene in its cell, 0 to 1. What is stored was computed.
    ``.uns['predict_genes' | key_added]`` : dict
        ``params``, everything needed to repeat the run. ``predicted``, a DataFrame with the ``n_top`` genes (and special
        tokens) that are the most probable in the place of each gene, on average over the cells in which it was predicted:
        ``gene``, ``predicted``, ``probability`` and ``n_cells``.

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
    >>> adata = scfm.datasets.pbmc68k()[:20].copy()
    >>> scfm.tl.predict_genes(adata, "scfm-mini", genes=["NKG7", "LYZ"], n_top=3)
    >>> adata.uns["predict_genes"]["predicted"].columns.tolist()
    ['gene', 'predicted', 'probability', 'n_cells']
    """
    arguments = Arguments(
        modality=modality,
        layer=layer,
        use_raw=use_raw,
        gene_key=gene_key,
        pooling="gene",
        hidden_layer=0,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
        compat=compat,
        options=options,
    )
    check_key(key_added)
    check_least("n_top", n_top, 0)
    target = target_of(data, PREDICT_GENES, modality=modality, out=out, overwrite=overwrite, copy=copy)
    target.check_free(key_added, ("layers", key_added))
    loaded = load(model)
    check_offers(loaded.card, "predictor", "predicts no genes; models of these families do")
    mask_token = _mask_token(loaded, genes, mask)
    asked = {"genes": genes, "mask": mask, "n_cells": n_cells, "seed": seed, "n_top > 0": n_top > 0}
    with Checkpoint(checkpoint, target.data, out) as saved:
        with loaded.count_session(target.data, arguments) as session:
            named = NamedGenes(session, genes)
            cells = cells_of_groups(None, session.source.n_obs, n_cells, seed)
            known = session.tokens_for(target.var_names)
            tokens = np.where(np.isin(known, named.tokens), known, np.int32(-1))
            size = _size(session, tokens, n_top)
            task = PredictGenes(session.model, session.options, tokens, mask_token, mask, seed, size)
            params = session.params(saved.run(session, task, made_by(PREDICT_GENES) | asked, ranges_of(cells)))
            if isinstance(mask, str):  # of a share, genes may be missing because they were not drawn
                named.check_expressed(task.expressed(), len(cells))
            params |= {"n_cells_predicted": len(cells), "seed": seed, "n_top": n_top}
            params |= {} if mask_token is None else {"mask": mask}
            del params["pooling"]
            stored: dict[str, Any] = {PARAMS: params}
            if n_top:
                stored[PREDICTED] = _table(task, session.model.vocabulary.token_names, known, target.var_names, n_top)
            probabilities = task.probabilities(session.source.n_obs)
        return target.store(Results(layers={key_added: probabilities}, uns={key_added: stored}))


def _mask_token(model: FoundationModel, genes: str | Sequence[str] | None, mask: str | float) -> int | None:
    """The token of ``<mask>``, ``None`` for a causal model; a ValueError for a mask that does not fit."""
    causal = not model.implements("masked_outputs")
    if causal and mask != EACH:
        msg = f"mask={mask!r}: {model.card.id} predicts each gene from those before it and masks none; leave mask out."
        raise ValueError(msg)
    if mask == "given" and genes is None:
        msg = "mask='given' masks the genes= together; name them, or use 'each' or a share such as 0.15."
        raise ValueError(msg)
    if not isinstance(mask, str) and not 0 < mask <= 1:
        msg = f"mask={mask!r} is not a share of the genes; give a number above 0 and up to 1, 'each' or 'given'."
        raise ValueError(msg)
    if causal:
        return None
    if not model.has_mask:
        msg = f"The vocabulary of {model.card.id} has no <mask>, so it predicts no genes."
        raise TypeError(msg)
    return model.vocabulary.special_tokens["<mask>"]


def _size(session: CountSession, tokens: NDArray[Any], n_top: int) -> int:
    """Tokens whose mean probabilities are kept; a ValueError if they would not fit into memory."""
    size = session.model.vocabulary.size if n_top else 0
    n = len(np.unique(tokens))
    check_memory(
        8 * n * size, f"Mean probabilities of {size:,} tokens for {n:,} genes", "Name fewer genes=, or use n_top=0."
    )
    return size


def _table(
    task: PredictGenes, called: Mapping[int, str], tokens: NDArray[np.int32], names: pd.Index, n_top: int
) -> pd.DataFrame:
    """The most probable tokens in the place of each gene, by the names of the object or, for others, of the model."""
    own = zip(tokens[::-1].tolist(), names[::-1], strict=True)  # of several columns of one gene, the first
    called = {**called, **{token: str(name) for token, name in own if token >= 0}}
    means, counts = task.means()
    parts = [pd.DataFrame({"gene": [], "predicted": [], "probability": [], "n_cells": []})]
    for query, row, n in zip(task.queries.tolist(), means, counts.tolist(), strict=True):
        if n:
            best = np.argsort(-row, kind="stable")[:n_top]
            predicted = [called.get(token, f"token {token}") for token in best.tolist()]
            entry = {"gene": called[query], "predicted": predicted, "probability": row[best], "n_cells": n}
            parts.append(pd.DataFrame(entry))
    found = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    return found.astype({"gene": str, "predicted": str, "probability": np.float32, "n_cells": np.int64})

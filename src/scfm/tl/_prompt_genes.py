"""What a causal model expects after some genes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm._text import some
from scfm.batch import make_batch
from scfm.model import load
from scfm.model.arguments import Arguments
from scfm.model.registry import check_offers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from scfm.model import FoundationModel
    from scfm.model.session import CountSession
    from scfm.tasks.predict_genes import Predictor

__all__ = ["prompt_genes"]


@typed
@with_parameters
def prompt_genes(
    model: str | Path | FoundationModel,
    prompts: Mapping[str, Sequence[str]] | Sequence[str],
    *,
    count: float = 1.0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Ask a causal model (TranscriptFormer) which genes it expects after others, without any cells.

    The result is the pointwise mutual information of a prompt and each gene ``g``, in nats:

        PMI(prompt, g) = log p(g | start, prompt) − log p(g | start)

    with the probabilities of the gene head that the model was trained with. Pearce et al. 2025
    (doi:10.1101/2025.04.25.650731) prompt with transcription factors to look for their targets. A high value says that the
    model saw both in the same cells; it tells neither a direction nor a regulation, and genes that are rare after the start
    alone get extreme values.

    Parameters
    ----------
    model
        Id, alias, folder, or a loaded model, of a causal family that predicts genes; others are a TypeError.
    prompts
        Names of prompts and their genes, in the order in which the model reads them; or genes, each a prompt by itself.
    count
        Count of each gene of a prompt, above 0.
    device
        ``"cpu"``, ``"cuda"``, ``"mps"``; by default the fastest there is.
    %(dtype)s
    %(options)s

    Returns
    -------
    float32, a row for each gene of the model, by its id, and a column for each prompt; the genes of a prompt are NaN in its
    column.

    Raises
    ------
    TypeError
        If an argument has another type than it takes, or the model is not causal or predicts no genes.
    KeyError
        If the model does not know a gene.
    ValueError
        If there is no prompt, one is empty or names a gene twice, ``count`` is not positive, or an option is out of place.
    FileNotFoundError
        If a file that an option names does not exist.

    Examples
    --------
    >>> import scfm, tempfile
    >>> model = scfm.model.load(scfm.testing.write_transcriptformer(tempfile.mkdtemp()))
    >>> first, second, *_ = model.vocabulary.genes.tolist()
    >>> scfm.tl.prompt_genes(model, {"both": [first, second]}).columns.tolist()
    ['both']
    """
    named = _named(prompts)
    if not (np.isfinite(count) and count > 0):
        msg = f"count={count!r} must be above 0: a gene of a prompt is expressed."
        raise ValueError(msg)
    loaded = load(model)
    check_offers(loaded.card, "predictor", "predicts no genes; models of these families do")
    if loaded.implements("masked_outputs"):
        msg = f"{loaded.card.id} predicts masked genes, not those that follow others: prompts take a causal model, as tf-sapiens."
        raise TypeError(msg)
    arguments = Arguments(
        pooling="gene", hidden_layer=0, device=device, dtype=dtype, options={"gene_order": "input"} | options
    )
    columns: dict[str, np.ndarray] = {}
    predict: Predictor | None = None
    for name, genes in named.items():
        cell = AnnData(np.full((1, len(genes)), count, np.float32), var=pd.DataFrame(index=genes))
        with loaded.count_session(cell, arguments) as session:
            predict = predict or session.model.predictor(session.options, session.device, session.dtype)
            columns[name] = _information(session, genes, predict)
    return pd.DataFrame(columns, index=pd.Index(loaded.vocabulary.genes))


def _named(prompts: Mapping[str, Sequence[str]] | Sequence[str]) -> dict[str, list[str]]:
    """Genes of each prompt, by its name."""
    given = prompts.items() if isinstance(prompts, Mapping) else [(gene, gene) for gene in prompts]
    named = {name: [genes] if isinstance(genes, str) else list(genes) for name, genes in given}
    bad = [name for name, genes in named.items() if not genes or len(set(genes)) < len(genes)]
    if bad or not named:
        msg = (
            f"prompts: {some(bad)} are empty or name a gene twice."
            if bad
            else "prompts is empty: name at least one gene."
        )
        raise ValueError(msg)
    return named


def _information(session: CountSession, genes: list[str], predict: Predictor) -> np.ndarray:
    """Pointwise mutual information of one prompt and each gene of the vocabulary."""
    import torch

    tokens, model = session.genes.tokens, session.model
    unknown = [gene for gene, token in zip(genes, tokens.tolist(), strict=True) if token < 0]
    if unknown:
        msg = f"{model.card.id} does not know {some(unknown)}, so it cannot be prompted with them."
        raise KeyError(msg)
    network = session.networks()[0]
    if len(np.unique(tokens)) < len(tokens):
        msg = f"The prompt {genes} names a gene twice, by different names."
        raise ValueError(msg)
    batch = make_batch(next(session.tokens()), np.array([0]))
    if len(batch.tokens) <= len(genes):
        msg = f"The options leave the prompt of {len(genes)} genes out, or cut it; leave out {', '.join(model.dropping_options)}."
        raise ValueError(msg)
    start = len(batch.tokens) - len(genes) - 1
    with torch.inference_mode():
        states = model.forward(network, batch, session.options)[[start, len(batch.tokens) - 1]]
        before, after = predict(network, states).cpu().numpy()
    found = (after - before)[model.vocabulary.tokens].astype(np.float32)
    found[np.isin(model.vocabulary.tokens, tokens)] = np.nan
    return found

"""Log-likelihoods of cells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm._keys import PARAMS, score_keys
from scfm._write import Results
from scfm.model import load
from scfm.model.arguments import Arguments
from scfm.model.registry import check_offers
from scfm.tasks import Scores
from scfm.tl._target import target_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from anndata import AnnData
    from mudata import MuData

    from scfm._types import Compat
    from scfm.model import FoundationModel
    from scfm.run.device import Device

__all__ = ["score"]


@typed
@with_parameters
def score(
    data: AnnData | MuData | str | Path,
    model: str | Path | FoundationModel,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    modality: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    max_tokens: int | None = None,
    device: Device | Sequence[Device] | None = None,
    dtype: str | torch.dtype | None = None,
    compat: Compat | None = None,
    per_gene: bool = False,
    key_added: str | None = None,
    copy: bool = False,
    **options: Any,
) -> AnnData | MuData | Path | None:
    """Score how likely cells are under a generative foundation model (TranscriptFormer).

    Each gene of a cell, and its count, is predicted from the genes that are read before it; the scores are means over
    the genes of a cell, in nats. Both are log-likelihoods: higher is more likely. (Upstream's ``llh`` and
    ``gene_llh`` are *negative* log-likelihoods.)

    Parameters
    ----------
    %(data)s
    model
        Id, alias, folder, or a loaded model, of a family that has likelihoods; others are a TypeError. Genes that
        ``pretrained_embedding=`` brings have none, which is a ValueError.
    %(out)s
    %(matrix)s
    %(max_tokens)s
    %(device)s
    %(dtype)s
    compat
        ``"upstream"``: as upstream, which takes the last gene of a cell that fills the longest input for the end of
        the sequence, with a count of 1. The sign stays.
    per_gene
        Also store the scores of every gene in every cell.
    key_added
        Name that takes the place of the family in all results.
    %(copy)s
    %(options)s

    Returns
    -------
    ``None``, the changed copy with ``copy=True``, or the path ``out``. Sets these fields:

    ``.obs['<family>_count_llh']`` : float32
        Mean log-likelihood of the counts of the genes, given that they are expressed (zero-truncated Poisson).
    ``.obs['<family>_gene_llh']`` : float32
        Mean log-probability of the genes. Both are NaN for a cell without a gene of the model.
    ``.layers['<family>_count_llh']`` and ``.layers['<family>_gene_llh']`` : sparse float32, shape ``(n_obs, n_vars)``
        With ``per_gene``: the log-likelihoods of each gene, whose means are in ``obs``; no entry for genes not read.
    ``.uns['<family>_score']['params']`` : dict
        Everything needed to repeat the run.

    Raises
    ------
    %(errors)s
    FileExistsError
        If ``out`` exists and ``overwrite`` is not set.

    Examples
    --------
    >>> import scfm, tempfile
    >>> folder = scfm.testing.write_transcriptformer(tempfile.mkdtemp())
    >>> model = scfm.model.load(folder)
    >>> adata = scfm.datasets.synthetic(5, 50, genes_per_cell=8, genes=model.vocabulary.genes[:50])
    >>> scfm.tl.score(adata, model)
    >>> bool((adata.obs["transcriptformer_gene_llh"] < 0).all())
    True
    """
    arguments = Arguments(
        modality=modality,
        layer=layer,
        use_raw=use_raw,
        gene_key=gene_key,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
        compat=compat,
        options=options,
    )
    score_keys("check", key_added)
    target = target_of(data, "score", modality=modality, out=out, overwrite=overwrite, copy=copy)
    loaded = load(model)
    check_offers(loaded.card, "scorer", "has no likelihood; models of these families have")
    keys = score_keys(loaded.family, key_added)
    names = (keys.count_llh, keys.gene_llh)
    target.check_free(keys.uns, *((slot, name) for slot in ("obs", "layers")[: 1 + per_gene] for name in names))
    with loaded.count_session(target.data, replace(arguments, pooling="gene", hidden_layer=0)) as session:
        tokens = session.tokens_for(target.var_names) if per_gene else None
        task = Scores(session.model, session.options, session.source.n_obs, tokens)
        params = session.params(session.run(task))
    del params["pooling"]
    columns = dict(zip(names, task.values.T, strict=True))
    layers = dict(zip(names, task.by_gene(), strict=True)) if per_gene else {}
    return target.store(Results(obs=columns, layers=layers, uns={keys.uns: {PARAMS: params}}))

"""How much the states of genes depend on the cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm._keys import GENE_CONTEXT, PARAMS, check_key, made_by
from scfm._write import Results
from scfm.model import load
from scfm.model.arguments import Arguments
from scfm.tasks import GeneDirections
from scfm.tl._checkpoint import Checkpoint
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

__all__ = ["gene_context"]


@typed
@with_parameters
def gene_context(
    data: AnnData | MuData | str | Path,
    model: str | Path | FoundationModel,
    *,
    groupby: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    checkpoint: str | Path | None = None,
    modality: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    hidden_layer: int | None = None,
    max_tokens: int | None = None,
    device: Device | Sequence[Device] | None = None,
    dtype: str | torch.dtype | None = None,
    compat: Compat | None = None,
    key_added: str = GENE_CONTEXT,
    copy: bool = False,
    **options: Any,
) -> AnnData | MuData | Path | None:
    """Measure how much the state of each gene varies between cells, or between groups of cells.

    A model gives a gene another state in every cell. Theodoris et al. 2023 (doi:10.1038/s41586-023-06139-9) found that the
    states of some genes depend on the context more than those of others. Here the variance of a gene is that of directions:
    one minus the length of the mean of its states, each scaled to length 1. It equals one minus the mean cosine of the states
    with their mean direction: 0 where all states are parallel, near 1 where they point anywhere. States are read once and
    not kept.

    Parameters
    ----------
    %(data)s
    %(model)s
    groupby
        Column of ``obs``: compare the mean directions of the groups, each counted once, instead of single cells.
    %(out)s
    %(checkpoint)s
    %(matrix)s
    %(hidden_layer)s
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

    ``.varm['gene_context' | key_added]`` : DataFrame, shape ``(n_vars, 2)``
        ``variance``, float32, 0 to 1, NaN for a gene that the model does not know or no cell expresses; and ``n``, the number
        of cells or groups that express it. Genes of few cells have a low variance by chance: compare genes of like ``n``.
    ``.uns['gene_context' | key_added]['params']`` : dict
        Everything needed to repeat the run.

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
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.tl.gene_context(adata, "scfm-mini", groupby="bulk_labels")
    >>> adata.varm["gene_context"].columns.tolist()
    ['variance', 'n']
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
    target = target_of(data, GENE_CONTEXT, modality=modality, out=out, overwrite=overwrite, copy=copy)
    target.check_free(key_added, ("varm", key_added))
    loaded = load(model)
    asked = made_by(GENE_CONTEXT) | {"groupby": groupby}
    with Checkpoint(checkpoint, target.data, out) as saved:
        with loaded.count_session(target.data, arguments) as session:
            labels = None if groupby is None else session.groups(groupby)
            if labels is not None and not (labels.codes >= 0).any():
                msg = f"groupby={groupby!r} holds no value but missing ones, so there is no group."
                raise ValueError(msg)
            task = GeneDirections(
                session.model, session.options, session.genes.tokens, session.model.n_features, labels
            )
            params = session.params(saved.run(session, task, asked)) | ({} if groupby is None else {"groupby": groupby})
            columns = session.columns_for(target.var_names)
        del params["pooling"]
        variances, counts = task.variances()
        table = pd.DataFrame({"variance": np.float32(np.nan), "n": 0}, index=target.var_names)
        found = columns >= 0
        table.loc[found, "variance"], table.loc[found, "n"] = variances[columns[found]], counts[columns[found]]
        return target.store(Results(varm={key_added: table}, uns={key_added: {PARAMS: params}}))

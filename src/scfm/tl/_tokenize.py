"""Tokenised datasets of cells."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm._paths import atomic, check_new
from scfm.model import load_recipe
from scfm.model.arguments import Arguments
from scfm.model.registry import check_offers
from scfm.read.token_files import is_file, is_saved, write_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData

    from scfm._types import Compat
    from scfm.model import FoundationModel

__all__ = ["tokenize"]

logger = logging.getLogger("scfm")

CELL_ID = "cell_id"
OF_TOKENS = ("model", "family", "revision", "max_tokens", "compat", "options", "matrix", "genes", "files", "versions")
"""Entries of the description of a run that concern the tokens."""


@typed
@with_parameters
def tokenize(
    data: AnnData | MuData | str | Path,
    model: str | Path | FoundationModel,
    out: str | Path,
    *,
    obs_columns: Sequence[str] = (),
    overwrite: bool = False,
    modality: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    max_tokens: int | None = None,
    compat: Compat | None = None,
    dictionaries: str | Path | Sequence[str | Path] | None = None,
    **options: Any,
) -> Path:
    """Write cells as a tokenised dataset in the format of Hugging Face ``datasets`` (needs the extra ``arrow``).

    The layout is that of Geneformer's tokenizer: one row per cell, its tokens in ``input_ids``, their number in
    ``length``. ``datasets.load_from_disk`` opens the folder, and :func:`scfm.tl.embed_tokenized` returns the same embedding
    as :func:`scfm.tl.embed` does from counts. Weights are not needed, and memory is bounded by a block of cells.

    Parameters
    ----------
    %(data)s
    model
        Id, alias, folder, or a loaded model, of a family that reads ranked genes, as Geneformer.
    out
        Folder, ``.arrow`` file or ``.parquet`` file to write. It appears when it is complete.
    obs_columns
        Further columns to write, from ``obs``. The names of the cells are always written, as ``cell_id``.
    overwrite
        Replace ``out`` if it exists.
    %(matrix)s
    %(max_tokens)s
    %(compat)s
    dictionaries
        Published gene dictionaries (files, or folders that hold them), for a model that is not on this machine.
    %(options)s

    Returns
    -------
    The path ``out``. Cells that an option drops are not written; a cell without genes of the model is written without genes.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    TypeError
        If the model does not read ranked genes, or as :func:`scfm.tl.embed`.
    KeyError
        If a column is not in ``obs``.
    FileNotFoundError
        If ``data`` or the folder of ``out`` does not exist.
    FileExistsError
        If ``out`` exists and is not to be replaced, or is a folder of something else.
    ValueError
        If a column cannot be stored, or as :func:`scfm.tl.embed`.

    Examples
    --------
    >>> import scfm, tempfile
    >>> adata = scfm.datasets.pbmc68k()[:10]
    >>> path = scfm.tl.tokenize(adata, "scfm-mini", tempfile.mkdtemp() + "/tokens", obs_columns=["bulk_labels"])
    >>> list(scfm.tl.embed_tokenized(path, "scfm-mini").obs)
    ['length', 'cell_id', 'bulk_labels']
    """
    out = Path(out).expanduser()
    arguments = Arguments(
        modality=modality,
        layer=layer,
        use_raw=use_raw,
        gene_key=gene_key,
        max_tokens=max_tokens,
        compat=compat,
        options=options,
    )
    check_new(out, overwrite=overwrite, hint="pass overwrite=True", replaces=None if is_file(out) else is_saved)
    if CELL_ID in obs_columns:
        msg = f"obs_columns: {CELL_ID!r} is the column of cell names; rename the column of obs."
        raise ValueError(msg)
    recipe = load_recipe(model, dictionaries)
    words = "reads counts, which a tokenised dataset does not contain; these families read ranked genes"
    check_offers(recipe.card, "rank_frame", words)
    with recipe.session(data, arguments) as session:
        source = session.source
        missing = [name for name in obs_columns if name not in source.obs_columns]
        if missing:
            msg = f"obs_columns: {missing[0]!r} is not a column of obs; found {source.obs_columns}."
            raise KeyError(msg)
        columns = {name: source.column(name).array for name in obs_columns}
        obs = pd.DataFrame({CELL_ID: source.obs_names.array} | columns)
        about = {name: value for name, value in session.description().items() if name in OF_TOKENS}
        with atomic(out, overwrite=overwrite) as work:
            n_cells = write_tokens(work, session.tokens(), obs, about)
    logger.info("tokenised %d of %d cells", n_cells, source.n_obs)
    return out

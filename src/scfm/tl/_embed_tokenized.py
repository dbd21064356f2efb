"""Embeddings of cells that are tokenised already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm._keys import PARAMS, made_by, result_keys
from scfm._paths import atomic, check_new
from scfm.model import load
from scfm.model.arguments import Arguments
from scfm.read import is_tokenized
from scfm.read.convert import check_storable
from scfm.run import ArraySink
from scfm.tasks import Embed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from anndata import AnnData

    from scfm._types import Quantization
    from scfm.model import FoundationModel
    from scfm.run.device import Device

__all__ = ["embed_tokenized"]


@typed
@with_parameters
def embed_tokenized(
    data: str | Path | Sequence[str | Path],
    model: str | Path | FoundationModel,
    *,
    pooling: str | None = None,
    hidden_layer: int | None = None,
    max_tokens: int | None = None,
    device: Device | Sequence[Device] | None = None,
    dtype: str | torch.dtype | None = None,
    quantize: Quantization | None = None,
    key_added: str | None = None,
) -> AnnData:
    """Embed cells of a tokenised dataset, as Hugging Face ``datasets`` keeps them (needs the extra ``arrow``).

    The token ids must be those of the model: scCello publishes its data so, and Geneformer's tokenizer writes such
    folders. Special tokens around a cell may be there or not; cells that are too long are cut.

    Parameters
    ----------
    data
        A ``.parquet`` or ``.arrow`` file, a folder of them or one that ``save_to_disk`` wrote, a pattern, or a list. Tokens
        are in the column ``input_ids`` or ``gene_token_ids``.
    model
        Id, alias, folder, or a loaded model, of a family that reads ranked genes, as Geneformer.
    pooling
        As for :func:`scfm.tl.embed`, except ``"gene"``, which takes counts.
    %(hidden_layer)s
    %(max_tokens)s
    %(device)s
    %(dtype)s
    %(quantize)s
    %(key_added)s

    Returns
    -------
    An AnnData object without genes: all columns of the dataset but lists in ``obs``, and the results of
    :func:`scfm.tl.embed`.

    Raises
    ------
    TypeError
        If the model does not read ranked genes.
    ValueError
        If ``data`` is no such dataset, a token is not in the vocabulary, or an argument is out of range.
    ImportError
        If pyarrow, or the package that ``quantize`` takes, is not installed.

    Examples
    --------
    >>> import pyarrow as pa, pyarrow.parquet, scfm, tempfile
    >>> path = tempfile.mkdtemp() + "/cells.parquet"
    >>> pa.parquet.write_table(pa.table({"input_ids": [[70, 20], [50]], "cell_type": ["T", "B"]}), path)
    >>> scfm.tl.embed_tokenized(path, "scfm-mini").obsm["X_scfm_mini"].shape
    (2, 128)
    """
    arguments = Arguments(
        pooling=pooling,
        hidden_layer=hidden_layer,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
        quantize=quantize,
    )
    result_keys("check", key_added)
    if not is_tokenized(data):
        msg = f"{data!r} is no tokenised dataset (.arrow, .parquet, or a folder of them); scfm.tl.embed takes counts."
        raise ValueError(msg)
    return _embedded(load(model), data, arguments, key_added, is_stored=False)


def write_tokenized(
    data: Path,
    model: str | Path | FoundationModel,
    out: Path,
    arguments: Arguments,
    groupby: str | None,
    key_added: str | None,
    *,
    overwrite: bool,
) -> Path:
    """Embed the cells of a tokenised dataset into a new file; what :func:`scfm.tl.embed` does with one."""
    if out.suffix != ".h5ad":
        msg = f"A tokenised dataset becomes an .h5ad file, with its annotation and the embedding; out is {out}."
        raise ValueError(msg)
    if groupby is not None:
        msg = f"groupby={groupby!r} averages genes, which takes counts; {data} is tokenised already. Leave it out."
        raise ValueError(msg)
    check_new(out, overwrite=overwrite, hint="pass overwrite=True")
    adata = _embedded(load(model), data, arguments, key_added, is_stored=True)
    with atomic(out) as work:
        adata.write_h5ad(work)
    return out


def _embedded(
    loaded: FoundationModel,
    data: str | Path | Sequence[str | Path],
    arguments: Arguments,
    key_added: str | None,
    *,
    is_stored: bool,
) -> AnnData:
    from anndata import AnnData

    with loaded.session(data, arguments) as session:
        adata = AnnData(obs=session.source.obs)
        if is_stored:
            adata.strings_to_categoricals()
            check_storable(adata.obs, "obs", data)
        sink = ArraySink(session.source.n_obs, session.model.n_features)
        params = session.params(session.run(Embed(session.model, session.options, sink)))
    keys = result_keys(loaded.family, key_added)
    adata.obsm[keys.obsm] = sink.values
    adata.uns[keys.uns] = {PARAMS: made_by("embed") | params}
    return adata

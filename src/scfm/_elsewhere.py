"""Names that other packages give to the arguments of scfm, and arguments of theirs that it does not need."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ARGUMENTS", "Argument", "advice"]


class Argument(NamedTuple):
    """An argument of another package."""

    ours: str = ""
    """Its name in scfm; empty if it is not needed."""
    note: str = ""
    """Why it is not needed, or what differs."""
    has_value: bool = True
    """Whether a value follows it on a command line."""
    values: Mapping[str, str] = MappingProxyType({})
    """Values on a command line that have another name in scfm."""


_PACKED = (
    "cells are packed by their length; scfm.settings.batch_tokens (SCFM_BATCH_TOKENS) bounds the tokens of a batch"
)
_AHEAD = "files are read and encoded in threads while the network computes; scfm.settings.threads (SCFM_THREADS) says in how many"

ARGUMENTS = {
    # transcriptformer inference
    "checkpoint_path": Argument("model"),
    "device": Argument("device", values={"auto": "null"}),
    "gene_col_name": Argument("gene_key"),
    "model_type": Argument("family"),
    "precision": Argument("dtype", values={"16-mixed": "bfloat16", "32": "float32"}),
    "batch_size": Argument(note=_PACKED),
    "compile_block_mask": Argument(note="nothing is compiled"),
    "disable_compile_block_mask": Argument(note="nothing is compiled", has_value=False),
    "n_data_workers": Argument(note=_AHEAD),
    "obs_keys": Argument(note="all columns of obs are kept"),
    "oom_dataloader": Argument(note="files are always read block by block", has_value=False),
    "pad_zeros": Argument(note="there is no padding"),
    "pin_memory": Argument(note=_AHEAD),
    "use_oom_dataloader": Argument(note="files are always read block by block"),
    # transcriptformer download-data
    "max_retries": Argument(note="an interrupted download is resumed, until five attempts in a row bring nothing"),
    "no_metadata": Argument(note="the metadata of a dataset are in a small JSON file beside it", has_value=False),
    "output_dir": Argument("out"),
    "processes": Argument("workers"),
    # Geneformer
    "emb_label": Argument(note="all columns of obs are kept"),
    "emb_layer": Argument("hidden_layer", note="0 is the last layer, -1 the one before it"),
    "emb_mode": Argument("pooling"),
    "forward_batch_size": Argument(note=_PACKED),
    "max_ncells": Argument(note="all cells are embedded; to embed fewer, subset the data"),
    "model_input_size": Argument("max_tokens"),
    "model_version": Argument(note="each model comes with its vocabulary and special tokens"),
    "nproc": Argument(note=_AHEAD),
    "token_dictionary_file": Argument("dictionaries"),
    # Helical
    "accelerator": Argument(note="device= takes several devices"),
    "gene_names": Argument("gene_key"),
    "model_name": Argument("model"),
}
"""Arguments by their name in the other package, with underscores."""


def advice(name: str) -> str:
    """Advice on an argument of another package, as the end of a sentence; empty if there is none.

    Examples
    --------
    >>> from scfm._elsewhere import advice
    >>> advice("emb_mode")
    'it is called pooling= here'
    """
    known = ARGUMENTS.get(name)
    if known is None or known.ours == name:
        return ""
    if not known.ours:
        return f"it is not needed: {known.note}"
    return f"it is called {known.ours}= here" + (f"; {known.note}" if known.note else "")

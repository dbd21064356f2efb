"""What is typed, as the parser knows it: dashes or underscores, flags with or without a value, upstream's names."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["WrongCall", "as_commands", "as_options", "known_words"]

RENAMED: dict[str, tuple[str, dict[str, str]]] = {
    "checkpoint_path": ("model", {}),
    "gene_col_name": ("gene_key", {}),
    "model_type": ("family", {}),
    "precision": ("dtype", {"16-mixed": "bfloat16", "32": "float32"}),
}
"""Options of ``transcriptformer inference`` under which ours go, too, and values that are called otherwise."""
NEEDLESS = {
    "batch_size": (1, "cells are packed by their length; SCFM_BATCH_TOKENS bounds the tokens of a batch"),
    "disable_compile_block_mask": (0, "nothing is compiled"),
    "n_data_workers": (1, "files are read while the network computes"),
    "num_gpus": (1, "name the devices, as in --device cuda:0,cuda:1"),
    "oom_dataloader": (0, "files are always read block by block"),
}
"""Options of ``transcriptformer inference`` that do nothing here: how many values they take, and why."""
TRUTH = {"true": "true", "false": "false", "yes": "true", "no": "false", "1": "true", "0": "false"}
TRUTH |= {"auto": "null", "none": "null", "null": "null"}
COMMANDS_OF = {
    f"{module}.{verb}": f"`scfm {verb.replace('_', '-')}`"
    for module, verbs in {
        "tl": ("annotate", "embed", "embed_store", "gene_embeddings", "marker_genes", "score", "tokenize"),
        "model": ("convert", "fetch"),
    }.items()
    for verb in verbs
}
COMMANDS_OF |= {"pp.match_genes": "`scfm match`", "model.list_models": "`scfm models`"}
OF_THE_PARSER = ("print_config", "print_completion", "print_shtab")


class WrongCall(Exception):
    """Words that no command takes."""


def known_words(words: Sequence[str], flags: set[str]) -> list[str]:
    """Write the options of a command as its parser knows them.

    Parameters
    ----------
    words
        What follows the name of the command.
    flags
        Options that may be given without a value.

    Raises
    ------
    WrongCall
        If an option of upstream is another command here.
    """
    return list(_known(list(words), flags))


def _known(words: list[str], flags: set[str]) -> Iterator[str]:
    while words:
        word = words.pop(0)
        if word == "--":
            yield from (word, *words)
            return
        if not word.startswith("--"):
            yield "null" if word == "None" else word
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name in NEEDLESS:
            n_values, why = NEEDLESS[name]
            del words[: n_values if not equals else 0]
            if not n_values and not equals and words and words[0].lower() in TRUTH:
                del words[0]
            print(f"scfm: --{name.replace('_', '-')} is not needed: {why}.", file=sys.stderr)
        elif name == "emb_type":
            _check_type(value if equals else words.pop(0) if words else "")
        else:
            name, values = RENAMED.get(name, (name, {}))
            if name in flags and not equals:
                value = words.pop(0) if words and words[0].lower() in TRUTH else "true"
            elif values and not equals and words:
                value = words.pop(0)
            value = TRUTH.get(value.lower(), value) if name in flags else values.get(value, value)
            value = "null" if value == "None" else value
            joined = equals or name in flags or values
            yield f"--{name if name in OF_THE_PARSER else name.replace('_', '-')}" + (f"={value}" if joined else "")


def _check_type(value: str) -> None:
    if value == "cge":
        msg = "--emb-type cge is the command `scfm gene-embeddings`, which takes the same options."
        raise WrongCall(msg)
    if value != "cell":
        msg = f"--emb-type {value} is not known; leave it out for cells, and call `scfm gene-embeddings` for genes."
        raise WrongCall(msg)


def as_options(text: str, names: Sequence[str]) -> str:
    """A message about keywords and functions, about options and commands: ``overwrite=True`` becomes ``--overwrite``."""
    for name in names:
        text = re.sub(rf"\b{name}=(True\b|(?=[\s,.;:)]|$))", f"--{name.replace('_', '-')}", text)
        text = re.sub(rf"\b(?<!-){name}=", f"--{name.replace('_', '-')}=", text)
    return as_commands(text)


def as_commands(text: str) -> str:
    """A text about functions, about commands: ``scfm.tl.embed_store`` becomes ```scfm embed-store```."""
    return re.sub(r"\bscfm\.(\w+\.\w+)(?!\()", lambda found: COMMANDS_OF.get(found[1], found[0]), text)

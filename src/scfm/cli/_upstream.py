"""Translates command lines of the package transcriptformer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scfm.cli._words import WrongCall, split_word

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["from_upstream"]

COMMANDS = ("embed", "embed-store", "gene-embeddings", "score", "match", "fetch")
FOLDER, FILE = "inference_results", "embeddings.h5ad"
"""Default output of upstream."""


@dataclass
class _Call:
    """A command line that is being translated."""

    command: str
    words: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    folder: str | None = None
    file: str | None = None

    def needs_out(self) -> bool:
        """Whether the output is named as upstream does, or by its default."""
        given = any(split_word(word)[0] == "out" for word in self.words)
        return not given and bool(self.data or self.folder or self.file) and self.command not in ("match", "fetch")

    def out(self) -> Path:
        """The output; its folder is created, as upstream does."""
        folder, name = Path(self.folder or FOLDER), self.file or FILE
        folder.mkdir(parents=True, exist_ok=True)
        if self.command in ("embed", "score"):
            return folder / (name if name.endswith(".h5ad") else f"{name}.h5ad")
        return folder / f"{name.removesuffix('.h5ad')}.zarr"


def from_upstream(command: str, words: Sequence[str]) -> tuple[str, list[str]]:
    """Translate options of ``transcriptformer inference`` that differ in more than their name.

    Parameters
    ----------
    command
        Name of the command.
    words
        What follows it.

    Returns
    -------
    The command (another one where an option of upstream is a command of scfm), and what follows it.

    Raises
    ------
    WrongCall
        If the value of an option is missing, or has no counterpart.
    """
    call, rest = _Call(command), list(words)
    while rest and command in COMMANDS:
        word = rest.pop(0)
        name, equals, value = split_word(word)
        if word == "--":
            call.words += [word, *rest]
            break
        if name not in CONVERTED:
            call.words.append(word)
            continue
        if not equals and not rest:
            msg = f"{word} takes a value."
            raise WrongCall(msg)
        rest[:0] = CONVERTED[name](call, value if equals else rest.pop(0))
    if command not in COMMANDS:
        return command, list(words)
    out = [f"--out={call.out()}"] if call.needs_out() else []
    return call.command, [*call.data, *out, *call.words]


def _data_file(call: _Call, value: str) -> list[str]:
    call.data = [value]
    return []


def _output_path(call: _Call, value: str) -> list[str]:
    call.folder = value
    return []


def _output_filename(call: _Call, value: str) -> list[str]:
    call.file = value
    return []


def _emb_type(call: _Call, value: str) -> list[str]:
    if value not in ("cell", "cge"):
        msg = f"--emb-type {value} is not known: cell embeds cells, cge their genes."
        raise WrongCall(msg)
    if value == "cge" and call.command == "embed":
        call.command = "gene-embeddings"
    return []


def _layer(call: _Call, value: str) -> list[str]:
    """Upstream counts from −1, the last layer, and scfm from 0."""
    if not value.removeprefix("-").isdigit() or int(value) >= 0:
        msg = f"--embedding-layer-index {value}: give --hidden-layer, which counts back from the last layer, 0."
        raise WrongCall(msg)
    return [f"--hidden-layer={int(value) + 1}"]


def _num_gpus(call: _Call, value: str) -> list[str]:
    """A single GPU is used by default."""
    if not value.removeprefix("-").isdigit():
        msg = f"--num-gpus {value} is not a number; -1 means all GPUs."
        raise WrongCall(msg)
    number = int(value)
    if number == -1:
        from torch.cuda import device_count

        number = device_count()
    return [] if number < 2 else ["--device=" + ",".join(f"cuda:{i}" for i in range(number))]


def _override(call: _Call, value: str) -> list[str]:
    """``model.data_config.clip_counts=20`` sets the option of the last name; numbers are positions in a list."""
    path, equals, given = value.partition("=")
    names = [name for name in path.split(".") if not name.isdigit()]
    if not equals or not names:
        msg = f"--config-override {value}: expected a name, = and a value, as model.data_config.clip_counts=20."
        raise WrongCall(msg)
    if names[-1] == "output_keys":
        return ["--scores"] if "llh" in given else []
    return [f"--{names[-1].replace('_', '-')}={given}"]


def _checkpoint_dir(call: _Call, value: str) -> list[str]:
    msg = f"--checkpoint-dir: the folder of all models is set by the environment variable SCFM_CACHE_DIR={value}."
    raise WrongCall(msg)


CONVERTED: dict[str, Callable[[_Call, str], list[str]]] = {
    "checkpoint_dir": _checkpoint_dir,
    "config_override": _override,
    "data_file": _data_file,
    "data_files": _data_file,
    "emb_type": _emb_type,
    "embedding_layer_index": _layer,
    "num_gpus": _num_gpus,
    "output_filename": _output_filename,
    "output_path": _output_path,
}
"""For each option, with underscores: takes its value and returns the words that replace it."""

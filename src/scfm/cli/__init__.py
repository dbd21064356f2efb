"""The command ``scfm``: one subcommand for every public verb."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, set_parsing_settings

from scfm._console import console_bar
from scfm.run.progress import use_bar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["main"]

_UPSTREAM: dict[str, tuple[str, dict[str, str]]] = {
    "checkpoint_path": ("model", {}),
    "gene_col_name": ("gene_key", {}),
    "model_type": ("family", {}),
    "precision": ("dtype", {"16-mixed": "bfloat16", "32": "float32"}),
    "use_raw": ("use_raw", {"auto": "null"}),
}
"""Options of ``transcriptformer inference`` under which ours go, too, and values that are called otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 an error (told in one line), 2 a wrong call."""
    parser, commands = _parser()
    chosen = parser.parse_args(_named(sys.argv[1:] if arguments is None else arguments))
    values = {name: value for name, value in vars(chosen[chosen.subcommand]).items() if name != "config"}
    try:
        with _plain_warnings(), use_bar(console_bar):
            commands[chosen.subcommand](**values)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("scfm: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if chosen.debug:
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"scfm: {type(error).__name__}: {text}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show a warning as one line, without the place in the code."""
    shown, warnings.formatwarning = warnings.formatwarning, lambda message, *_, **__: f"scfm: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = shown


def _parser() -> tuple[ArgumentParser, dict[str, Any]]:
    import scfm
    from scfm.cli import annotate, data, embed, stores, tables, weights

    with suppress(TypeError, ValueError):  # older releases have --print_shtab anyway
        set_parsing_settings(add_print_completion_argument=True)
    parser = ArgumentParser(
        prog="scfm", description="Run single-cell foundation models on AnnData files.", version=scfm.__version__
    )
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    subcommands = parser.add_subcommands()
    commands = {}
    for module in (embed, annotate, data, tables, weights, stores):
        for name, (subparser, command) in module.commands().items():
            subparser.add_argument("--config", action="config", help="YAML file with options of this command")
            subcommands.add_subcommand(name, subparser, help=subparser.description)
            commands[name] = command
    return parser, commands


def _named(arguments: Sequence[str]) -> list[str]:
    """Write options as the parser knows them: dashes as underscores, and upstream's names and values as ours."""
    given, known = list(arguments), list[str]()
    while given:
        word = given.pop(0)
        if word == "--":
            return [*known, word, *given]
        if not word.startswith("--"):
            known.append("null" if word == "None" else word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        renamed, values = _UPSTREAM.get(name, (name, {}))
        if values and not equals and given:
            value, equals = given.pop(0), "="
        value = "null" if value == "None" else values.get(value, value)
        known.append(f"--{renamed}{equals}{value}")
    return known

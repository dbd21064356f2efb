"""The command ``scfm``: one subcommand for every public verb."""

from __future__ import annotations

import os
import sys
import warnings
from argparse import HelpFormatter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, set_parsing_settings

from scfm._text import masked
from scfm.cli._command import Command, Parser
from scfm.cli._commands import COMMANDS
from scfm.cli._upstream import from_upstream
from scfm.cli._words import WrongCall, as_options, known_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 an error (told in one line), 2 a wrong call or variable."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    at = next((at for at, word in enumerate(words) if word.replace("_", "-") in COMMANDS), len(words))
    before, name, after = words[:at], "".join(words[at : at + 1]).replace("_", "-"), words[at + 1 :]
    try:
        name, after = from_upstream(name, after)
    except WrongCall as error:
        _parser(name, whole=False).error(str(error))
    try:
        parser = _parser(name, whole=any(word.startswith("--print") for word in before))
    except Exception as error:
        if "--debug" in words:
            raise
        return max(_failed(error), 2 * isinstance(error, ValueError))  # of a variable: nothing else has been read yet
    if not words:
        parser.print_help()
        return 0
    command = COMMANDS[name or "models"]
    typed = known_words(after, command.flags(), [option.name for option in command.options()])
    chosen = parser.parse_args([*before, *([name] if name else []), *typed])
    return _run(command, command.values(vars(chosen[chosen.subcommand])), debug=chosen.debug)


def _run(command: Command, values: dict[str, object], *, debug: bool) -> int:
    options = [option.name for option in command.all_options()]
    try:
        with _reporting(options):
            command.call(**values)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("scfm: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        return _failed(error, options)
    return 0


def _failed(error: Exception, options: Sequence[str] = ()) -> int:
    """Say in one line what is wrong; the exit code."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    print(f"scfm: {type(error).__name__}: {masked(as_options(str(text), options))}", file=sys.stderr)
    return 1


@contextmanager
def _reporting(options: Sequence[str]) -> Iterator[None]:
    """Show what is done, and warnings as one line, in the words of a shell, without the place in the code."""
    from scfm._settings import console, settings

    said = settings.verbosity
    settings.verbosity = said if os.environ.get("SCFM_VERBOSITY") else "info"
    shown, warnings.formatwarning = (
        warnings.formatwarning,
        lambda message, *_, **__: f"scfm: warning: {masked(as_options(str(message), options))}\n",
    )
    console.always = True
    try:
        yield
    finally:
        console.always = False
        warnings.formatwarning = shown
        settings.verbosity = said


def _parser(name: str, *, whole: bool) -> Parser:
    """Parser of the whole command line, in which only the command ``name`` has its options, or all (``whole``)."""
    import scfm

    with suppress(TypeError, ValueError):  # older releases have --print_shtab anyway
        set_parsing_settings(add_print_completion_argument=True)
    parser = Parser(
        prog="scfm",
        description="Run single-cell foundation models on AnnData files.",
        epilog="`scfm COMMAND --help` explains a command. Dashes and underscores are the same in names of options.",
        version=scfm.__version__,
        formatter_class=HelpFormatter,
    )
    if name:
        command = COMMANDS[name]
        parser.hint, parser.positional = f"scfm {name} --help", command.positional
        parser.options = [option.name for option in command.options()]
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    subcommands = parser.add_subcommands(title="commands", metavar="COMMAND", description=None)
    for known, command in COMMANDS.items():
        subparser = command.parser() if whole or known == name else ArgumentParser(description=command.summary)
        if isinstance(subparser, Parser):
            subparser.hint, subparser.options, subparser.positional = parser.hint, parser.options, parser.positional
        subcommands.add_subcommand(known, subparser, help=command.summary)
    return parser

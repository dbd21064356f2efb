"""What is typed, as the parser knows it: dashes or underscores, flags with or without a value, upstream's names."""

from __future__ import annotations

import difflib
import re
import sys
from typing import TYPE_CHECKING

from scfm._elsewhere import ARGUMENTS, Argument

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

__all__ = ["WrongCall", "as_commands", "as_options", "in_short", "known_words", "split_word"]

TRUTH = {"true": "true", "false": "false", "yes": "true", "no": "false", "1": "true", "0": "false"}
TRUTH |= {"auto": "null", "none": "null", "null": "null"}
COMMANDS_OF = {
    f"{module}.{verb}": f"`scfm {verb.replace('_', '-')}`"
    for module, verbs in {
        "tl": (
            "annotate",
            "embed",
            "embed_store",
            "gene_embeddings",
            "marker_genes",
            "perturb",
            "perturb_store",
            "score",
            "tokenize",
        ),
        "model": ("convert", "fetch"),
    }.items()
    for verb in verbs
}
COMMANDS_OF |= {"pp.match_genes": "`scfm match`", "model.list_models": "`scfm models`", "model.load": "the command"}
COMMANDS_OF |= {"tl.merge_store": "`scfm merge`"}
OF_THE_PARSER = ("print_completion", "print_shtab")


class WrongCall(Exception):
    """Words that no command takes."""


def split_word(word: str) -> tuple[str, str, str]:
    """Name, equals sign and value of an option, the name with underscores; no name for what is no option."""
    if not word.startswith("--"):
        return "", "", ""
    name, equals, value = word[2:].partition("=")
    return name.replace("-", "_"), equals, value


def known_words(words: Sequence[str], flags: set[str], options: Collection[str] = ()) -> list[str]:
    """Write the options of a command as its parser knows them.

    Parameters
    ----------
    words
        What follows the name of the command.
    flags
        Options that may be given without a value.
    options
        All of its options, which mean what they say where another package has the same name for something else.
    """
    return list(_known(list(words), flags, options))


def _known(words: list[str], flags: set[str], options: Collection[str]) -> Iterator[str]:
    while words:
        word = words.pop(0)
        if word == "--":
            yield from (word, *words)
            return
        name, equals, value = split_word(word)
        if not name:
            yield "null" if word == "None" else word
            continue
        known = ARGUMENTS.get(name, Argument(name))
        if name in options and known.ours != name:
            known = Argument(name)
        if not known.ours:
            if not equals and words and (known.has_value or words[0].lower() in TRUTH):
                del words[0]
            print(f"scfm: {_option(name)} is not needed: {known.note}.", file=sys.stderr)
            continue
        name = known.ours
        if name in flags and not equals:
            value = words.pop(0) if words and words[0].lower() in TRUTH else "true"
        elif known.values and not equals and words:
            value = words.pop(0)
        value = TRUTH.get(value.lower(), value) if name in flags else known.values.get(value, value)
        value = "null" if value == "None" else value
        joined = equals or name in flags or known.values
        yield (f"--{name}" if name in OF_THE_PARSER else _option(name)) + (f"={value}" if joined else "")


KINDS = {"<class 'int'>": "a whole number", "<class 'float'>": "a number", "<class 'bool'>": "true or false"}


def in_short(message: str, options: Sequence[str], positional: Sequence[str]) -> str:
    """What the parser says of a wrong call, in one line and in the words of a shell.

    Parameters
    ----------
    message
        Text of argparse or jsonargparse; one of an unknown form is only put on one line.
    options, positional
        What the command takes, and what of it goes by its place.
    """
    message = " ".join(message.split())
    if found := re.fullmatch(r"the following arguments are required: (.+)", message):
        names = [name.rpartition(".")[2] for name in found[1].split(", ")]
        return f"missing: {', '.join(name.upper() if name in positional else _option(name) for name in names)}"
    if found := re.fullmatch(r'Parser key "(?:.*\.)?(\w+)": .*(?:Given|Got) value: (.*)', message):
        kinds = [KINDS.get(kind, kind) for kind in re.findall(r"Expected an? (<class '\w+'>)", message)]
        words = [word for kind in re.findall(r"Literal\[(.*?)\]", message) for word in re.findall(r"'(.*?)'", kind)]
        known = dict.fromkeys(kind for kind in [*kinds, *words] if "NoneType" not in kind)
        name = found[1].upper() if found[1] in positional else _option(found[1])
        return f"{name} {found[2]} is not accepted; expected {' or '.join(known)}."
    if found := re.fullmatch(r"unrecognized arguments: (--([\w-]+).*)", message):
        return f"there is no option {found[1]}.{_closest(f'--{found[2]}', [_option(name) for name in options])}"
    if found := re.fullmatch(r"argument COMMAND: invalid choice: '(.*?)' (.*)", message):
        commands = re.findall(r"'([\w-]+)'", found[2])
        return f"there is no command {found[1]}.{_closest(found[1], commands)}"
    return message


def _closest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def as_options(text: str, names: Sequence[str]) -> str:
    """A message about keywords and functions, about options and commands: ``overwrite=True`` becomes ``--overwrite``."""
    for name in names:
        text = re.sub(rf"\b{name}=(True\b|(?=[\s,.;:)]|$))", _option(name), text)
        text = re.sub(rf"\b(?<!-){name}=", f"{_option(name)}=", text)
    return as_commands(text)


def as_commands(text: str) -> str:
    """A text about functions, about commands: ``scfm.tl.embed_store`` becomes ```scfm embed-store```."""
    return re.sub(r"\bscfm\.(\w+\.\w+)(?!\()", lambda found: COMMANDS_OF.get(found[1], found[0]), text)

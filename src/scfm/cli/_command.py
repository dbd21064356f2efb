"""A command: a function, whose signature and docstring are the options of the command and their help."""

from __future__ import annotations

import re
from argparse import HelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from importlib import import_module
from inspect import Parameter, signature, unwrap
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

from jsonargparse import SUPPRESS, ArgumentParser

from scfm._types import Compat, Quantization
from scfm.cli._words import as_commands, in_short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Command", "Option", "Parser"]

SHELL: dict[str, tuple[Any, str]] = {
    "data": (str, "file to read, block by block: .h5ad, .h5mu, or a zarr store"),
    "model": (str, "name or folder of the model; `scfm models` lists the names"),
    "out": (Path, "file to write: a copy of DATA with the results, in the same format"),
    "checkpoint": (
        Path | None,
        "folder that takes what has been computed, until OUT is written; the same command goes on from there",
    ),
    "overwrite": (bool, "replace OUT if it exists; it may be DATA itself"),
    "device": (
        str | None,
        "cpu, cuda, cuda:1 or mps, or several as cuda:0,cuda:1; by default the fastest there is",
    ),
    "dtype": (str | None, "float32, bfloat16 or float16; by default bfloat16 on GPUs that have it, else float32"),
    "modality": (str | None, "modality of an .h5mu file; the results go there"),
    "reference": (str | None, "file of labelled cells with the same embedding; by default the labelled cells of DATA"),
    "candidates": (
        list[str] | None,
        "with --method ontology: types to choose from, as names or ids such as CL:0000084",
    ),
    "ontology": (str | None, "Cell Ontology to find the labels in: an .obo or .owl file, or bundled"),
    "config": (str | None, "YAML file of the run"),
    "base": (str | None, "name or folder of a model whose training goes on"),
    "gene_vectors": (str | None, "file of vectors from which those of genes start, .npz or HDF5"),
    "shared_with": (list[str] | None, "files of cells to compare with; only genes that match in all of them are used"),
    "source": (str, "folder or archive of published weights"),
    "training": (
        dict[str, Any] | None,
        "with --method finetune: arguments of the model and its training, as '{freeze: true, max_epochs: 5}'",
    ),
    "family": (str | None, "family of the weights, where their folder does not tell: transcriptformer or esm2ce"),
    "dictionaries": (list[str] | None, "files of gene tables, or folders that hold them, for weights without them"),
}
"""Types and texts of parameters that take objects in Python and words in a shell."""
FIRST = ("model", "reference", "labels_key", "use_rep", "groupby", "out", "overwrite", "key_added", "device")
"""Options that most calls need; help shows them before the others."""
NAMES = {"Compat": Compat, "Literal": Literal, "Path": Path, "Quantization": Quantization, "Sequence": Sequence}
"""Types that modules import for type checkers alone."""


class Option(NamedTuple):
    """A parameter on the command line."""

    name: str
    kind: Any
    default: Any
    """``Parameter.empty`` where it is required."""
    text: str

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types it may have but ``None``."""
        if get_origin(self.kind) not in (Union, UnionType):
            return (self.kind,)
        return tuple(kind for kind in get_args(self.kind) if kind is not NoneType)

    @property
    def is_flag(self) -> bool:
        """Whether it may be given without a value."""
        return self.kinds[0] is bool

    @property
    def place(self) -> str:
        """How usage shows it where it goes by its place."""
        return self.name.upper() if self.default is Parameter.empty else f"[{self.name.upper()}]"

    @property
    def call(self) -> str:
        """How usage shows it where it goes by its name."""
        return f"--{self.name.replace('_', '-')} {self._metavar()}"

    def add_to(self, parser: Any, *, positional: bool, required: bool) -> None:
        """Add it to a parser or a group of options."""
        is_optional = self.default is not Parameter.empty
        # options of families have types of their own, as a list that is typed as [a, b]
        is_list = self.default is not SUPPRESS and any(get_origin(kind) in (list, Sequence) for kind in self.kinds)
        settings: dict[str, Any] = {"type": str if is_list else self.kind, "help": self._help()}
        if is_list:
            settings["nargs"] = "*" if positional and is_optional else "+"
        elif self.is_flag or (positional and is_optional):
            settings["nargs"] = "?"
        if is_optional and not (positional and is_list):
            settings["default"] = self.default
        if positional:
            parser.add_argument(self.name, metavar=self.name.upper(), **settings)
        else:
            name = f"--{self.name.replace('_', '-')}"
            parser.add_argument(name, metavar=self._metavar(), required=required or not is_optional, **settings)

    def _metavar(self) -> str:
        first = self.kinds[0]
        if first is bool:
            return "true|false|auto" if len(get_args(self.kind)) > 1 else "true|false"
        if get_origin(first) is Literal:
            return "|".join(map(str, get_args(first)))
        return {int: "N", float: "X", Path: "PATH"}.get(first, "NAME")

    def _help(self) -> str:
        default = "" if self.default in (None, False, (), SUPPRESS, Parameter.empty) else f" (default: {self.default})"
        return (self.text + default.replace("True", "true")).replace("%", "%%")


@dataclass(frozen=True)
class Command:
    """What ``scfm NAME`` does."""

    summary: str
    run: str
    """Function that is called, as ``module:name``. It is given the verb first, if there is one."""
    verb: str = ""
    """Public function whose parameters are options, too."""
    example: str = ""
    positional: tuple[str, ...] = ("data",)
    required: tuple[str, ...] = ("out",)
    """Options that the verb could do without."""
    hidden: tuple[str, ...] = ("copy",)
    """Parameters of the verb that are no options."""
    families: str | None = None
    """Whose options there are: of all families of models, or of those with an optional method of the recipe."""
    several: tuple[str, ...] = ()
    """Parameters of which several may be given, such as the files that a shell makes of a pattern."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Help that differs from that of other commands."""

    def call(self, **values: Any) -> None:
        """Run it."""
        device = values.get("device")
        if isinstance(device, str) and "," in device:
            values["device"] = device.split(",")
        run = _function(self.run)
        (partial(run, _function(self.verb)) if self.verb else run)(**values)

    def options(self) -> list[Option]:
        """Everything it takes but the options of families."""
        hidden = ("verb", *self.hidden)
        own = list(_options(_function(self.run), hidden))
        verbs = _options(_function(self.verb), (*hidden, *(o.name for o in own))) if self.verb else ()
        kinds = dict.fromkeys(self.several, list[str])
        return [
            option._replace(text=self.texts.get(option.name, option.text), kind=kinds.get(option.name, option.kind))
            for option in (*verbs, *own)
        ]

    def family_options(self) -> Iterator[tuple[str, Option]]:
        """Options of families, each with the families that have it; without a value families keep their default.

        One that several families name alike is one here, and takes what any of them takes.
        """
        from scfm.model.registry import families

        known = {} if self.families is None else families()
        taken = {option.name for option in self.options()}  # the verb has it itself, so no family gets it
        found: dict[str, tuple[list[str], Option]] = {}
        for cls in {known[name].options_class: None for name in sorted(known)}:
            owners = [name for name, other in sorted(known.items()) if other.options_class is cls]
            if self.families not in (None, "all") and not any(known[name].implements(self.families) for name in owners):
                continue
            kinds, texts = get_type_hints(cls), _texts(cls)
            for one in fields(cls):
                default = "" if one.default is None else f" (default: {one.default})"
                option = Option(one.name, kinds[one.name], SUPPRESS, _plain(f"{texts.get(one.name, '')}{default}"))
                if one.name in taken:
                    continue
                if one.name in found:
                    others, other = found[one.name]
                    option = other._replace(kind=other.kind | option.kind, text=f"{other.text}; {option.text}")
                    found[one.name] = [*others, *owners], option
                else:
                    found[one.name] = owners, option
        for owners, option in found.values():
            yield ", ".join(owners), option

    def all_options(self) -> list[Option]:
        """Everything it takes."""
        return [*self.options(), *(option for _, option in self.family_options())]

    def values(self, parsed: Mapping[str, Any]) -> dict[str, Any]:
        """Values of the options out of everything that was parsed."""
        names = {option.name for option in self.all_options()}
        return {name: value for name, value in parsed.items() if name in names}

    def flags(self) -> set[str]:
        """Names of the options that may be given without a value."""
        return {option.name for option in self.all_options() if option.is_flag}

    def parser(self) -> ArgumentParser:
        """Parser of the words after the name of the command."""
        example = f"Example: {self.example}" if self.example else None
        parser = Parser(
            description=self.summary, epilog=example, formatter_class=HelpFormatter, print_config="--print-config"
        )
        options = {option.name: option for option in self.options()}
        places = [options.pop(name) for name in self.positional]
        by_need = sorted(options.values(), key=lambda one: FIRST.index(one.name) if one.name in FIRST else len(FIRST))
        needed = [one for one in by_need if one.default is Parameter.empty or one.name in self.required]
        parser.usage = " ".join(["%(prog)s", *(one.place for one in places), *(one.call for one in needed), "[...]"])
        for option in places:
            option.add_to(parser, positional=True, required=True)
        first = [*needed, *(one for one in by_need if one not in needed and one.name in FIRST)]
        for option in first:
            option.add_to(parser, positional=False, required=option in needed)
        if "config" not in options:
            parser.add_argument(
                "--config", action="config", metavar="PATH", help="YAML file with options of this command"
            )
        for action in parser._actions:
            if "--print-config" in action.option_strings:
                action.help = "print the options as YAML, for --config, and exit"
        more = parser.add_argument_group("more options")
        for option in options.values():
            if option not in first:
                option.add_to(more, positional=False, required=False)
        groups: dict[str, Any] = {}
        for owners, option in self.family_options():
            if owners not in groups:
                groups[owners] = parser.add_argument_group(f"options of {owners}")
            option.add_to(groups[owners], positional=False, required=False)
        return parser


class Parser(ArgumentParser):
    """Tells a wrong call in one line."""

    hint = "scfm --help"
    options: Sequence[str] = ()
    """Names of the options of the command."""
    positional: Sequence[str] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and where the options are explained; exits with 2."""
        text = in_short(message, self.options, self.positional)
        self.exit(2, f"scfm: {text}\n`{self.hint}` explains what can be given.\n")


def _function(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), attribute)
    return found


def _options(function: Callable[..., Any], hidden: Sequence[str]) -> Iterator[Option]:
    texts = _texts(function)
    parameters = [one for one in signature(function).parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
    shown = [one for one in parameters if one.name not in hidden]
    own = {one.name: one.annotation for one in shown if one.name not in SHELL}
    kinds = get_type_hints(SimpleNamespace(__annotations__=own), unwrap(function).__globals__, NAMES)
    for one in shown:
        kind, text = SHELL[one.name] if one.name in SHELL else (kinds[one.name], texts.get(one.name, ""))
        yield Option(one.name, kind, one.default, text)


def _texts(documented: Any) -> dict[str, str]:
    """Descriptions of parameters in the words of a shell."""
    from docstring_parser import parse_from_object

    found = parse_from_object(documented).params
    return {name: _plain(param.description or "") for param in found for name in param.arg_name.split(", ")}


def _plain(text: str) -> str:
    text = re.sub(r":\w+:`~?(.+?)(?: <[^>]*>)?`", r"\1", " ".join(text.split())).replace("``", "")
    text = re.sub(r'\b([a-z]\w*)="(\w+)"', lambda found: f"--{found[1].replace('_', '-')} {found[2]}", text)
    text = re.sub(r"\b(True|False)\b", lambda found: found[0].lower(), text)
    return as_commands(re.sub(r'"([\w/*.:-]+)"', r"\1", text))

"""Checks of values, and of the arguments of public functions by their annotations."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from functools import wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, get_args

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_fields", "check_least", "check_memory", "check_share", "entry_of", "is_int", "is_number", "typed"]

Function = TypeVar("Function", bound="Callable[..., Any]")


def is_int(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, of Python or NumPy; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, of Python or NumPy; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def entry_of(table: Any, key: str, where: str) -> Any:
    """An entry of ``obs``, ``var`` or ``obsm``; of columns with the same name and values, the first.

    Raises
    ------
    KeyError
        If it is not there; the message lists those that are.
    ValueError
        If several columns have this name and differ.
    """
    if key not in table:
        msg = f"{key!r} is not in {where}; found {sorted(map(str, table.keys()))}."
        raise KeyError(msg)
    found = table[key]
    if not (hasattr(table, "columns") and found.ndim == 2):
        return found
    first = found.iloc[:, 0]
    if not all(first.equals(found.iloc[:, at]) for at in range(1, found.shape[1])):
        msg = f"{where} has {found.shape[1]} columns named {key!r}, which differ; rename or drop all but one of them."
        raise ValueError(msg)
    return first


def check_share(name: str, value: float, *, above: bool = False) -> None:
    """Raise a ValueError unless a number is between 0 and 1; with ``above``, 0 is too little."""
    if not (0 < value <= 1 if above else 0 <= value <= 1):
        msg = f"{name} must be {'above 0 and at most' if above else 'between 0 and'} 1, got {value}."
        raise ValueError(msg)


def check_memory(n_bytes: int, what: str, remedy: str) -> None:
    """Raise a ValueError if something would not fit into the memory of the machine, as far as it tells how much it has."""
    if not hasattr(os, "sysconf"):
        return
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if n_bytes > there:
        msg = f"{what} would take {n_bytes / 2**30:.0f} GiB; there are {there / 2**30:.0f} GiB. {remedy}"
        raise ValueError(msg)


def check_least(name: str, value: int, least: int = 1) -> None:
    """Raise a ValueError for a number below the least one that makes sense."""
    if value < least:
        msg = f"{name} must be at least {least}, got {value}."
        raise ValueError(msg)


def check_fields(given: Mapping[str, Any], cls: type[Any]) -> None:
    """Check values against the annotations of a dataclass, as :func:`typed` does the arguments of a function."""
    names = vars(sys.modules[cls.__module__])
    for name, value in given.items():
        _check(name, value, kinds_of(str(cls.__dataclass_fields__[name].type), names))


def typed(function: Function) -> Function:
    """Check the arguments of a public function against their annotations before anything else is done.

    A wrong type is a TypeError, a word that is not one of a ``Literal`` a ValueError; both name the argument and what is
    accepted. Classes are compared by name, so that none has to be imported. Annotations that are not known here accept
    everything.
    """
    expected = signature(function)
    hints = {
        name: f"Sequence[{one.annotation}]" if one.kind is Parameter.VAR_POSITIONAL else str(one.annotation)
        for name, one in expected.parameters.items()
        if one.kind is not Parameter.VAR_KEYWORD and one.annotation is not Parameter.empty
    }

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            given = expected.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # Python says best what is missing or not known
        for name, value in given.items():
            if name in hints:
                _check(name, value, kinds_of(hints[name], function.__globals__))
        return function(*args, **kwargs)

    checked.__doc__ = _with_raises(function.__doc__)
    return checked  # type: ignore[return-value]


RAISES = re.compile(r"^( *)Raises\n\1------\n", re.MULTILINE)
LATER = re.compile(r"^( *)(?:See Also\n\1--------|Examples\n\1--------)\n", re.MULTILINE)
TYPE_ERROR = "{0}TypeError\n{0}    If an argument is of another type than its annotation says.\n"


def _with_raises(text: str | None) -> str | None:
    """Name the TypeError in a docstring that does not do it by itself."""
    if text is None or re.search(r"^ *(\w+, )*TypeError(, \w+)*$", text, re.MULTILINE):
        return text
    section, later = RAISES.search(text), LATER.search(text)
    if section is not None:
        return text[: section.end()] + TYPE_ERROR.format(section[1]) + text[section.end() :]
    if later is None:
        return text
    added = f"{later[1]}Raises\n{later[1]}------\n{TYPE_ERROR.format(later[1])}\n"
    return text[: later.start()] + added + text[later.start() :]


Kind = tuple[str, tuple[Any, ...]]
"""Name of a type, and the words of a ``Literal`` or the kinds of the items of a collection."""

ALIASES = {
    "Compat": "Literal['upstream']",
    "Device": "str | device",
    "PathLike": "Path",
    "Quantization": "Literal['int8', 'int8_dynamic', 'nf4']",
    "SharedWith": "AnnData | MuData | str | Path | Sequence[AnnData | MuData | str | Path] | None",
}
"""Types that modules import for type checkers alone."""
COLLECTIONS = ("Sequence", "Collection", "list")
SIMPLE: dict[str, Callable[[object], bool]] = {
    "None": lambda value: value is None,
    "bool": lambda value: isinstance(value, bool | np.bool_),
    "int": is_int,
    "float": is_number,
    "str": lambda value: isinstance(value, str),
    "Path": lambda value: isinstance(value, PathLike),
    "Iterable": lambda value: isinstance(value, Iterable),
    "Mapping": lambda value: isinstance(value, Mapping),
}
HINTS = {"MuData": " Of a MuData pass mdata[modality].", "ndarray": " Wrap a matrix in an AnnData, with genes in var."}
"""What to do with something else where an AnnData is taken."""
CLASSES = (
    "AnnData",
    "MuData",
    "Axes",
    "CellModel",
    "Module",
    "FoundationModel",
    "Vocabulary",
    "CellOntology",
    "ClassificationCurves",
    "ClassificationReport",
    "DataFrame",
    "Client",
    "Pretraining",
    "dtype",
    "device",
)


def kinds_of(annotation: str, names: Mapping[str, Any]) -> tuple[Kind, ...]:
    """The alternatives of an annotation; ``names`` are those of its module."""
    return tuple(_parsed(ast.parse(annotation, mode="eval").body, names))


def _parsed(node: ast.expr, names: Mapping[str, Any]) -> list[Kind]:
    if isinstance(node, ast.BinOp):
        return [*_parsed(node.left, names), *_parsed(node.right, names)]
    if isinstance(node, ast.Constant):
        return [(str(node.value), ())]
    if isinstance(node, ast.Subscript):
        (base, _), *_ = _parsed(node.value, names)
        if base == "Literal":
            return [(base, tuple(ast.literal_eval(part) for part in _items(node.slice)))]
        return [(base, tuple(_parsed(node.slice, names)) if base in COLLECTIONS else ())]
    name = node.attr if isinstance(node, ast.Attribute) else ast.unparse(node)
    if name in ALIASES:
        return _parsed(ast.parse(ALIASES[name], mode="eval").body, names)
    words = get_args(names.get(name))
    return [("Literal", words)] if words and all(isinstance(word, str) for word in words) else [(name, ())]


def _items(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def _fits(value: object, kind: Kind) -> bool:
    name, parts = kind
    if name in SIMPLE:
        return SIMPLE[name](value)
    if name == "Literal":
        return isinstance(value, str | int) and value in parts
    if name in COLLECTIONS:
        if not isinstance(value, Collection) or isinstance(value, str | bytes | Mapping):
            return False
        return not parts or all(any(_fits(item, part) for part in parts) for item in value)
    return name not in CLASSES or any(cls.__name__ == name for cls in type(value).__mro__)


def _check(name: str, value: object, kinds: tuple[Kind, ...]) -> None:
    if isinstance(value, str) and not value and ("Path", ()) in kinds:
        msg = f"{name} is an empty text; give a path or a name."
        raise ValueError(msg)
    if any(_fits(value, kind) for kind in kinds):
        if name == "seed" and isinstance(value, Integral):
            check_least(name, int(value), 0)
        return
    wanted = _words(kinds)
    if isinstance(value, str) and any(kind == "Literal" for kind, _ in kinds):
        msg = f"{name}={value!r} is not known; use {wanted}."
        raise ValueError(msg)
    found = repr(value) if value is None or isinstance(value, str | int | float) else type(value).__name__
    if isinstance(value, list | tuple):
        found += f" of {', '.join(sorted({type(item).__name__ for item in value}))}" if value else " of nothing"
    hint = HINTS.get(type(value).__name__, "") if ("AnnData", ()) in kinds else ""
    msg = f"{name} must be {wanted}; got {found}.{hint}"
    raise TypeError(msg)


def _words(kinds: tuple[Kind, ...]) -> str:
    """What is accepted, as a list."""
    found: list[str] = []
    for name, parts in kinds:
        if name == "Literal":
            found += map(repr, parts)
        else:
            found.append(f"a list of {_words(parts)}" if name in COLLECTIONS and parts else name)
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} or {found[-1]}"

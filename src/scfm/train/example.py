"""A config of pretraining with every key, to start one's own from."""

from __future__ import annotations

import re
import textwrap
from dataclasses import MISSING, fields
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from scfm.train.config import PARTS, Pretraining

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["example_config"]

WIDTH = 110


def example_config() -> str:
    """A config for :func:`scfm.train.pretrain` with every key, what it means, and its default.

    Returns
    -------
    YAML, which is a valid config as it is, but for ``files`` and ``out``. Keys that have no effect by default are comments.

    Examples
    --------
    >>> from scfm.train.example import example_config
    >>> print(example_config()[:95])
    # A config of scfm pretrain: every key with its default.
    <BLANKLINE>
    # Files with counts, patterns such as
    """
    lines = ["# A config of scfm pretrain: every key with its default."]
    texts = _texts(Pretraining)
    for key, default in _defaults(Pretraining):
        lines.append("")
        if key not in PARTS and key not in ("masking", "objectives"):
            lines += [*_comment(texts[key]), f"{key}: {_yaml(default)}"]
        elif key == "objectives":
            lines += _objectives(texts[key], default)
        else:
            lines += _part(key, default)
    return "\n".join(lines) + "\n"


def _part(key: str, default: Any) -> list[str]:
    """The keys of a part; as comments where the part is left out by default."""
    from scfm.train.masking import Masking

    cls = PARTS.get(key, Masking)
    summary = (cls.__doc__ or "").partition("\n")[0]
    off = "" if default else "# "
    lines = [*_comment(summary), f"{off}{key}:"]
    for name, value in _defaults(cls):
        lines += [*_comment(_texts(cls)[name], "  "), f"{off}  {name}: {_yaml(value)}"]
    return lines


def _objectives(text: str, default: Any) -> list[str]:
    from scfm.train.objectives import OBJECTIVES

    lines = [*_comment(text), "objectives:"]
    for name, cls in OBJECTIVES.items():
        off = "" if name in default else "# "
        lines += [*_comment((cls.__doc__ or "").partition("\n")[0], "  "), f"{off}  {name}:", f"{off}    weight: 1.0"]
        for argument, value in _defaults(cls):
            lines += [*_comment(_texts(cls)[argument], "    "), f"{off}    {argument}: {_yaml(value)}"]
    return lines


def _defaults(cls: type) -> Iterator[tuple[str, Any]]:
    """Names and defaults of what a class is made with."""
    factories = {one.name: one.default_factory for one in fields(cls)} if hasattr(cls, "__dataclass_fields__") else {}
    for name, one in signature(cls).parameters.items():
        if one.default is Parameter.empty:
            continue
        factory = factories.get(name, MISSING)
        yield name, one.default if factory is MISSING else factory()


def _texts(cls: type) -> dict[str, str]:
    """Descriptions of parameters by name."""
    from docstring_parser import parse

    found = parse(cls.__doc__ or "").params
    return {name: one.description or "" for one in found for name in one.arg_name.split(", ")}


def _comment(text: str, indent: str = "") -> list[str]:
    plain = re.sub(r":\w+:`|`", "", " ".join(text.split()))
    return textwrap.wrap(plain, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _yaml(value: Any) -> str:
    import yaml

    plain = list(value) if isinstance(value, tuple) else value
    return str(yaml.safe_dump(plain, default_flow_style=True, width=1000)).removesuffix("...\n").strip()

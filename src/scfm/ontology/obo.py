"""Read the Cell Ontology from OBO."""

from __future__ import annotations

import io
import re
from collections import Counter
from typing import TYPE_CHECKING, BinaryIO

from scfm._package import pip_install
from scfm._text import some
from scfm.ontology.graph import CellOntology

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["read_obo"]

PREFIX = "CL:"
_STANZA_ID = re.compile(r"^\[Term\]\s*^id:\s*(\S+)", re.MULTILINE)
_EXACT = re.compile(r'^"((?:[^"\\]|\\.)*)"\s+EXACT\b')
_ESCAPED = re.compile(r"\\(.)")


def read_obo(stream: BinaryIO) -> CellOntology:
    """Read terms, exact synonyms and ``is_a`` edges of the Cell Ontology; other ontologies are skipped.

    Raises
    ------
    ImportError
        If obonet is not installed.
    ValueError
        If the file is not OBO, an id is defined twice, or as :class:`~scfm.ontology.CellOntology`.
    """
    obonet = _import_obonet()
    text = stream.read().decode("utf-8-sig").replace("\r\n", "\n")
    defined = Counter(_STANZA_ID.findall(text))
    twice = [id for id, n in defined.items() if n > 1]
    if twice:
        msg = f"it defines {some(twice)} more than once."
        raise ValueError(msg)
    try:
        graph = obonet.read_obo(io.StringIO(text), ignore_obsolete=False)
    except (ValueError, KeyError) as error:
        problem = "a term has no id" if isinstance(error, KeyError) else " ".join(str(error).split())
        msg = f"it is not valid OBO: {problem}"
        raise ValueError(msg) from error
    terms = {id: term for id, term in graph.nodes(data=True) if id.startswith(PREFIX) and id in defined}
    live = {id: term for id, term in terms.items() if term.get("is_obsolete") != "true"}
    replaced = {id: term.get("replaced_by", []) for id, term in terms.items() if id not in live}
    for id, term in live.items():
        for other in set(term.get("alt_id", [])) - live.keys():
            replaced[other] = [*replaced.get(other, []), id]
    return CellOntology(
        live,
        [(a, b) for a, b, kind in graph.edges(keys=True) if kind == "is_a" and a in live and b.startswith(PREFIX)],
        names={id: _ESCAPED.sub(r"\1", term["name"]) for id, term in live.items() if "name" in term},
        synonyms={id: _exact(term.get("synonym", [])) for id, term in live.items()},
        replaced=replaced,
        version=graph.graph.get("data-version"),
    )


def _exact(synonyms: list[str]) -> list[str]:
    return [_ESCAPED.sub(r"\1", found[1]) for found in map(_EXACT.match, synonyms) if found]


def _import_obonet() -> ModuleType:
    try:
        import obonet
    except ImportError as error:
        msg = f"Reading an ontology in OBO format needs obonet: {pip_install('ontology')}."
        raise ImportError(msg) from error
    return obonet

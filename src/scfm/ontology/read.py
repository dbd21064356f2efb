"""Read the Cell Ontology from OBO or OWL."""

from __future__ import annotations

import gzip
import zlib
from importlib.resources import as_file, files
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree
from xml.parsers import expat

from scfm._checks import typed
from scfm.ontology.graph import CellOntology, Relation  # noqa: TC001  calls are checked against Relation
from scfm.ontology.obo import read_obo
from scfm.ontology.owl import read_owl

__all__ = ["bundled", "read_ontology"]

_DAMAGE = (ValueError, EOFError, OSError, zlib.error, ElementTree.ParseError, expat.ExpatError, LookupError)


@typed
def read_ontology(path: str | Path, *, edges: Relation = "is_a") -> CellOntology:
    """Read the Cell Ontology from a file, for example ``cl.obo`` or ``cl.owl`` of a release.

    Releases are at https://github.com/obophenotype/cell-ontology/releases. Only terms of the Cell Ontology (``CL:``)
    are read. The format is detected from the content, not from the name; files may be gzipped.

    Parameters
    ----------
    path
        File in OBO, or in OWL as RDF/XML. OBO needs the extra ``ontology``.
    edges
        ``"is_a"``: subclass relations. ``"upstream"``: edges as scCello finds them, all triples between two terms
        (also replacements, alternative ids and disjoint classes), with the terms that have any. OWL only.

    Returns
    -------
    The ontology. With ``"is_a"`` it has no obsolete terms, but knows their replacements.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If the file is OBO and obonet is not installed.
    ValueError
        If the file is damaged, of another format or without terms; if a term is defined twice, or ``is_a`` edges lead
        to unknown terms or form a cycle. The message names the file and the term.

    Examples
    --------
    >>> import scfm.ontology
    >>> onto = scfm.ontology.read_ontology("cl.obo")  # doctest: +SKIP
    >>> onto.name_of("CL:0000084")  # doctest: +SKIP
    'T cell'
    """
    where, path = str(path), Path(path).expanduser()
    if not path.is_file():
        msg = (
            f"There is no file {where}. Give a local .obo or .owl file of the Cell Ontology (releases: "
            "github.com/obophenotype/cell-ontology), or take scfm.ontology.bundled()."
        )
        raise FileNotFoundError(msg)
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            return _read(gzip.open(raw) if packed else raw, edges)  # type: ignore[arg-type]
        except _DAMAGE as error:
            msg = f"{path} cannot be read as the Cell Ontology: {error}"
            raise ValueError(msg) from error


@typed
def bundled() -> CellOntology:
    """Load the part of the Cell Ontology that is bundled with scfm: types of blood, lung and connective tissue.

    Ids, names, exact synonyms and ``is_a`` edges of common types and their ancestors; ``version`` names the release.
    For other tissues read a full release with :func:`scfm.ontology.read_ontology`. Cell Ontology, CC BY 4.0.

    Raises
    ------
    ImportError
        If obonet is not installed.

    Examples
    --------
    >>> import scfm.ontology
    >>> onto = scfm.ontology.bundled()
    >>> onto.ancestors("CL:0000084")[:2].tolist()
    ['CL:0000000', 'CL:0000003']
    """
    with as_file(files("scfm.ontology") / "cl-subset.obo") as path:
        return read_ontology(path)


def _read(stream: BinaryIO, edges: Relation) -> CellOntology:
    head = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    stream.seek(0)
    if not head:
        msg = "it is empty."
        raise ValueError(msg)
    if b"<html" in head.lower() or b"<!doctype html" in head.lower():
        msg = "it is a web page. Download the file itself."
        raise ValueError(msg)
    if head.startswith((b"<", b"\xff\xfe", b"\xfe\xff")):
        return read_owl(stream, edges)
    if b"format-version:" not in head and b"[Term]" not in head:
        msg = f"it is neither OBO nor OWL in RDF/XML, but begins with {head[:40]!r}. ROBOT can convert other formats."
        raise ValueError(msg)
    if edges == "upstream":
        msg = "edges='upstream' are triples, which OBO does not have. Give OWL in RDF/XML."
        raise ValueError(msg)
    return read_obo(stream)

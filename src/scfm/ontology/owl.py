"""Read the Cell Ontology from OWL (RDF/XML), in one pass and with bounded memory."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, BinaryIO
from xml.etree import ElementTree
from xml.parsers import expat

from scfm.ontology.graph import CellOntology, Relation

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["read_owl"]

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
RDFS = "http://www.w3.org/2000/01/rdf-schema#"
OWL = "http://www.w3.org/2002/07/owl#"
OBO_IN_OWL = "http://www.geneontology.org/formats/oboInOwl#"
REPLACED_BY = "http://purl.obolibrary.org/obo/IAO_0100001"
ABOUT, RESOURCE, PARSE_TYPE = f"{{{RDF}}}about", f"{{{RDF}}}resource", f"{{{RDF}}}parseType"
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
LONGEST_ENTITY = 1_000

Triple = tuple[str, str, str, str]
"""Subject, predicate, object, and the language of the object if it is a literal."""


def read_owl(stream: BinaryIO, relation: Relation) -> CellOntology:
    """Read the classes of the Cell Ontology and the edges between them; other ontologies are skipped.

    ``"is_a"``: edges are ``rdfs:subClassOf`` between classes that are not obsolete. ``"upstream"``: edges are all
    triples whose subject and object end in an id of the Cell Ontology, literals included; nodes are terms with an edge.

    Raises
    ------
    ValueError
        If the file is not RDF/XML, declares unsafe entities, gives a class two names, or as
        :class:`~scfm.ontology.CellOntology`.
    """
    check_entities(stream)
    stream.seek(0)
    classes, obsolete, version = set(), set(), None
    names: dict[str, str] = {}
    edges: list[tuple[str, str]] = []
    synonyms: dict[str, list[str]] = defaultdict(list)
    replaced: dict[str, list[str]] = defaultdict(list)
    for subject, predicate, value, language in triples(stream):
        if predicate == f"{OWL}versionInfo" and not version:
            version = value
        id, target = cell_id(subject), cell_id(value)
        if not id:
            continue
        if target and (relation == "upstream" or predicate == f"{RDFS}subClassOf"):
            edges.append((id, target))
        if predicate == f"{RDF}type" and value == f"{OWL}Class":
            classes.add(id)
        elif predicate == f"{OWL}deprecated" and value.strip() == "true":
            obsolete.add(id)
            replaced[id] += []
        elif predicate == f"{RDFS}label" and (not language or language.startswith("en")):
            if names.setdefault(id, value) != value:
                msg = f"it gives {id} two names, {names[id]!r} and {value!r}."
                raise ValueError(msg)
        elif predicate == f"{OBO_IN_OWL}hasExactSynonym":
            synonyms[id].append(value)
        elif target and predicate == REPLACED_BY:
            replaced[id].append(target)
        elif target and predicate == f"{OBO_IN_OWL}hasAlternativeId":
            replaced[target].append(id)
    ids = {id for edge in edges for id in edge if edge[0] != edge[1]} if relation == "upstream" else classes - obsolete
    return CellOntology(
        ids,
        [edge for edge in edges if edge[0] in ids],
        names=names,
        synonyms=synonyms,
        replaced=replaced,
        relation=relation,
        version=version,
    )


def cell_id(text: str) -> str | None:
    """Cell Ontology id at the end of a text or an IRI, such as ``CL:0000084``, else ``None``."""
    last = text.rsplit("/", 1)[-1].replace("_", ":")
    return last if last.startswith("CL:") else None


def triples(stream: BinaryIO) -> Iterator[Triple]:
    """Yield the triples of RDF/XML whose subject has an IRI, with one child of the root in memory at a time.

    Skips what ontologies do not use: objects without an IRI, ``parseType="Resource"`` and ``"Literal"``, and property
    attributes.
    """
    events = ElementTree.iterparse(stream, events=("start", "end"))
    _, root = next(events)
    if root.tag != f"{{{RDF}}}RDF":
        msg = f"it is not OWL in RDF/XML: its first element is <{root.tag}>, not <rdf:RDF>. ROBOT can convert it."
        raise ValueError(msg)
    depth = 0
    for event, element in events:
        depth += 1 if event == "start" else -1
        if depth == 0 and event == "end":
            yield from _of_node(element)
            root.clear()


def _of_node(top: ElementTree.Element) -> Iterator[Triple]:
    """Triples of a node; a node holds property elements, and a property a node or a literal."""
    nodes = [top]
    while nodes:
        node = nodes.pop()
        subject = node.get(ABOUT)
        if subject is not None:
            yield subject, f"{RDF}type", _iri(node.tag), ""
        for prop in node:
            parse_type = prop.get(PARSE_TYPE)
            if parse_type in (None, "Collection"):
                nodes.extend(prop)
            value = prop.get(RESOURCE)
            if value is None and parse_type is None:
                value = prop[0].get(ABOUT) if len(prop) else prop.text or ""
            if subject is not None and value is not None:
                yield subject, _iri(prop.tag), value, prop.get(LANGUAGE, "")


def _iri(tag: str) -> str:
    return tag.replace("{", "").replace("}", "")


def check_entities(stream: BinaryIO) -> None:
    """Read up to the first element; raise ValueError for nested, long or external entities.

    Ontologies declare short entities for namespaces. Others can exhaust memory or read other files.
    """
    parser, started = expat.ParserCreate(), []

    def declared(name: str, is_parameter: bool, value: str | None, *_: str | None) -> None:
        if is_parameter or value is None or "&" in value or len(value) > LONGEST_ENTITY:
            msg = f"it declares the entity {name!r}, which is not a short text. If you trust it, remove its DOCTYPE."
            raise ValueError(msg)

    parser.EntityDeclHandler = declared
    parser.StartElementHandler = lambda *element: started.append(element)
    while not started and (chunk := stream.read(1 << 16)):
        parser.Parse(chunk, False)

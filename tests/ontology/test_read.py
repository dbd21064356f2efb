"""Files of both formats, damaged ones, and ones made to do harm."""

from __future__ import annotations

import gzip
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import scfm.ontology
from scfm.ontology import read_ontology

if TYPE_CHECKING:
    from pathlib import Path

OBO = r"""format-version: 1.2
data-version: cl/releases/2020-01-01/cl.owl
ontology: cl

[Term]
id: CL:0000542
name: lymphocyte
def: "A kind of \"leukocyte\" {as is said}." [GOC:x]
is_a: UBERON:0000061 ! anatomical structure
relationship: RO:0002202 CL:0000084 ! develops from

[Term]
id: CL:0000084
name: T cell
alt_id: CL:0000804
synonym: "T \"killer\" cell" RELATED []
synonym: "T-cell \"x\"" EXACT ABBREVIATION [GOC:x]
synonym: "T lymphocyte" EXACT []
is_a: CL:0000542 {is_inferred="true"} ! lymphocyte
intersection_of: CL:0000542

[Term]
id: CL:0000085
name: obsolete thymocyte
is_a: CL:0000542
is_obsolete: true
replaced_by: CL:0000084

[Term]
id: CL:0000086
is_obsolete: true

[Term]
id: GO:1
name: something else

[Typedef]
id: CL:4030044
name: has_not_completed
"""

HEADER = """<?xml version="1.0"?>
<!DOCTYPE rdf:RDF [
  <!ENTITY obo "http://purl.obolibrary.org/obo/">
]>
<rdf:RDF xmlns:owl="http://www.w3.org/2002/07/owl#" xmlns:obo="http://purl.obolibrary.org/obo/"
  xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:rdfs="http://www.w3.org/2000/01/rdf-schema#"
  xmlns:oboInOwl="http://www.geneontology.org/formats/oboInOwl#">
"""
BODY = """
<owl:Ontology rdf:about="http://purl.obolibrary.org/obo/cl.owl"><owl:versionInfo>2020-01-01</owl:versionInfo></owl:Ontology>
<owl:ObjectProperty rdf:about="&obo;CL_4030044"><rdfs:label>has_not_completed</rdfs:label></owl:ObjectProperty>
<owl:Class rdf:about="&obo;CL_0000542">
  <rdfs:label xml:lang="en">lymphocyte</rdfs:label><rdfs:label xml:lang="de">Lymphozyt</rdfs:label>
  <rdfs:subClassOf rdf:resource="http://purl.obolibrary.org/obo/UBERON_0000061"/>
  <oboInOwl:id>CL:0000542</oboInOwl:id>
</owl:Class>
<owl:Class rdf:about="http://purl.obolibrary.org/obo/CL_0000084">
  <rdfs:label>T cell</rdfs:label>
  <rdfs:subClassOf rdf:resource="&obo;CL_0000542"/>
  <rdfs:subClassOf><owl:Restriction>
    <owl:onProperty rdf:resource="&obo;RO_1"/><owl:someValuesFrom rdf:resource="&obo;CL_0000099"/>
  </owl:Restriction></rdfs:subClassOf>
  <owl:equivalentClass><owl:Class><owl:intersectionOf rdf:parseType="Collection">
    <rdf:Description rdf:about="&obo;CL_0000542"/>
  </owl:intersectionOf></owl:Class></owl:equivalentClass>
  <owl:disjointUnionOf rdf:parseType="Collection"><rdf:Description rdf:about="&obo;CL_0000542"/></owl:disjointUnionOf>
  <rdfs:comment rdf:parseType="Literal"><b rdf:about="CL_1"><c rdf:resource="CL_2"/></b></rdfs:comment>
  <oboInOwl:hasExactSynonym>T-cell "x"</oboInOwl:hasExactSynonym>
  <oboInOwl:hasExactSynonym>T lymphocyte</oboInOwl:hasExactSynonym>
  <oboInOwl:hasRelatedSynonym>T "killer" cell</oboInOwl:hasRelatedSynonym>
  <oboInOwl:hasAlternativeId>CL:0000804</oboInOwl:hasAlternativeId>
</owl:Class>
<rdf:Description rdf:about="http://purl.obolibrary.org/obo/CL_0000085">
  <rdf:type rdf:resource="http://www.w3.org/2002/07/owl#Class"/>
  <rdfs:label>obsolete thymocyte</rdfs:label>
  <rdfs:subClassOf><owl:Class rdf:about="&obo;CL_0000542"/></rdfs:subClassOf>
  <owl:deprecated rdf:datatype="http://www.w3.org/2001/XMLSchema#boolean">true</owl:deprecated>
  <obo:IAO_0100001 rdf:resource="&obo;CL_0000084"/>
</rdf:Description>
<owl:Class rdf:about="&obo;CL_0000086"><owl:deprecated>true</owl:deprecated></owl:Class>
<owl:Axiom>
  <owl:annotatedSource rdf:resource="&obo;CL_0000086"/><owl:annotatedTarget rdf:resource="&obo;CL_0000084"/>
</owl:Axiom>
<owl:Class rdf:about="&obo;GO_1"><rdfs:label>something else</rdfs:label></owl:Class>
"""
OWL = f"{HEADER}{BODY}</rdf:RDF>\n"


def write(folder: Path, content: str | bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("text", [OBO, OWL, OBO.replace("\n", "\r\n"), "\ufeff" + OBO, "\ufeff" + OWL])
def test_both_formats_read_the_same(tmp_path: Path, text: str, packed: bool) -> None:
    content = gzip.compress(text.encode()) if packed else text.encode()
    onto = read_ontology(write(tmp_path, content, "named.anything"))
    assert onto.ids.tolist() == ["CL:0000084", "CL:0000542"]
    assert onto.names.tolist() == ["T cell", "lymphocyte"]
    assert dict(onto.synonyms) == {"CL:0000084": ('T-cell "x"', "T lymphocyte")}
    assert onto.graph_edges.tolist() == [[0, 1]]
    assert onto.version is not None
    assert "2020-01-01" in onto.version
    assert onto.resolve(["CL:0000085", "cl:0000804"]).tolist() == ["CL:0000084"] * 2
    with pytest.raises(ValueError, match="'CL:0000086' is obsolete"):
        onto.resolve(["CL:0000086"])


def test_upstream_edges(tmp_path: Path) -> None:
    onto = read_ontology(write(tmp_path, OWL), edges="upstream")
    pairs = {tuple(pair) for pair in onto.ids[onto.graph_edges].tolist()}
    assert pairs == {
        ("CL:0000084", "CL:0000542"),
        ("CL:0000084", "CL:0000804"),  # a text
        ("CL:0000085", "CL:0000542"),  # an element inside
        ("CL:0000085", "CL:0000084"),  # a replacement
    }
    assert onto.ids.tolist() == sorted({id for pair in pairs for id in pair})
    assert onto.name_of("CL:0000085") == "obsolete thymocyte"


def test_upstream_edges_need_owl(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="edges='upstream' are triples, which OBO does not have"):
        read_ontology(write(tmp_path, OBO), edges="upstream")
    with pytest.raises(ValueError, match="edges='all' is not known; use 'is_a' or 'upstream'"):
        read_ontology(write(tmp_path, OBO), edges="all")  # type: ignore[arg-type]


def term(id: str, *lines: str) -> str:
    return "\n".join(["", "[Term]", f"id: {id}", *lines, ""])


START = "format-version: 1.2\nontology: cl\n"


def owl_class(id: str, *parents: str, label: str = "a cell") -> str:
    edges = "".join(f'<rdfs:subClassOf rdf:resource="&obo;{parent}"/>' for parent in parents)
    return f'<owl:Class rdf:about="&obo;{id}"><rdfs:label>{label}</rdfs:label>{edges}</owl:Class>'


def owl(*classes: str, header: str = HEADER) -> str:
    return "\n".join([header, *classes, "</rdf:RDF>"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ("  \n\n ", "it is empty"),
        (gzip.compress(b"", mtime=0), "it is empty"),
        ("<!DOCTYPE html>\n<html><body>Not found</body></html>", "it is a web page"),
        ("\n<HTML lang=en><p>", "it is a web page"),
        ("<div>Rate limit<br></div>", "mismatched tag"),
        ("<Ontology/>", "not OWL in RDF/XML: its first element is <Ontology>"),
        ("Prefix(:=<http://purl.obolibrary.org/obo/cl.owl#>)\nOntology(", "neither OBO nor OWL in RDF/XML.*ROBOT"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3", "neither OBO nor OWL"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "neither OBO nor OWL"),
        (gzip.compress(OBO.encode(), mtime=0)[:-20], "ended before"),
        (gzip.compress(OBO.encode(), mtime=0)[:10] + b"garbage" * 9, "Error|CRC|invalid"),
        (OWL[:-30], "no element found|unclosed|not well-formed"),
        (OWL[:100], "no element found|unclosed|not well-formed|syntax"),
        (START, "at least one term"),
        (START + term("GO:1", "name: x"), "at least one term"),
        (START + term("CL:1", "is_obsolete: true"), "at least one term"),
        (START + term("CL:1", "no colon in this line"), "it is not valid OBO: .*no colon in this line"),
        (START + "\n[Term]\nname: without an id\n", "it is not valid OBO: a term has no id"),
        (START.encode() + b"\n[Term]\nid: CL:1\nname: \xff\xfe\n", "codec can't decode"),
        (START + term("CL:1") + term("CL:2") + term("CL:1"), "defines CL:1 more than once"),
        (START + term("CL:1", "is_a: CL:2"), "absent or obsolete: CL:1 → CL:2"),
        (START + term("CL:1", "is_a: CL:2") + term("CL:2", "is_obsolete: true"), "absent or obsolete: CL:1 → CL:2"),
        (START + term("CL:1", "is_a: CL:1"), "cycle through 'CL:1' CL:1"),
        (START + term("CL:1", "is_a: CL:2") + term("CL:2", "name: b", "is_a: CL:1"), "cycle through .*'b' CL:2"),
        (owl(), "at least one term"),
        (owl(owl_class("GO_1")), "at least one term"),
        (owl(owl_class("CL_1", "CL_2")), "absent or obsolete: CL:1 → CL:2"),
        (owl(owl_class("CL_1", "CL_2"), owl_class("CL_2", "CL_1")), "cycle through 'a cell' CL:1, 'a cell' CL:2"),
        (owl(owl_class("CL_1"), owl_class("CL_1", label="b")), "gives CL:1 two names, 'a cell' and 'b'"),
        (owl(owl_class("CL_1").replace("&obo;", "&other;")), "undefined entity"),
        (OWL.replace('"1.0"', '"1.0" encoding="utf-99"'), "unknown encoding"),
        (OWL.replace('"1.0"', '"1.0" encoding="shift_jis"'), "encoding"),
    ],
)
def test_damaged(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path, content, "damaged.obo")
    with pytest.raises(ValueError, match=f"damaged.obo cannot be read as the Cell Ontology: .*({message})"):
        read_ontology(path)


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cl\.obo"):
        read_ontology(tmp_path / "cl.obo")


BOMB = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))


@pytest.mark.parametrize(
    "declarations",
    [
        f'<!ENTITY a0 "lol">{BOMB}',
        '<!ENTITY a9 "&#38;a8;">',
        f'<!ENTITY a9 "{"x" * 100_000}">',
        '<!ENTITY a9 SYSTEM "file:///etc/passwd">',
        '<!ENTITY % p SYSTEM "http://127.0.0.1:9/x.dtd"> %p;',
        '<!ENTITY % a9 "x">',
    ],
)
def test_entities_that_do_harm(tmp_path: Path, declarations: str) -> None:
    header = HEADER.replace("]>", f"{declarations}\n]>")
    path = write(tmp_path, owl(owl_class("CL_1", label="&a9;" * 100), header=header))
    with pytest.raises(ValueError, match="declares the entity '(a|p).*not a short text"):
        read_ontology(path)


def test_deep_nesting(tmp_path: Path) -> None:
    depth = 50_000
    deep = "<owl:Class><owl:complementOf>" * depth + "</owl:complementOf></owl:Class>" * depth
    onto = read_ontology(write(tmp_path, owl(owl_class("CL_1"), deep)))
    assert onto.ids.tolist() == ["CL:1"]


@given(st.data())
def test_cut_or_changed_anywhere(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from([OBO, OWL])).encode())
    if data.draw(st.booleans(), "cut"):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.getbasetemp(), bytes(content))
    for edges in ("is_a", "upstream"):
        message = ""
        try:
            read_ontology(path, edges=edges)  # type: ignore[arg-type]
        except ValueError as error:
            message = str(error)
        assert not message or str(path) in message


def test_without_obonet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obonet", None)
    with pytest.raises(ImportError, match=r'pip install "scfm-tools\[ontology\]"'):
        read_ontology(write(tmp_path, OBO))
    with pytest.raises(ImportError, match="obonet"):
        scfm.ontology.bundled()
    assert len(read_ontology(write(tmp_path, OWL))) == 2


def test_importing_is_light() -> None:
    code = "import sys, scfm.ontology; print(*{'torch', 'sklearn', 'scanpy', 'obonet', 'networkx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

"""Write the part of the Cell Ontology that ships with scfm: common types of blood, lung and connective tissue.

Give it a whole release, as OBO or OWL (https://github.com/obophenotype/cell-ontology/releases)::

    python scripts/make_ontology_subset.py cl-basic.obo src/scfm/ontology/cl-subset.obo

The terms below and everything above them are written, with ids, names, exact synonyms and ``is_a``, nothing else.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from scfm.ontology import CellOntology, read_ontology

TERMS = """
CL:0000084 CL:0000624 CL:0000625 CL:0000792 CL:0000794 CL:0000815 CL:0000895 CL:0000897 CL:0000900 CL:0000904
CL:0000905 CL:0000907 CL:0000909 CL:0000913 CL:0000934 CL:0000798 CL:0000814 CL:0000912 CL:0000545 CL:0000546
CL:0000899 CL:0000940 CL:0000623 CL:0000938 CL:0000939 CL:0001065
CL:0000236 CL:0000787 CL:0000788 CL:0000818 CL:0000844 CL:0001201 CL:0000786 CL:0000980
CL:0000576 CL:0000860 CL:0000875 CL:0002393 CL:0001054 CL:0002057 CL:0002396 CL:0002397
CL:0000451 CL:0000784 CL:0000990 CL:0002394 CL:0002399
CL:0000235 CL:0000583 CL:0000775 CL:0000771 CL:0000767 CL:0000097 CL:0000233 CL:0000232 CL:0000556 CL:0000764
CL:0000037 CL:0008001 CL:0000837 CL:0000049 CL:0000050 CL:2000001
CL:0000066 CL:0000082 CL:0002062 CL:0002063 CL:0000158 CL:0002368 CL:0000067 CL:0002633
CL:0000115 CL:0002139 CL:0000071 CL:0002144 CL:2000016
CL:0000057 CL:0002553 CL:0000186 CL:0000192 CL:0000669 CL:0000499 CL:0000077
""".split()  # T and NK cells; B cells; monocytes; dendritic; other blood; progenitors; lung; endothelium; mesenchyme


def escape(text: str) -> str:
    """Make a text fit between the quotes of an OBO synonym."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def subset(onto: CellOntology) -> str:
    """Write the terms and all above them as OBO."""
    ids = sorted({*TERMS, *(id for term in TERMS for id in onto.ancestors(term).tolist())})
    release = re.search(r"\d{4}-\d{2}-\d{2}", onto.version or "")
    if release is None:
        msg = f"The file does not say which release it is; its version is {onto.version!r}."
        raise SystemExit(msg)
    lines = [
        "format-version: 1.2",
        f"data-version: cl/releases/{release[0]}",
        "ontology: cl/scfm-subset",
        f"remark: Derived from the Cell Ontology, release {release[0]}: some of its terms, with ids, names, exact synonyms and is_a.",
        "remark: Cell Ontology, http://obofoundry.org/ontology/cl, CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
        "remark: Made by scripts/make_ontology_subset.py; terms above the chosen ones are included.",
    ]
    for id in ids:
        lines += ["", "[Term]", f"id: {id}", f"name: {onto.name_of(id)}"]
        lines += [f'synonym: "{escape(synonym)}" EXACT []' for synonym in onto.synonyms.get(id, ())]
        lines += [f"is_a: {parent} ! {onto.name_of(parent)}" for parent in onto.parents(id).tolist()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read a release, write the subset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("release", type=Path, help="Cell Ontology, OBO or OWL")
    parser.add_argument("out", type=Path, help=".obo file to write")
    arguments = parser.parse_args()
    text = subset(read_ontology(arguments.release))
    arguments.out.write_text(text, encoding="utf-8")
    print(f"{text.count('[Term]')} terms, {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()

"""What help() says of verbs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from docstring_parser import parse_from_object

import scfm
from scfm._docs import PARAMETERS, with_parameters

if TYPE_CHECKING:
    from collections.abc import Callable

VERBS = {
    f"{module}.{name}": getattr(getattr(scfm, module), name)
    for module in ("pp", "tl", "get", "pl")
    for name in getattr(scfm, module).__all__
} | {"FoundationModel.embed": scfm.model.FoundationModel.embed}


@pytest.mark.parametrize("name", VERBS)
def test_every_parameter_is_explained(name: str) -> None:
    verb = VERBS[name]
    explained = {
        one.strip(): (found.description or "")
        for found in parse_from_object(verb).params
        for one in found.arg_name.split(",")
    }
    assert list(explained) == [one for one in inspect.signature(verb).parameters if one != "self"]
    assert all(explained.values())
    assert "%(" not in (inspect.getdoc(verb) or "")


@pytest.mark.parametrize("name", ["tl.embed", "tl.score", "tl.gene_embeddings", "tl.marker_genes", "pp.match_genes"])
def test_no_parameter_is_explained_elsewhere(name: str) -> None:
    """``?`` in a notebook answers by itself."""
    texts = {found.arg_name: found.description for found in parse_from_object(VERBS[name]).params}
    assert texts["layer"] == "Layer that holds the counts."
    assert texts["compat"]
    referring = [name for name, text in texts.items() if text is not None and text.startswith("As for")]
    assert set(referring) <= {"data", "pooling"}


def test_texts_are_put_in_with_their_indentation() -> None:
    def verb() -> None: ...

    verb.__doc__ = "Do it.\n\n    %(copy)s\n"
    assert with_parameters(verb).__doc__ == f"Do it.\n\n    {PARAMETERS['copy']}\n".replace("\n    Ch", "\n        Ch")


def test_a_text_that_does_not_exist() -> None:
    def verb() -> None: ...

    verb.__doc__ = "%(nothing)s"
    with pytest.raises(KeyError, match="nothing"):
        with_parameters(verb)


METHODS: list[tuple[str, Callable[..., Any]]] = [
    ("embed", scfm.tl.embed),
    ("annotate", scfm.tl.annotate),
    ("marker_genes", scfm.tl.marker_genes),
    ("match_genes", scfm.pp.match_genes),
    ("score", scfm.tl.score),
    ("gene_embeddings", scfm.tl.gene_embeddings),
]


@pytest.mark.parametrize(("name", "verb"), METHODS)
def test_methods_have_the_signature_of_the_verb(name: str, verb: Callable[..., Any]) -> None:
    method = getattr(scfm.datasets.synthetic(2, 5, genes_per_cell=2).scfm, name)
    assert list(inspect.signature(method).parameters) == list(inspect.signature(verb).parameters)[1:]
    assert inspect.getdoc(method) == inspect.getdoc(verb)


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_that_the_docs_name_exist(page: str) -> None:
    if not (ROOT / page).is_file():
        pytest.skip("without documentation")
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:\.\./)?([\w/.-]+(?:\.py|\.md|\.toml|/))`", text))
    paths = (path for top in ("src", "docs", "tests", "scripts") for path in [ROOT / top, *(ROOT / top).rglob("*")])
    known = {path.as_posix() for path in [*paths, *ROOT.iterdir()]}
    missing = [name for name in named if not any(path.endswith(f"/{name.rstrip('/')}") for path in known)]
    assert [name for name in missing if not name.endswith(("_x.py", "mymodel.py", "mymodel.toml", "mymodel.md"))] == []
    assert len(named) > 5

"""What an editor completes, and what a notebook shows."""

from __future__ import annotations

from typing import Any

import mudata
import pytest

import scfm


@pytest.mark.parametrize("name", sorted({"get", "pl", "pp", "tl", "metrics", "datasets", "ontology", "model"}))
def test_modules_show_public_names(name: str) -> None:
    module = getattr(scfm, name)
    assert dir(module) == sorted(module.__all__)


def test_a_model_shows_what_users_call() -> None:
    model = scfm.model.load("scfm-mini")
    shown = dir(model)
    assert {"embed", "cite", "card", "vocabulary", "n_features"} <= set(shown)
    assert len(shown) < 15
    assert all(hasattr(model, name) for name in shown)


def test_accessors_show_verbs_and_results() -> None:
    adata: Any = scfm.datasets.pbmc68k()[:8].copy()
    assert repr(adata.scfm) == (
        "ScfmAnnData with the methods annotate, embed, gene_embeddings, marker_genes, match_genes, score"
    )
    adata.uns["other"] = {"params": {"model": "mine"}}
    adata.scfm.embed("scfm-mini")
    assert repr(adata.scfm).splitlines()[1:] == ["and the results", "  uns['scfm_mini'], made with scfm-mini"]
    with mudata.set_options(pull_on_update=False):
        mdata: Any = mudata.MuData({"rna": adata})
    assert "  rna: uns['scfm_mini'], made with scfm-mini" in repr(mdata.scfm)

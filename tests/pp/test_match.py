"""``pp.match_genes`` looks at what ``tl.embed`` reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scfm
from scfm.testing import write_geneformer, write_transcriptformer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "geneformer": write_geneformer(root / "geneformer"),
        "transcriptformer": write_transcriptformer(root / "transcriptformer"),
    }


@pytest.fixture(params=["geneformer", "transcriptformer"])
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> scfm.model.FoundationModel:
    return scfm.model.load(folders[request.param])


def with_raw(model: scfm.model.FoundationModel) -> ad.AnnData:
    """Normalised values of 8 genes in X, counts of 16 in raw."""
    genes = model.vocabulary.genes[:16]
    obs = pd.DataFrame({"n_counts": 16.0}, index=["a", "b", "c"])
    adata = ad.AnnData(np.ones((3, 16), np.float32), obs=obs, var=pd.DataFrame({"ensembl_id": genes}, index=genes))
    adata.raw = adata.copy()
    adata = adata[:, :8].copy()
    adata.X *= 0.5
    return adata


@pytest.mark.filterwarnings("ignore:X of:UserWarning", "ignore:X holds .* reading raw")
@pytest.mark.parametrize("compat", [None, "upstream"])
def test_the_matrix_is_that_of_embed(model: scfm.model.FoundationModel, compat: Any) -> None:
    adata = with_raw(model)
    report = scfm.pp.match_genes(adata, model, compat=compat)
    scfm.tl.embed(adata, model, compat=compat, key_added="e")
    assert report.as_dict() == adata.uns["e"]["params"]["genes"]
    prefers_raw = compat is None or model.upstream_prefers_raw
    assert report.matched == (16 if prefers_raw else 8)


def test_options_that_change_the_match(folders: dict[str, Path]) -> None:
    """The error that names an option is cured by that option."""
    folder = folders["transcriptformer"]
    genes = scfm.model.load(folder).vocabulary.genes[[0, 1, 1]]
    adata = ad.AnnData(np.ones((2, 3), np.float32), var=pd.DataFrame({"ensembl_id": genes}, index=["a", "b", "c"]))
    with pytest.raises(ValueError, match="remove_duplicate_genes=True"):
        scfm.pp.match_genes(adata, folder, compat="upstream")
    report = scfm.pp.match_genes(adata, folder, compat="upstream", remove_duplicate_genes=True)
    assert (report.matched, report.unmatched) == (2, 1)


def test_an_option_of_another_family(folders: dict[str, Path]) -> None:
    adata = with_raw(scfm.model.load(folders["geneformer"]))
    with pytest.raises(TypeError, match="'remove_duplicate_genes' is no option .* takes no options of its own"):
        scfm.pp.match_genes(adata, folders["geneformer"], remove_duplicate_genes=True)
    with pytest.raises(TypeError, match="'pooling' is no option of this call; it belongs to scfm.tl.embed"):
        scfm.pp.match_genes(adata, folders["geneformer"], pooling="mean")

"""Which genes a run uses: those that match, and that others share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

import scfm
from scfm.genes import overlap
from tests.rounding import close

if TYPE_CHECKING:
    from pathlib import Path

MODEL = scfm.model.load("scfm-mini")
GENES = MODEL.vocabulary.genes[::30].tolist()


def cells(genes: list[str], seed: int = 0, *, symbols: bool = False) -> ad.AnnData:
    names = [MODEL.vocabulary.symbol_of.get(gene, gene) for gene in genes] if symbols else genes
    counts = np.random.default_rng(seed).poisson(2, (6, len(genes))).astype(np.float32)
    obs = pd.DataFrame(index=[f"cell{seed}-{i}" for i in range(6)])
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=names))


def stored_genes(adata: ad.AnnData) -> dict[str, Any]:
    genes: dict[str, Any] = adata.uns["scfm_mini"]["params"]["genes"]
    return genes


@pytest.fixture
def query() -> ad.AnnData:
    return cells(GENES[:200])


@pytest.fixture
def reference() -> ad.AnnData:
    return cells(GENES[120:], 1, symbols=True)


def test_only_shared_genes_are_used(query: ad.AnnData, reference: ad.AnnData) -> None:
    expected = MODEL.embed(query[:, 120:].copy())
    np.testing.assert_array_equal(MODEL.embed(query, shared_with=reference), expected)
    scfm.tl.embed(query, MODEL, shared_with=reference)
    genes = stored_genes(query)
    assert (genes["matched"], genes["not_shared"]) == (200, 120)
    assert not np.array_equal(expected, MODEL.embed(query))


def test_both_are_comparable_when_each_is_embedded_with_the_other(query: ad.AnnData, reference: ad.AnnData) -> None:
    scfm.tl.embed(query, MODEL, shared_with=reference)
    scfm.tl.embed(reference, MODEL, shared_with=query)
    found = overlap(stored_genes(query), stored_genes(reference))
    assert found == (80, 80, 80)


def test_the_genes_of_an_embedding_count_and_not_those_of_the_object(query: ad.AnnData, reference: ad.AnnData) -> None:
    scfm.tl.embed(reference, MODEL)
    embedded = ad.AnnData(obs=reference.obs, obsm=dict(reference.obsm), uns=dict(reference.uns))
    np.testing.assert_array_equal(MODEL.embed(query, shared_with=embedded), MODEL.embed(query[:, 120:].copy()))


def test_an_embedding_of_another_model_does_not_count(query: ad.AnnData, reference: ad.AnnData) -> None:
    scfm.tl.embed(reference, MODEL)
    stored_genes(reference)["vocabulary_sha256"] = "of another"
    np.testing.assert_array_equal(MODEL.embed(query, shared_with=reference), MODEL.embed(query[:, 120:].copy()))


@pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")  # of mudata
@pytest.mark.parametrize("kind", ["list", "MuData", "h5ad", "str"])
def test_what_it_may_be(kind: str, query: ad.AnnData, reference: ad.AnnData, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "list": [reference, cells(GENES[:150])],
        "MuData": md.MuData({"rna": reference}),
        "h5ad": tmp_path / "a.h5ad",
        "str": str(tmp_path / "a.h5ad"),
    }
    reference.write_h5ad(tmp_path / "a.h5ad")
    used = query[:, 120 : 150 if kind == "list" else None].copy()
    if kind == "MuData":
        found = MODEL.embed(md.MuData({"rna": query}), modality="rna", shared_with=given[kind])
    else:
        found = MODEL.embed(query, shared_with=given[kind])
    np.testing.assert_array_equal(found, MODEL.embed(used))


def test_several_files_and_a_store(query: ad.AnnData, reference: ad.AnnData, tmp_path: Path) -> None:
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    query.write_h5ad(paths[0])
    query[:, 50:].write_h5ad(paths[1])
    expected = MODEL.embed(query[:, 120:].copy())
    both = MODEL.embed(paths, shared_with=reference)
    close(both, np.concatenate([expected, expected]))
    store = scfm.tl.embed_store(paths[0], MODEL, tmp_path / "a.zarr", shared_with=paths[1])
    with pytest.raises(FileExistsError, match=r"genes.not_shared was 50 and is 0, genes.panel was '.{1,40}' and is"):
        scfm.tl.embed_store(paths[0], MODEL, store)


def test_what_is_refused(query: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="No gene is shared: the data have 200 genes"):
        MODEL.embed(query, shared_with=cells(GENES[200:]))
    with pytest.raises(TypeError, match="shared_with= takes an AnnData, a MuData, a path, or a list of such; got set"):
        MODEL.embed(query, shared_with={"CD3D"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prefix", "hint"),
    [
        ("ENSMUSG", "Models that know mouse: .*tf-exemplar"),
        ("ENSGALG", "Models that know chicken: .*tf-metazoa"),
        ("ENSSSCG", "No registered model knows pig"),
    ],
)
def test_models_of_the_species_are_named(prefix: str, hint: str) -> None:
    adata = cells([gene.replace("ENSG", prefix) for gene in GENES])
    for call in (MODEL.embed, lambda data: scfm.pp.match_genes(data, MODEL)):
        with pytest.raises(ValueError, match=rf"{hint}.*scfm\.pp\.to_orthologs maps"):
            call(adata)

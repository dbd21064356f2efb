from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

import scfm
from scfm.model import registry
from scfm.model.registry import card_of
from scfm.testing import write_geneformer, write_transcriptformer

if TYPE_CHECKING:
    from pathlib import Path

TABLES = ("token_dictionary", "gene_median_dictionary", "ensembl_mapping_dict", "gene_name_id_dict")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_geneformer(tmp_path_factory.mktemp("published") / "Tiny")


def copied(published: Path, folder: Path, *, dictionaries: Path | None) -> Path:
    shutil.copytree(published, folder)
    if dictionaries is not None:
        dictionaries.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.pkl"):
            path.replace(dictionaries / path.name)
    return folder


@pytest.mark.parametrize("place", [None, "..", "../geneformer", "../geneformer/gene_dictionaries_30m"])
def test_dictionaries_are_found_beside_the_weights(published: Path, tmp_path: Path, place: str | None) -> None:
    folder = tmp_path / "models" / "Tiny"
    folder.parent.mkdir()
    copied(
        published, folder, dictionaries=None if place is None else folder.parent / place.removeprefix("../").strip(".")
    )
    assert scfm.model.load(folder).vocabulary.size == scfm.model.load(published).vocabulary.size


def test_dictionaries_may_be_named(published: Path, tmp_path: Path) -> None:
    folder = copied(published, tmp_path / "a" / "Tiny", dictionaries=tmp_path / "tables")
    for given in (tmp_path / "tables", str(tmp_path / "tables"), sorted((tmp_path / "tables").iterdir())):
        assert scfm.model.load(folder, dictionaries=given).vocabulary.size == 204


def test_the_set_that_fits_is_taken_among_several(published: Path, tmp_path: Path) -> None:
    other = write_geneformer(tmp_path / "Other", n_genes=30)
    folder = copied(published, tmp_path / "both" / "Tiny", dictionaries=tmp_path / "tables")
    for path in other.glob("*.pkl"):
        path.replace(tmp_path / "tables" / path.name.replace("gctiny", "gca"))
    vocabulary = scfm.model.load(folder, dictionaries=tmp_path / "tables").vocabulary
    assert vocabulary.size == 204
    assert len(vocabulary.symbols) == 200


def test_matching_needs_no_weights(published: Path, tmp_path: Path) -> None:
    import anndata as ad
    import pandas as pd

    folder = copied(published, tmp_path / "Tiny", dictionaries=None)
    (folder / "model.safetensors").unlink()
    var = pd.DataFrame(index=["GENE1", "ENSG00000000002.5", "nothing"])
    report = scfm.pp.match_genes(ad.AnnData(np.ones((2, 3), np.float32), var=var), folder)
    assert (report.matched, report.by_symbol, report.by_version) == (2, 1, 1)


def test_matching_by_name_needs_only_dictionaries(shared: Path) -> None:
    adata = scfm.datasets.pbmc68k()
    tables = shared / "reference" / "dictionaries"
    for model, version in (("geneformer-v1-10m", "V1"), ("geneformer-v2-104m", "V2")):
        report = scfm.pp.match_genes(adata, model, dictionaries=tables / version)
        assert report.matched > 600
        assert report.by_symbol == report.matched
    with pytest.raises(ValueError, match="belong to another model"):
        scfm.pp.match_genes(adata, "geneformer-v1-10m", dictionaries=tables / "V2")


def test_a_converted_model_brings_everything(published: Path, tmp_path: Path) -> None:
    folder = scfm.model.convert(published, tmp_path / "converted")
    assert sorted(path.name for path in folder.iterdir()) == [
        "aliases.tsv",
        "card.json",
        "model.safetensors",
        "vocabulary.tsv",
    ]
    # a copy: the files of the user may be changed where they are
    assert not (folder / "model.safetensors").samefile(published / "model.safetensors")
    model = scfm.model.load(folder)
    assert model.card.weights_sha256 == scfm.model.load(published).card.weights_sha256
    assert (model.card.pooling, model.card.hidden_layer) == ("cls", -1)
    with pytest.raises(ValueError, match="brings its own vocabulary"):
        scfm.model.load(folder, dictionaries=published)


def test_networks_stop_at_the_layer_that_is_read(published: Path) -> None:
    model = scfm.model.load(published)
    assert len(model.network(2).layers) == 2
    adata = scfm.datasets.synthetic(5, 200, genes_per_cell=20, genes=model.vocabulary.genes.tolist())
    outputs = [model.embed(adata, hidden_layer=layer) for layer in (0, -1, -2, -3)]
    assert all(np.isfinite(values).all() for values in outputs)
    assert not np.allclose(outputs[0], outputs[1])


def test_a_recipe_is_a_model_without_its_weights(tmp_path: Path) -> None:
    folder = scfm.model.convert(write_transcriptformer(tmp_path / "published"), tmp_path / "converted")
    recipe, model = scfm.model.load_recipe(folder), scfm.model.load(folder)
    assert (recipe.family, recipe.card.id) == (model.family, model.card.id)
    assert recipe.vocabulary.genes.tolist() == model.vocabulary.genes.tolist()
    assert repr(recipe) == repr(model)
    assert scfm.model.load_recipe(recipe) is recipe
    adata = scfm.datasets.synthetic(2, 20, genes_per_cell=4, genes=model.vocabulary.genes[:20])
    assert scfm.pp.match_genes(adata, recipe).matched == 20
    with pytest.raises(ValueError, match="was loaded without its weights .*; load it by scfm.model.load"):
        scfm.tl.embed(adata, recipe)


def test_a_recipe_is_of_the_family_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scfm.settings, "cache_dir", tmp_path)
    published = write_transcriptformer(tmp_path / "tf_sapiens")
    sizes = scfm.model.load(published).card.architecture
    monkeypatch.setitem(registry.known_cards, "tf-sapiens", card_of("tf-sapiens").with_(architecture=sizes))
    scfm.model.convert(published, tmp_path / "models" / "tf-sapiens")
    assert scfm.model.load_recipe("esm2ce-sapiens").family == scfm.model.load("esm2ce-sapiens").family == "esm2ce"

"""What training starts from: sizes, vocabularies, weights of other models, vectors of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

import scfm
from scfm.testing import write_geneformer
from scfm.train.config import read_config
from scfm.weights.gene_vectors import write_gene_vectors

from .conftest import GENES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., dict[str, Any]]

pytest.importorskip("lightning")

MASKED = {"masked_genes": {}}


@pytest.fixture
def plan_of(config: Make, tmp_path: Path) -> Callable[..., Any]:
    def make(vectors: pd.DataFrame | None = None, **changes: Any) -> Any:
        from scfm.train.plan import Plan

        run = read_config(config(**changes), out=str(tmp_path / "model"))
        return Plan.of(run, tmp_path / "model", tmp_path / "work", vectors)

    return make


def test_the_vocabulary_of_the_corpus(plan_of: Callable[..., Any]) -> None:
    plan = plan_of(genes={"min_cells": 1, "min_share": 0.0})
    vocabulary = plan.model.vocabulary
    assert set(vocabulary.genes) <= set(GENES)
    assert len(vocabulary.genes) > 50
    assert dict(vocabulary.special_tokens) == {"<pad>": 0, "<mask>": 1}
    assert (vocabulary.medians > 0).all()
    assert plan.module.network.word_embeddings.weight.shape == (len(vocabulary.genes) + 2, 16)


def test_files_that_are_held_out_give_no_genes(plan_of: Callable[..., Any]) -> None:
    plan = plan_of(genes={"min_cells": 1, "min_share": 0.0}, validation={"files": ["two"]})
    assert set(plan.model.vocabulary.genes) <= set(GENES[:50])
    assert plan.data.judged == ["validation", "other_files"]


@pytest.mark.parametrize(
    ("family", "tokens", "pooling"),
    [
        ("geneformer", ["<pad>", "<mask>", "<cls>", "<eos>"], "cls"),
        ("sccello", ["<pad>", "<mask>", "<cls>"], "cls"),
    ],
)
def test_other_families(
    config: Make, corpus: Path, tmp_path: Path, family: str, tokens: list[str], pooling: str
) -> None:
    run = config(family=family, steps=1, objectives={"contrastive": {}}, genes={"min_cells": 1, "min_share": 0.0})
    model = scfm.model.load(scfm.train.pretrain(config=run, out=tmp_path / "model"))  # type: ignore[arg-type]
    assert list(model.vocabulary.special_tokens) == tokens
    assert (model.family, model.card.pooling) == (family, pooling)
    assert np.isfinite(model.embed(corpus / "one.h5ad")).all()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A published Geneformer that knows some of the genes."""
    return scfm.model.convert(write_geneformer(tmp_path / "published", n_genes=30), tmp_path / "base")


def test_training_goes_on_from_other_weights(config: Make, base: Path, tmp_path: Path) -> None:
    genes = scfm.model.load(base).vocabulary.genes
    adata = scfm.datasets.synthetic(60, len(genes) + 5, genes_per_cell=12)
    adata.var_names = [*genes, *(f"ENSG9{i:010d}" for i in range(5))]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    run = config(files=[str(tmp_path / "cells.h5ad")], base=str(base), objectives=MASKED, steps=1)
    for name in ("family", "architecture", "genes"):
        del run[name]
    before = load_file(base / "model.safetensors")
    tuned = scfm.train.pretrain(config={**run, "optimiser": {"learning_rate": 1e-9}}, out=tmp_path / "tuned")
    after = load_file(tuned / "model.safetensors")  # type: ignore[operator]
    assert set(after) <= set(before)
    for name, values in after.items():
        np.testing.assert_allclose(values, before[name], atol=1e-6, err_msg=name)
    card = scfm.model.load(tuned).card  # type: ignore[arg-type]
    assert (card.id, card.source, card.training["run"]["base"]) == ("tuned", "", str(base))

    append = {"append": True, "min_cells": 1, "min_share": 0.0}
    grown = scfm.model.load(
        scfm.train.pretrain(
            config={**run, "optimiser": {"learning_rate": 1e-9}, "genes": append}, out=tmp_path / "grown"
        )  # type: ignore[arg-type]
    )
    assert grown.vocabulary.genes.tolist()[: len(genes)] == genes.tolist()
    assert sorted(grown.vocabulary.genes.tolist()[len(genes) :]) == [f"ENSG9{i:010d}" for i in range(5)]
    words = grown.tensors["bert.embeddings.word_embeddings.weight"].numpy()
    old = before["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_allclose(words[: len(old)], old, atol=1e-6)
    assert len(words) == len(old) + 5
    assert 0.01 < words[len(old) :].std() < 0.03


def test_a_vocabulary_that_does_not_fit(config: Make, corpus: Path, base: Path, tmp_path: Path) -> None:
    run = config(base=str(base), objectives=MASKED)
    del run["family"], run["architecture"]
    with pytest.raises(ValueError, match=r"does not fit the weights of base=.* genes have another token or none"):
        scfm.train.pretrain(config=run, out=tmp_path / "model")
    run["genes"] = {}
    with pytest.raises(ValueError, match="architecture.n_layers is no size that can be set; a base keeps its sizes"):
        scfm.train.pretrain(config={**run, "architecture": {"n_layers": 3}}, out=tmp_path / "other")
    with pytest.raises(ValueError, match="is of the family 'geneformer', not 'sccello'"):
        scfm.train.pretrain(config=run, family="sccello", out=tmp_path / "third")


def test_vectors_of_genes(plan_of: Callable[..., Any], tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    given = pd.DataFrame(values, index=[*GENES[:39], "other"])
    np.savez(tmp_path / "v.npz", genes=given.index.to_numpy(str), vectors=values)
    write_gene_vectors(tmp_path / "v.h5", list(given.index), values)
    plain = plan_of().module.network.word_embeddings.weight.detach().numpy()
    made = [plan_of(given), *(plan_of(gene_vectors=str(tmp_path / name)) for name in ("v.npz", "v.h5"))]
    for plan in made:
        words = plan.module.network.word_embeddings.weight.detach().numpy()
        np.testing.assert_array_equal(words[2:41], values[:39])
        np.testing.assert_array_equal(words[41:], plain[41:])
        np.testing.assert_array_equal(words[:2], plain[:2])


def test_vectors_that_do_not_fit(plan_of: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gene_vectors has 3 features, the model 16"):
        plan_of(pd.DataFrame(np.zeros((2, 3)), index=GENES[:2]))
    with pytest.raises(ValueError, match="none of its 2 genes, such as a, b, is in the vocabulary"):
        plan_of(pd.DataFrame(np.zeros((2, 16)), index=["a", "b"]))
    np.savez(tmp_path / "v.npz", genes=np.array(["a"]))
    with pytest.raises(ValueError, match="must hold 'genes' and as many finite 'vectors'"):
        plan_of(gene_vectors=str(tmp_path / "v.npz"))
    with pytest.raises(FileNotFoundError, match="takes an .npz or HDF5 file"):
        plan_of(gene_vectors=str(tmp_path / "no.npz"))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"architecture": {"layers": 3}},
            ValueError,
            "architecture.layers is no size that can be set; there are .*n_layers",
        ),
        ({"architecture": {"n_heads": 3}}, ValueError, "hidden_size 16 is not a multiple"),
        ({"family": "esm2ce"}, TypeError, "'esm2ce' cannot be trained; these can: geneformer"),
        ({"family": "no"}, ValueError, "family='no' is not known"),
        ({"objectives": {"no": {}}}, ValueError, "objectives.no is not known; there are masked_genes"),
        ({"objectives": {"masked_genes": {"weight": 0}}}, ValueError, "weight must be a number above 0"),
        ({"objectives": {"contrastive": {"tau": 1}}}, ValueError, "objectives.contrastive: .*'tau'"),
        ({"genes": {"append": True}}, ValueError, "genes.append adds genes to those of a base"),
        ({"validation": {"files": ["one", "two"]}}, ValueError, "validation.files holds out all files"),
        ({"validation": {"files": ["three"]}}, ValueError, "'three' is none of the files; there are one, two"),
        ({"family": "sccello", "genes": {}}, ValueError, "does not fit an scCello model of 1 layers. 4 unexpected"),
        ({"labels_key": "no"}, KeyError, "labels_key='no' is a column with labels in none of the 2 files"),
        ({"pooling": "cls"}, ValueError, "pooling='cls' is not known"),
        ({"max_tokens": 99}, ValueError, "max_tokens=99 is out of range"),
    ],
)
def test_what_does_not_go_together(
    plan_of: Callable[..., Any], changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        plan_of(**changes)


def test_symbols_need_a_vocabulary_that_knows_them(plan_of: Callable[..., Any], tmp_path: Path) -> None:
    scfm.datasets.pbmc68k()[:20].write_h5ad(tmp_path / "a.h5ad")
    files = [str(tmp_path / "a.h5ad")]
    with pytest.raises(ValueError, match=r"\(genes.names in the config\), as 'scfm-mini'"):
        plan_of(files=files, genes={})
    plan = plan_of(files=files, genes={"names": "scfm-mini", "min_cells": 1})
    assert len(plan.model.vocabulary.genes) > 500
    assert plan.model.vocabulary.symbols["CD3D"].startswith("ENSG")


def test_no_gene_in_common(plan_of: Callable[..., Any], tmp_path: Path) -> None:
    adata = ad.AnnData(np.ones((5, 3), np.float32), var=pd.DataFrame(index=[f"ENSG8{i:010d}" for i in range(3)]))
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"a\.h5ad[\s\S]*No gene of the data is known to the model"):
        plan_of(files=[str(tmp_path / "a.h5ad")])


def test_transcriptformer(config: Make, corpus: Path, tmp_path: Path) -> None:
    vectors = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 7)).astype(np.float32), index=GENES)
    run = config(family="transcriptformer", objectives={"likelihood": {}}, genes={"min_cells": 1, "min_share": 0.0})
    run |= {"steps": 30, "optimiser": {"warmup": 0, "learning_rate": 3e-3}, "validation": {"cells": 20, "every": 5}}
    run["architecture"] = {
        "n_layers": 1, "hidden_size": 16, "n_heads": 2, "intermediate_size": 32, "max_genes": 40, "gene_head_size": 8
    }  # fmt: skip
    with pytest.raises(ValueError, match="'transcriptformer' reads vectors of the proteins of genes"):
        scfm.train.pretrain(config=run, out=tmp_path / "without")
    folder = scfm.train.pretrain(config=run, gene_vectors=vectors, out=tmp_path / "model")
    model = scfm.model.load(folder)  # type: ignore[arg-type]
    assert np.isfinite(model.embed(corpus / "one.h5ad")).all()
    adata = ad.read_h5ad(corpus / "one.h5ad")
    scfm.tl.score(adata, model)
    losses = [loss for _, loss in model.card.training["curves"]["validation/likelihood"]]
    assert losses[-1] < losses[0] - 0.1
    stored = model.tensors["gene_embeddings.embedding.weight"].numpy()[model.vocabulary.tokens]
    np.testing.assert_array_equal(stored, vectors.loc[model.vocabulary.genes].to_numpy())

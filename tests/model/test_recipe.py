"""A family that is derived from FoundationModel and nothing else: what it must write, and what it may."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch

import scfm
from scfm.encode import RankEncoder
from scfm.genes import Vocabulary
from scfm.model import FoundationModel, registry
from scfm.model.recipe import DROPS_CELLS, Recipe
from scfm.model.registry import families_with
from scfm.weights import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad

    from scfm._types import TokenBatch

N_GENES, WIDTH, MASK = 12, 3, 12
CARD = ModelCard(
    id="bag",
    family="bag",
    architecture={"vocab_size": N_GENES + 1, "hidden_size": WIDTH, "n_layers": 0},
    pooling="mean",
    max_tokens=N_GENES,
)


@dataclass(frozen=True)
class Config:
    vocab_size: int
    hidden_size: int
    n_layers: int


class Bag(FoundationModel):
    family = "bag"
    poolings = ("mean",)
    config_class = Config

    def encoder(self, source: Any, genes: Any, options: Any) -> RankEncoder:
        return RankEncoder(genes.tokens, self.vocabulary.median_of_token, options.max_tokens)

    def network(self, n_layers: int) -> torch.nn.Module:
        return torch.nn.EmbeddingBag.from_pretrained(self.tensors["vectors"], mode="mean")

    def forward(self, network: torch.nn.Module, batch: TokenBatch, options: Any) -> torch.Tensor:
        starts = np.cumsum(batch.lengths) - batch.lengths
        means: torch.Tensor = network(torch.from_numpy(batch.tokens), torch.from_numpy(starts))
        return means


class MaskedBag(Bag):
    def masked_outputs(
        self, network: Any, batch: TokenBatch, positions: Any, options: Any, *, max_tokens: int
    ) -> list[torch.Tensor]:
        found = []
        for cell, at in zip(torch.from_numpy(batch.tokens).split(batch.lengths.tolist()), positions, strict=True):
            copies = cell.repeat(len(at), 1)
            copies[torch.arange(len(at)), at] = MASK
            found.append(network(copies))
        return found


VECTORS = torch.from_numpy(np.random.default_rng(0).standard_normal((N_GENES + 1, WIDTH)).astype("f4"))


def bag(cls: type[Bag]) -> Bag:
    names = np.array([f"ENSG{i:011d}" for i in range(1, N_GENES + 1)])
    tokens, medians = np.arange(N_GENES, dtype=np.int32), np.ones(N_GENES)
    return cls(CARD, Vocabulary(names, tokens, medians, special_tokens={"<mask>": MASK}), {"vectors": VECTORS})


def cells() -> ad.AnnData:
    genes = [f"ENSG{i:011d}" for i in range(1, N_GENES + 1)]
    return scfm.datasets.synthetic(4, N_GENES, genes_per_cell=5, genes=genes)


def test_an_author_writes_four_things() -> None:
    assert Recipe.__abstractmethods__ == {"config_class", "encoder", "network", "forward"}
    assert bag(Bag).config == Config(N_GENES + 1, WIDTH, 0)
    assert bag(Bag).n_features == WIDTH


def test_a_vocabulary_of_another_size() -> None:
    bag(Bag).validate_weights()
    other = bag(Bag)
    other.card = CARD.with_(architecture={"vocab_size": 9, "hidden_size": WIDTH, "n_layers": 0})
    with pytest.raises(ValueError, match="vocabulary has 13 tokens, the weights 9"):
        other.validate_weights()
    other.card = CARD.with_(architecture={"n_heads": 9})
    with pytest.raises(ValueError, match="architecture of bag is not that of the family 'bag' .*n_heads"):
        other.validate_weights()


def test_what_a_family_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.known_families, "bag", Bag)
    model = bag(Bag)
    with pytest.raises(TypeError, match="bag was not trained with masked genes; .*: geneformer, sccello, scfm_mini"):
        scfm.tl.marker_genes(cells(), model)
    with pytest.raises(TypeError, match="bag has no likelihood; models of these families have: transcriptformer"):
        scfm.tl.score(cells(), model)
    pytest.importorskip("pyarrow")
    pd.DataFrame({"input_ids": [[1, 2]]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(TypeError, match="bag reads counts; tokenised cells are for"):
        model.embed(tmp_path / "a.parquet")


def test_marker_genes_of_a_family_that_masks_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.known_families, "bag", MaskedBag)
    assert "bag" in families_with("masked_outputs")
    adata = cells()
    scfm.tl.marker_genes(adata, bag(MaskedBag), device="cpu")
    vectors, known = VECTORS.numpy().astype(float), adata.X.toarray() > 0
    for cell, scores in zip(known, adata.layers["marker_genes"].toarray(), strict=True):
        whole = vectors[:N_GENES][cell].sum(axis=0)
        for gene in np.flatnonzero(cell):
            copy = whole - vectors[gene] + vectors[MASK]
            cosine = copy @ whole / np.linalg.norm(copy) / np.linalg.norm(whole)
            assert scores[gene] == pytest.approx(1 - cosine, abs=1e-5)


def test_options_that_leave_cells_out_are_marked() -> None:
    @dataclass(frozen=True)
    class Options:
        scale: float = 1.0
        few: int = field(default=0, metadata=DROPS_CELLS)

    model = bag(type("Picky", (Bag,), {"options_class": Options}))
    assert model.dropping_options == ("few",)


def test_a_family_without_published_folders(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="'scfm_mini' takes converted folders only"):
        scfm.model.load(tmp_path, family="scfm_mini")
    with pytest.raises(ValueError, match="scfm-mini has its vocabulary beside its weights"):
        scfm.model.load_recipe("scfm-mini", tmp_path)

"""Weights that embed cells by a linear projection of their ranked genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import scfm
from scfm.train.config import read_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("lightning")

OBJECTIVES = {"masked_genes": {}, "contrastive": {}, "anchor": {}}


@pytest.fixture
def plan_of(config: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Any]:
    def make(**changes: Any) -> Any:
        from scfm.train.plan import Plan

        sizes = {"layer_norm_eps": 1e-5, "n_layers": 2}
        run = read_config(
            config(start="projection", objectives=OBJECTIVES, architecture=sizes, **changes),
            out=str(tmp_path / "model"),
        )
        return Plan.of(run, tmp_path / "model", tmp_path / "work")

    return make


def test_the_first_embedding_is_a_weighted_sum_of_vectors_of_genes(plan_of: Callable[..., Any]) -> None:
    plan = plan_of()
    network = plan.module.network
    words = network.word_embeddings.weight.detach().numpy()
    batch = plan.steps.batches(0)[0].batch
    batch.tokens[batch.tokens == 1] = 5
    with torch.no_grad():
        pooled = plan.module._embed(network, batch).numpy()
    found = []
    for cell in np.split(batch.tokens, np.cumsum(batch.lengths)[:-1]):
        weight = 1 - np.log1p(np.arange(len(cell))) / np.log(4 * 40)
        found.append(weight @ words[cell] / len(cell))
    norm = network.layers[-1].norm2
    compared = norm.weight.detach().numpy() != 0
    assert compared.tolist() == [False] + [True] * 14 + [False]
    linear = np.array(found)[:, 1:8]
    for feature, value in zip(linear.T, pooled[:, 1:8].T, strict=True):
        assert np.corrcoef(feature, value)[0, 1] > 0.8
    assert pooled[:, ~compared].tolist() == [[3.0, 0.0]] * len(pooled)


def test_a_molecule_is_in_one_half_of_a_cell(plan_of: Callable[..., Any]) -> None:
    from scfm.train.rank_start import _halves

    plan = plan_of()
    block, _ = plan.steps.draws.cells(*plan.steps.draws(0, 8))
    halves = next(_halves(plan.steps, plan.model.vocabulary.size, np.ones(40)))
    assert [half.shape for half in halves] == [(8, 62), (8, 62)]
    n_single = 0
    for cell, (start, stop) in enumerate(zip(block.indptr[:-1], block.indptr[1:], strict=True)):
        tokens, counts = block.indices[start:stop] + 2, block.data[start:stop]
        one, other = (set(half[cell].indices.tolist()) for half in halves)
        single = set(tokens[counts == 1].tolist())
        assert one | other <= set(tokens.tolist())
        assert not one & other & single
        n_single += len(single & (one | other))
    assert n_single > 20


def test_features_are_centred_and_of_one_scale(plan_of: Callable[..., Any]) -> None:
    plan = plan_of()
    whole = plan.steps.__class__(**{**plan.steps.__dict__, "views": None, "masking": None, "n_views": 1})
    found = [
        (plan.module._embed(plan.module.network, one.batch), one.sources) for s in range(8) for one in whole.batches(s)
    ]
    pooled, files = torch.cat([cells for cells, _ in found]).detach().numpy(), np.concatenate([of for _, of in found])
    compared = [pooled[files == file, 1:8] for file in (0, 1)]
    assert np.abs(np.mean([cells.mean(axis=0) for cells in compared], axis=0)).max() < 0.3
    assert np.sqrt(np.mean([cells.var(axis=0) for cells in compared])) == pytest.approx(1, abs=0.2)


def test_weights_are_made_once_and_trained_on(plan_of: Callable[..., Any], tmp_path: Path) -> None:
    first = plan_of()
    file = tmp_path / "work" / "start.safetensors"
    made = file.stat().st_mtime_ns
    again = plan_of()
    assert file.stat().st_mtime_ns == made
    for one, other in zip(first.module.parameters(), again.module.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    shown = first.module.objectives["masked_genes"].head.bias.detach()[2:]
    assert shown.max() - shown.min() > 0.5  # log-frequencies


def test_training_goes_on_from_it(config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run = config(start="projection", objectives=OBJECTIVES, views={"disjoint": 0.5, "efficiency": 0.3})
    model = scfm.model.load(scfm.train.pretrain(config=run, out=tmp_path / "model"))  # type: ignore[arg-type]
    out = model.tensors["bert.encoder.layer.0.output.dense.weight"].numpy()
    assert out.shape == (16, 32)
    assert (out[:8] != 0).any()
    assert model.card.training["run"]["start"] == "projection"


def test_a_base_has_weights(config: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="start='projection' makes new weights"):
        read_config(config(start="projection", base="scfm-mini"))


def test_medians_of_the_corpus(config: Callable[..., dict[str, Any]], corpus: Path, tmp_path: Path) -> None:
    from scfm.train.plan import Plan

    def medians(name: str, **genes: Any) -> np.ndarray:
        run = read_config(config(genes={"source": str(corpus / "genes"), **genes}), out=str(tmp_path / name))
        return Plan.of(run, tmp_path / name, tmp_path / f"{name}.training").model.vocabulary.medians

    given, own = medians("one"), medians("two", medians=True)
    assert given.shape == own.shape
    assert not np.allclose(given, own)
    found, _ = scfm.train.corpus.corpus_vocabulary(sorted(corpus.glob("*.h5ad")), min_cells=1, min_share=0.0)
    places = [given_gene in set(found.genes.tolist()) for given_gene in [f"ENSG{i:011d}" for i in range(1, 61)]]
    np.testing.assert_allclose(own[places], found.medians)

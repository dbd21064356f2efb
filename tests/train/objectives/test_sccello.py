"""scCello's losses as one objective: what counts in them, and how they are added up."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from scfm.nn import BertEncoder, ScCelloConfig, ScCelloNetwork
from scfm.ontology import bundled
from scfm.train.objective import IGNORED, Outputs, Term, TrainingBatch
from scfm.train.objectives import ScCello

from .batches import training_batch

CONFIG = ScCelloConfig(40, 16, 2, 2, 24, 32, dropout=0.1, tau=0.05)
TYPES = ["T cell", "B cell", "fibroblast"]
LENGTHS = (12, 9, 9, 7)


@pytest.fixture(scope="module")
def trained() -> tuple[ScCelloNetwork, ScCello]:
    torch.manual_seed(0)
    network, objective = ScCelloNetwork(CONFIG, gene_head=True), ScCello()
    for parameter in network.parameters():
        parameter.data.normal_(std=0.3)
    objective.build(SimpleNamespace(config=CONFIG), network, TYPES)  # type: ignore[arg-type]
    return network, objective


def batch_of(labels: list[int] | None = None, second: int = 0) -> TrainingBatch:
    """Two passes of four cells, the second with other masked genes for ``second``."""
    rng, later = np.random.default_rng(0), np.random.default_rng(second)
    cells = [np.concatenate([[3], rng.integers(4, 40, n - 1)]) for n in LENGTHS]
    targets = [np.where(r.random(n) < 0.4, 5, IGNORED) for r in (np.random.default_rng(1), later) for n in LENGTHS]
    codes = None if labels is None else np.array(labels * 2)
    return training_batch(cells * 2, targets, rows=list(range(4)) * 2, views=[0] * 4 + [1] * 4, labels=codes)


def term_of(trained: tuple[ScCelloNetwork, ScCello], batch: TrainingBatch, *, train: bool = False) -> Term:
    network, objective = trained
    torch.manual_seed(1)
    hidden = network.train(train)(torch.from_numpy(batch.batch.tokens), batch.batch.lengths)
    term: Term = objective(Outputs(network, hidden, hidden), batch)
    return term


def test_the_total_is_the_sum_of_four_means_for_each_cell(trained: tuple[ScCelloNetwork, ScCello]) -> None:
    network, objective = trained
    batch = batch_of([0, 1, 1, 2])
    term = term_of(trained, batch)
    assert objective.count(batch) == 4
    assert set(term.metrics) == {"masked_genes", "coherence", "alignment", "regularisation"}
    assert term.total.item() == pytest.approx(sum(value.item() for value in term.metrics.values()), rel=1e-6)
    network.eval()
    hidden = network(torch.from_numpy(batch.batch.tokens), batch.batch.lengths)
    first = sum(LENGTHS)
    targets = torch.from_numpy(batch.targets[:first])
    genes = objective.masked(hidden[:first], targets, network.word_embeddings.weight, network.gene_head).loss
    assert term.metrics["masked_genes"].item() == pytest.approx(4 * genes.item(), rel=1e-5)
    assert term.metrics["alignment"].item() > 0


def test_genes_are_predicted_in_the_first_pass(trained: tuple[ScCelloNetwork, ScCello]) -> None:
    one, other = (term_of(trained, batch_of([0, 1, 1, 2], second)) for second in (2, 3))
    assert one.total.item() == other.total.item()


def test_dropout_makes_the_second_pass_another(trained: tuple[ScCelloNetwork, ScCello]) -> None:
    batch = batch_of([0, 1, 1, 2])
    still, moving = (term_of(trained, batch, train=train) for train in (False, True))
    assert still.metrics["alignment"].item() != pytest.approx(moving.metrics["alignment"].item(), rel=1e-3)


def test_cells_without_a_label_count_for_genes_only(trained: tuple[ScCelloNetwork, ScCello]) -> None:
    whole, some, none = (term_of(trained, batch_of(labels)) for labels in ([0, 1, 1, 2], [0, 1, -1, 2], None))
    for term in (some, none):
        assert term.metrics["masked_genes"].item() == pytest.approx(whole.metrics["masked_genes"].item(), rel=1e-5)
    assert set(none.metrics) == {"masked_genes"}
    assert some.metrics["coherence"].item() != pytest.approx(whole.metrics["coherence"].item(), rel=1e-3)
    none.total.backward()


def test_tables_of_the_ontology(trained: tuple[ScCelloNetwork, ScCello]) -> None:
    _, objective = trained
    terms = bundled().resolve(TYPES)
    np.testing.assert_array_equal(objective.alignment.similarity, bundled().similarity(terms))
    np.testing.assert_array_equal(objective.alignment.ancestors, bundled().ancestor_mask(terms).astype(bool))
    published = objective.published_tensors()
    assert {name: tuple(tensor.shape) for name, tensor in published.items()} == {
        "learned_centroid.weight": (3, 16),
        "affine_projection.weight": (16, 16),
        "affine_projection.bias": (16,),
        "cell_type_ancestor_mask": (3, 3),
        "ctgraph_sim": (3, 3),
    }
    assert torch.equal(published["ctgraph_sim"], objective.alignment.similarity)
    assert objective.state() == {"name": "ScCello", "ontology": None, "tau": None}


def build(network: torch.nn.Module, cell_types: list[str], **options: Any) -> None:
    ScCello(**options).build(SimpleNamespace(config=CONFIG), network, cell_types)  # type: ignore[arg-type]


def test_two_equal_passes_are_warned_about() -> None:
    with pytest.warns(UserWarning, match="differ by their dropout, which is 0 here: set architecture.dropout"):
        build(ScCelloNetwork(replace(CONFIG, dropout=0.0)), TYPES)


def test_what_does_not_fit() -> None:
    network = ScCelloNetwork(CONFIG)
    with pytest.raises(TypeError, match="trains models of the family 'sccello'; the network is a BertEncoder"):
        build(BertEncoder(CONFIG), TYPES)
    with pytest.raises(ValueError, match="name the column of obs that holds them by labels_key"):
        build(network, [])
    with pytest.raises(ValueError, match="no such cell"):
        build(network, ["no such cell"])
    with pytest.raises(ValueError, match="tau must be positive"):
        build(network, TYPES, tau=0.0)

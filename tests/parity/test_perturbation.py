"""Equal to the official code of Geneformer where it perturbs genes, on values that it wrote for small random checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm._types import TokenBlock
from scfm.batch import plan_batches
from scfm.model.arguments import Arguments
from scfm.tasks import Perturb, Perturbations

from .layout import as_text

if TYPE_CHECKING:
    from pathlib import Path

    from scfm.tasks import Kind

TOLERANCE = 2e-6
"""Largest absolute difference of a cosine, from the README of the values."""


class Case:
    """A version of Geneformer, its cells, and upstream's values."""

    def __init__(self, root: Path, version: str) -> None:
        folder = root / "fixtures" / "geneformer" / version
        with np.load(folder / "expected_isp.npz", allow_pickle=False) as file:
            self.expected = {name: as_text(values) for name, values in file.items()}
        self.version = version
        self.model: Any = scfm.model.load(folder, dictionaries=root / "dictionaries" / version.upper())
        self.adata = ad.read_h5ad(folder / "isp_input.h5ad")
        states, cells = self.expected["state_names"], self.expected["isp_cell_type"]
        self.start = np.flatnonzero(cells == states[0])
        self.alternative = np.flatnonzero(cells == states[2])

    def run(self, perturbations: Perturbations, cells: np.ndarray, *, layer: int = -1, goal: bool = False) -> Any:
        """Rows, tokens (or numbers of groups) and effects."""
        arguments = Arguments(hidden_layer=layer, compat="upstream", device="cpu", dtype="float32")
        targets = self.expected["state_embs"] if goal else None
        with self.model.count_session(self.adata, arguments) as session:
            task = Perturb(session.model, session.options, perturbations, targets)
            session.run(task, [(int(cell), int(cell) + 1) for cell in cells])
        return task.effects.table()

    def close(self, found: Any, name: str, prefix: str = "upstream") -> None:
        """Compare with the values of a case."""
        rows, tags, effects = found
        cells, shift = self.expected[f"{prefix}_{name}_cell"], self.expected[f"{prefix}_{name}_shift"]
        tokens = self.expected.get(f"{prefix}_{name}_token", np.zeros(len(cells), int))
        order = np.lexsort((tokens, cells))
        np.testing.assert_array_equal(rows, cells[order])
        np.testing.assert_array_equal(tags, tokens[order])
        wanted = shift[order] if shift.ndim == 2 else 1 - shift[order, None]
        np.testing.assert_allclose(effects, wanted, atol=TOLERANCE)


@pytest.fixture(scope="module", params=["v1", "v2"])
def case(reference: Path, request: pytest.FixtureRequest) -> Case:
    return Case(reference, request.param)


pytestmark = pytest.mark.usefixtures("one_thread")

EACH: list[tuple[str, Kind, int, bool]] = [
    ("delall_nogoal_lm1", "delete", -1, False),
    ("delall_nogoal_l0", "delete", 0, False),
    ("delall_goal_lm1", "delete", -1, True),
    ("ovxall_nogoal_lm1", "overexpress", -1, False),
    ("ovxall_goal_lm1", "overexpress", -1, True),
]


@pytest.mark.parametrize(("name", "kind", "layer", "goal"), EACH, ids=[name for name, *_ in EACH])
def test_every_gene_by_itself(case: Case, name: str, kind: Kind, layer: int, goal: bool) -> None:
    case.close(case.run(Perturbations(kind), case.start, layer=layer, goal=goal), name)


def test_every_gene_of_other_cells(case: Case) -> None:
    case.close(case.run(Perturbations("delete"), case.alternative), "delall_nogoal_null_lm1")


@pytest.mark.parametrize("kind", ["delete", "overexpress"])
@pytest.mark.parametrize("goal", [False, True], ids=["nogoal", "goal"])
@pytest.mark.parametrize("n_genes", [1, 2], ids=["one", "grp"])
def test_genes_together(case: Case, kind: Kind, goal: bool, n_genes: int) -> None:
    group = tuple(case.expected["group_tokens"][:n_genes].tolist())
    name = f"{kind[:3].replace('ove', 'ovx')}{'grp' if n_genes == 2 else 'one'}_{'goal' if goal else 'nogoal'}_lm1"
    case.close(case.run(Perturbations(kind, (group,)), case.start, goal=goal), name)


@pytest.mark.parametrize(("kind", "prefix"), [("delete", "upstream"), ("overexpress", "formula")])
def test_every_gene_with_an_anchor(case: Case, kind: Kind, prefix: str) -> None:
    anchor = int(case.expected["anchor_token"])
    case.close(case.run(Perturbations(kind, anchor=anchor), case.start), f"anchor_{kind}_nogoal_lm1", prefix)


@pytest.mark.parametrize("goal", [False, True], ids=["nogoal", "goal"])
def test_cells_that_are_too_long(case: Case, goal: bool) -> None:
    """Tokens that the values give: such cells would make the files large."""
    if "overflow_tokens" not in case.expected:
        pytest.skip("these values are not committed")
    offsets = case.expected["overflow_offsets"].astype(np.int64)
    tokens = case.expected["overflow_tokens"].astype(np.int32)
    group = tuple(case.expected["overflow_gene_tokens"].tolist())
    options = Arguments(hidden_layer=-1, compat="upstream").resolved(case.model)
    targets = case.expected["state_embs"] if goal else None
    task = Perturb(case.model, options, Perturbations("overexpress", (group,)), targets)
    compute = task.make_forward(
        case.model.networks(options.n_layers, [torch.device("cpu")], torch.float32)[0],
        torch.device("cpu"),
        torch.float32,
    )
    with torch.inference_mode():
        for block in task.edit(TokenBlock(0, tokens, offsets, np.diff(offsets))):
            for batch in plan_batches(block, 10_000):
                task.sink.write(batch, compute(batch))
    name = f"overflow_ovxgrp_{'goal' if goal else 'nogoal'}_lm1"
    crashed = f"upstream_{name}_shift" not in case.expected
    wanted = case.expected[f"{'formula' if crashed else 'upstream'}_{name}_shift"]
    np.testing.assert_allclose(task.effects.table()[2], wanted if goal else 1 - wanted[:, None], atol=TOLERANCE)


def test_effects_on_other_genes(case: Case) -> None:
    pairs = np.concatenate([case.expected["upstream_delall_genes_lm1_pairs"], np.zeros((0, 3), int)])
    cosines = dict(zip(map(tuple, pairs.tolist()), case.expected["upstream_delall_genes_lm1_pair_cos"], strict=True))
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    arguments = Arguments(hidden_layer=-1, compat="upstream", device="cpu", dtype="float32")
    n, perturbed = 0, set(pairs[:, 1].tolist())  # the committed values are of a few genes
    for cell in case.start.tolist():
        with case.model.count_session(case.adata, arguments) as session:
            found.clear()
            session.run(
                Perturb(session.model, session.options, Perturbations("delete"), None, lambda *one: found.append(one)),
                [(cell, cell + 1)],
            )
        for tag, genes, effects in (one for one in found if one[0] in perturbed):
            wanted = [cosines[cell, tag, gene] for gene in genes.tolist()]
            np.testing.assert_allclose(1 - effects, wanted, atol=TOLERANCE)
            n += len(genes)
    assert n == len(cosines)


@pytest.mark.parametrize(("name", "kind"), [("delgrp", "delete"), ("ovxgrp", "overexpress")])
def test_effects_of_groups_on_other_genes(case: Case, name: str, kind: Kind) -> None:
    group = tuple(case.expected["group_tokens"].tolist())
    found: list[tuple[np.ndarray, np.ndarray]] = []
    arguments = Arguments(hidden_layer=-1, compat="upstream", device="cpu", dtype="float32")
    with case.model.count_session(case.adata, arguments) as session:
        task = Perturb(
            session.model,
            session.options,
            Perturbations(kind, (group,)),
            None,
            lambda _, genes, effects: found.append((genes, 1 - effects)),
        )
        session.run(task, [(int(cell), int(cell) + 1) for cell in case.start])
    genes, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
    wanted = [case.expected[f"upstream_{name}_genes_lm1_affected{part}"] for part in ("", "_cos")]
    order, theirs = np.lexsort((cosines, genes)), np.lexsort((wanted[1], wanted[0]))
    np.testing.assert_array_equal(genes[order], wanted[0][theirs])
    np.testing.assert_allclose(cosines[order], wanted[1][theirs], atol=TOLERANCE)

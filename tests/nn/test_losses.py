"""The losses against slow ones that are written down from the formulas, one number at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfm.nn import (
    CellTypeCoherenceLoss,
    MaskedGeneLoss,
    OntologyAlignmentLoss,
    ProjectionHead,
    RegularisationLoss,
    cell_representation,
    losses,
)

TAU = 0.05


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def slow_alignment(z: Any, z_prime: Any, types: list[int], similarity: Any, ancestors: Any) -> float:
    """Mean over anchors, levels and positives, in plain Python floats."""
    terms = []
    for i, own in enumerate(types):
        scores = [float(z[i] @ (z_prime[i] if i == j else z[j])) for j in range(len(types))]
        near = [int(similarity[own][other]) for other in types]
        for level in sorted(set(near))[1:]:
            negatives = [scores[k] for k, other in enumerate(types) if near[k] < level and not ancestors[own][other]]
            for j in range(len(types)):
                if near[j] >= level:
                    terms.append(math.log1p(sum(math.exp(score - scores[j]) for score in negatives)))
    return sum(terms) / len(terms) if terms else 0.0


@st.composite
def batches(draw_from: st.DrawFn) -> tuple[Any, ...]:
    """Cells of a few types, whose similarities often tie, with ancestors; also cells of one type, and a single cell."""
    rng = np.random.default_rng(draw_from(st.integers(0, 2**32 - 1)))
    n_types, n_cells = draw_from(st.integers(1, 6)), draw_from(st.integers(1, 10))
    similarity = rng.integers(1, 1 + draw_from(st.integers(1, 13)), (n_types, n_types))
    np.fill_diagonal(similarity, draw_from(st.integers(9, 13)))
    ancestors = rng.random((n_types, n_types)) < draw_from(st.sampled_from([0.0, 0.3, 1.0]))
    scale = draw_from(st.sampled_from([0.1, 1.0, 4.0]))
    z, z_prime = (torch.from_numpy(scale * rng.standard_normal((n_cells, 4))) for _ in range(2))
    return z, z_prime, rng.integers(0, n_types, n_cells).tolist(), similarity, ancestors


@given(batches())
def test_alignment(batch: tuple[Any, ...]) -> None:
    z, z_prime, types, similarity, ancestors = batch
    loss = OntologyAlignmentLoss(torch.from_numpy(similarity), torch.from_numpy(ancestors))
    z.requires_grad_()
    ours = loss(z, z_prime, torch.tensor(types))
    expected = slow_alignment(z.detach().numpy(), z_prime.numpy(), types, similarity, ancestors)
    assert ours.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    (gradient,) = torch.autograd.grad(ours, z)
    assert torch.isfinite(gradient).all()


def test_alignment_by_hand() -> None:
    """Levels 5 and 9 for the first cell; at 9 it has two negatives, at 5 one."""
    similarity = torch.tensor([[9, 5, 1], [5, 9, 1], [1, 1, 9]])
    z = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.25, -1.0]], dtype=torch.float64)
    prime = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, -2.0]], dtype=torch.float64)
    s = z @ z.T
    s.diagonal().copy_((z * prime).sum(1))
    e = s.exp()

    def term(i: int, j: int, *negatives: int) -> torch.Tensor:
        return -torch.log(e[i, j] / (e[i, j] + e[i, list(negatives)].sum()))

    cells = torch.tensor([0, 1, 2])
    first = [term(0, 0, 2), term(0, 1, 2), term(0, 0, 1, 2)]
    others = [term(1, 0, 2), term(1, 1, 2), term(1, 1, 0, 2), term(2, 2, 0, 1)]
    eye = torch.eye(3, dtype=torch.int32)
    torch.testing.assert_close(
        OntologyAlignmentLoss(similarity, eye)(z, prime, cells), torch.stack(first + others).mean()
    )
    ancestors = eye.clone()
    ancestors[0, 1] = 1  # type 1 is an ancestor of type 0, but not the other way round
    first[2] = term(0, 0, 2)
    torch.testing.assert_close(
        OntologyAlignmentLoss(similarity, ancestors)(z, prime, cells), torch.stack(first + others).mean()
    )


@pytest.mark.parametrize("types", [[1], [2, 2, 2]])
def test_alignment_without_a_level_is_zero_and_differentiable(types: list[int]) -> None:
    z = draw(len(types), 4, dtype=torch.float32).requires_grad_()
    loss = OntologyAlignmentLoss(9 * torch.eye(3, dtype=torch.int64), torch.eye(3))(z, z, torch.tensor(types))
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_alignment_where_nobody_is_negative() -> None:
    """All are ancestors of all: nothing to push away, and no NaN."""
    z = (10 * draw(4, 3, dtype=torch.float32)).requires_grad_()
    similarity = torch.tensor([[9, 1], [1, 9]])
    with torch.autograd.set_detect_anomaly(True):
        loss = OntologyAlignmentLoss(similarity, torch.ones(2, 2))(z, z, torch.tensor([0, 0, 1, 1]))
        assert loss.item() == 0
        loss.backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_alignment_gradient() -> None:
    similarity = torch.tensor([[9, 5, 1], [5, 9, 3], [1, 3, 9]])
    loss = OntologyAlignmentLoss(similarity, torch.eye(3))
    types = torch.tensor([0, 0, 1, 2, 1])
    z, prime = (draw(5, 3, seed=seed).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda *views: loss(*views, types), (z, prime))


def test_alignment_is_stable_at_high_scores() -> None:
    """Inner products of ±1000, whose exponentials float32 does not hold."""
    similarity = torch.tensor([[9, 1], [1, 9]])
    loss = OntologyAlignmentLoss(similarity, torch.eye(2))
    z = torch.tensor([[30.0, 0.0], [-30.0, 0.0], [30.0, 1.0]]).requires_grad_()
    value = loss(z, z, torch.tensor([0, 0, 1]))
    # the other type is as near to the first cell as the cell itself, and its twin far; both are far from the second
    expected = (math.log(2) + 1800 + 0 + math.log(2) + math.log1p(math.exp(-1))) / 5
    assert value.item() == pytest.approx(expected, rel=1e-6)
    value.backward()
    assert torch.isfinite(z.grad).all()


def test_masked_genes() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(6).double()
    hidden, table = draw(3, 5, 6), draw(11, 6, seed=1)
    labels = torch.full((3, 5), -100)
    labels[0, 1], labels[0, 4], labels[2, 3] = 7, 0, 10
    loss, accuracy = MaskedGeneLoss(TAU)(hidden, labels, table, head)
    terms, right = [], []
    genes = head(table).detach().numpy()
    for cell, position in ((0, 1), (0, 4), (2, 3)):
        query = head(hidden[cell, position]).detach().numpy()
        cosines = [query @ gene / np.linalg.norm(query) / np.linalg.norm(gene) / TAU for gene in genes]
        label = int(labels[cell, position])
        terms.append(math.log(sum(math.exp(value) for value in cosines)) - cosines[label])
        right.append(int(np.argmax(cosines)) == label)
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-12)
    assert accuracy.item() == pytest.approx(np.mean(right))
    assert not accuracy.requires_grad


def test_masked_genes_that_are_right() -> None:
    table = draw(9, 6)
    labels = torch.tensor([2, 5, 8, -100])
    loss, accuracy = MaskedGeneLoss(0.001)(table[[2, 5, 7, 3]], labels, table, torch.nn.Identity())
    assert accuracy.item() == pytest.approx(2 / 3)
    assert loss.item() > 100


def test_masked_genes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, table = draw(10, 6).requires_grad_(), draw(11, 6, seed=1).requires_grad_()
    labels = torch.tensor([1, 2, -100, 10, 0, 4, 4, -100, 9, 3])

    def step() -> tuple[Any, ...]:
        loss, accuracy = MaskedGeneLoss(TAU)(hidden, labels, table, torch.nn.Identity())
        return loss, accuracy, *torch.autograd.grad(loss, (hidden, table))

    whole = step()
    monkeypatch.setattr(losses, "ROWS", 3)
    for part, expected in zip(step(), whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-14)


def test_no_masked_gene() -> None:
    hidden = draw(2, 3, 4).requires_grad_()
    loss, accuracy = MaskedGeneLoss(TAU)(hidden, torch.full((2, 3), -100), draw(5, 4), torch.nn.Identity())
    assert loss.item() == 0
    assert math.isnan(accuracy.item())
    loss.backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_coherence_and_regularisation() -> None:
    torch.manual_seed(0)
    coherence, regularisation = CellTypeCoherenceLoss(5, 4, TAU).double(), RegularisationLoss(4).double()
    z, types = cell_representation(draw(3, 4), TAU), torch.tensor([4, 0, 4])
    p = coherence.prototypes.weight.detach().numpy()
    p = p / np.linalg.norm(p, axis=1, keepdims=True) / math.sqrt(TAU)
    logits = z.numpy() @ p.T
    expected = np.mean([math.log(np.exp(row).sum()) - row[k] for row, k in zip(logits, types, strict=True)])
    loss, accuracy = coherence(z, types)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert accuracy.item() == pytest.approx(np.mean(logits.argmax(axis=1) == types.numpy()))
    weight, bias = (part.detach().numpy() for part in regularisation.affine.parameters())
    expected = np.mean((p[types] @ weight.T + bias - z.numpy()) ** 2)
    assert regularisation(z, coherence.representations(types)).item() == pytest.approx(expected, rel=1e-12)


def test_cell_representations_have_the_length_of_the_temperature() -> None:
    z = cell_representation(draw(7, 4), TAU)
    torch.testing.assert_close((z * z).sum(dim=1), torch.full((7,), 1 / TAU, dtype=torch.float64))
    assert cell_representation(draw(2, 4).bfloat16(), TAU).dtype == torch.float32


def test_autocast_changes_nothing() -> None:
    """What the losses compute themselves stays in float32."""
    torch.manual_seed(0)
    z, prime = (cell_representation(draw(6, 8, seed=seed, dtype=torch.float32), 0.01) for seed in (0, 1))
    types = torch.tensor([0, 1, 2, 0, 1, 1])
    coherence, regularisation = CellTypeCoherenceLoss(3, 8, 0.01), RegularisationLoss(8)
    alignment = OntologyAlignmentLoss(torch.tensor([[9, 5, 1], [5, 9, 3], [1, 3, 9]]), torch.eye(3))
    genes = draw(20, 8, dtype=torch.float32)

    def step() -> list[torch.Tensor]:
        return [
            coherence(z, types).loss,
            regularisation(z, coherence.representations(types)),
            alignment(z, prime, types),
            MaskedGeneLoss(0.01)(z, types, genes, torch.nn.Identity()).loss,
        ]

    expected = step()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for ours, wanted in zip(step(), expected, strict=True):
            assert ours.dtype == torch.float32
            assert torch.equal(ours, wanted)


def test_the_state_holds_what_is_learned() -> None:
    matrix = torch.eye(3, dtype=torch.int32)
    modules = torch.nn.ModuleDict(
        {
            "masked": MaskedGeneLoss(TAU),
            "coherence": CellTypeCoherenceLoss(3, 4, TAU),
            "regularisation": RegularisationLoss(4),
            "alignment": OntologyAlignmentLoss(matrix, matrix),
        }
    )
    names = ["coherence.prototypes.weight", "regularisation.affine.weight", "regularisation.affine.bias"]
    assert list(modules.state_dict()) == names
    assert 0.005 < modules.state_dict()[names[0]].std() < 0.05


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_temperatures_that_are_none(tau: float) -> None:
    with pytest.raises(ValueError, match="tau must be positive, got"):
        MaskedGeneLoss(tau)
    with pytest.raises(ValueError, match="tau must be positive, got"):
        CellTypeCoherenceLoss(3, 4, tau)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"similarity has shape \(3, 3\) and ancestors \(2, 2\); both must be"):
        OntologyAlignmentLoss(torch.eye(3), torch.eye(2))
    with pytest.raises(ValueError, match=r"similarity has shape \(3, 2\)"):
        OntologyAlignmentLoss(torch.ones(3, 2), torch.ones(3, 2))
    alignment = OntologyAlignmentLoss(torch.eye(3), torch.eye(3))
    with pytest.raises(ValueError, match=r"have shapes \(4, 2\), \(4, 2\) and \(3,\)"):
        alignment(draw(4, 2), draw(4, 2), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"labels have shape \(2,\), hidden states \(3, 4\)"):
        MaskedGeneLoss(TAU)(draw(3, 4), torch.tensor([1, 2]), draw(5, 4), torch.nn.Identity())


def test_losses_of_bfloat16_are_float32() -> None:
    z, types = draw(6, 8).bfloat16(), torch.tensor([0, 1, 2, 0, 1, 1])
    coherence, regularisation = CellTypeCoherenceLoss(3, 8, TAU), RegularisationLoss(8)
    alignment = OntologyAlignmentLoss(torch.tensor([[9, 5, 1], [5, 9, 3], [1, 3, 9]]), torch.eye(3))
    for loss in (
        lambda z: coherence(z, types).loss,
        lambda z: regularisation(z, z),
        lambda z: alignment(z, z, types),
        lambda z: MaskedGeneLoss(TAU)(z, types, z, torch.nn.Identity()).loss,
    ):
        assert torch.equal(loss(z), loss(z.float()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    similarity = torch.tensor([[9, 5, 1], [5, 9, 3], [1, 3, 9]])
    loss, types = OntologyAlignmentLoss(similarity, torch.eye(3)), torch.tensor([0, 0, 1, 2, 1])
    z, prime = (draw(5, 3, seed=seed, dtype=torch.float32) for seed in (0, 1))
    on_gpu = loss.cuda()(z.cuda(), prime.cuda(), types.cuda())
    torch.testing.assert_close(on_gpu.cpu(), loss.cpu()(z, prime, types))

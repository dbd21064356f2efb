"""scCello's relational loss over cells of the ontology against a double loop over cells and levels.

Forward and backward of one batch, from cell representations on. The peer is the loop in this file, written down from
the formula, or with ``--upstream`` the method of the published code itself, of which nothing else is run. Both must give
the same loss and gradient. ``--ontology`` takes the two matrices of a published checkpoint; by default the ontology is
a random tree. Turns of several steps alternate; medians.
"""

from __future__ import annotations

import ast
from pathlib import Path
from statistics import median
from time import perf_counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .synthetic_files import positive

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

METHOD = "_ranking_contrastive_loss"
WIDTH = 256
TAU = 0.01
N_TYPES = 398
LIMIT = 50.0
STEPS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cells", type=positive, nargs="+", default=[12, 48], help="of a batch")
    parser.add_argument("--repeats", type=positive, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--upstream", type=Path, help="model_prototype_contrastive.py of the published scCello")
    parser.add_argument("--ontology", type=Path, help="model.safetensors of a published scCello checkpoint")


def tree(seed: int = 0) -> tuple[Any, Any]:
    """Similarities that fall with the steps between two types of a random tree, and who is an ancestor of whom."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    ancestors = torch.eye(N_TYPES, dtype=torch.int32)
    for child in range(1, N_TYPES):
        parent = int(torch.randint(child, (), generator=draw))
        ancestors[child] |= ancestors[parent]
    depth, shared = ancestors.sum(dim=1), ancestors @ ancestors.T
    steps = depth[:, None] + depth - 2 * shared
    return (10 - 3 * steps // 2).clamp(min=1), ancestors  # as many levels in a batch as in the Cell Ontology


def ontology(path: Path | None) -> tuple[Any, Any]:
    if path is None:
        return tree()
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.get_tensor("ctgraph_sim"), file.get_tensor("cell_type_ancestor_mask")


def by_loops(similarity: Any, ancestors: Any) -> Callable[[Any, Any], Any]:
    """The peer: one anchor and one level at a time."""
    import torch

    def loss(types: Any, scores: Any) -> Any:
        terms = []
        for i, own in enumerate(types):
            near, kept = similarity[own][types], ancestors[own][types] == 0
            for level in sorted(set(near.tolist()))[1:]:
                positives = scores[i][near >= level]
                rest = scores[i][(near < level) & kept].expand(len(positives), -1)
                terms.append(torch.cat([positives[:, None], rest], dim=1).logsumexp(dim=1) - positives)
        return torch.cat(terms).mean()

    return loss


def by_upstream(path: Path, similarity: Any, ancestors: Any) -> Callable[[Any, Any], Any]:
    """The published method, cut out of its file, which imports what a loss does not need."""
    import torch

    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == METHOD]
    if len(found) != 1:
        msg = f"--upstream: {path} has no method {METHOD}."
        raise SystemExit(msg)
    names: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module(found, type_ignores=[]), str(path), "exec"), names)
    model = SimpleNamespace(ctgraph_sim=similarity, cell_type_ancestor_mask=ancestors, device=similarity.device)
    return lambda types, scores: names[METHOD](model, types, scores)


def timed(call: Callable[[], tuple[Any, Any]]) -> tuple[float, Any, Any]:
    import torch

    start = perf_counter()
    for _ in range(STEPS):
        loss, gradient = call()
    if gradient.is_cuda:
        torch.cuda.synchronize()
    return (perf_counter() - start) / STEPS, loss, gradient


def compare(n_cells: int, args: argparse.Namespace) -> str:
    import torch

    from scfm.nn import OntologyAlignmentLoss, cell_representation

    similarity, ancestors = (matrix.to(args.device) for matrix in ontology(args.ontology))
    ours = OntologyAlignmentLoss(similarity, ancestors)
    peer = by_upstream(args.upstream, similarity, ancestors) if args.upstream else by_loops(similarity, ancestors)
    draw = torch.Generator().manual_seed(n_cells)
    types = torch.randint(len(similarity), (n_cells,), generator=draw).to(args.device)
    rows = (torch.randn(n_cells, WIDTH, generator=draw).to(args.device) for _ in range(2))
    z, z_prime = (cell_representation(vectors, TAU).requires_grad_() for vectors in rows)

    def looped() -> Any:
        scores = z @ z.T
        return peer(types, scores.diagonal_scatter((z * z_prime).sum(dim=1)))

    def step(loss: Callable[[], Any]) -> Callable[[], tuple[Any, Any]]:
        def both() -> tuple[Any, Any]:
            value = loss()
            return value.detach(), torch.stack(torch.autograd.grad(value, (z, z_prime)))

        return both

    vectorised = step(lambda: ours(z, z_prime, types))
    (_, value, gradient), (_, expected, wanted) = timed(vectorised), timed(step(looped))
    torch.testing.assert_close(value, expected, rtol=2e-5, atol=0)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)
    turns = [(timed(vectorised)[0], timed(step(looped))[0]) for _ in range(args.repeats)]
    fast, slow = (median(times) for times in zip(*turns, strict=True))
    ratio = median(b / a for a, b in turns)
    wanted_ratio = f"{LIMIT:.0f}×" if args.upstream and n_cells == 48 else ""
    return f"| {n_cells} | {1e3 * fast:.2f} | {1e3 * slow:.1f} | {ratio:.0f}× | {wanted_ratio} |"


def run(args: argparse.Namespace) -> None:
    peer = "upstream's loop" if args.upstream else "double loop"
    print(f"| cells | scfm, ms a step | {peer}, ms a step | ratio | wanted |")
    print("|---|---|---|---|---|")
    for n_cells in args.cells:
        print(compare(n_cells, args), flush=True)

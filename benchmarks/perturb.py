"""Deleting each gene of a cell: ours against the procedure of Geneformer's InSilicoPerturber with transformers.

Both have the same random weights. The peer computes as upstream does, in float32: copies of the cell in batches, padded,
through BertForMaskedLM with all hidden states and the head, then the cosines of the layer that is read. ``v1`` are the sizes
of Geneformer V1 (10M) with mean pooling, ``v2`` those of V2 (104M) with ``<cls>``. Ratios are of CPU time, turn by turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scfm.batch import plan_batches
from scfm.genes import Vocabulary
from scfm.model import TokenBlock
from scfm.nn import BertConfig, BertEncoder
from scfm.nn.deleting import copies_forward
from scfm.tasks import Perturb, Perturbations, edit_ranks

if TYPE_CHECKING:
    import argparse

    from scfm.tasks import Kind, Perturber

SHAPES: dict[str, dict[str, Any]] = {
    "v1": {
        "vocab_size": 25_426,
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": 2048,
    },
    "v2": {
        "vocab_size": 20_275,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 4096,
    },
}
SHARED = {"hidden_act": "relu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, "initializer_range": 0.1}
BUDGET = 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--genes", type=int, default=1000, help="genes of the cell")
    parser.add_argument("--copies", type=int, default=16, help="genes of it that are deleted")
    parser.add_argument("--peer-copies", type=int, default=4, help="genes of it that the peer deletes, in one batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


@dataclass
class Options:
    """As those of a run."""

    pooling: str
    compat: str | None = "upstream"


class Recipe:
    """As much of a model as the task asks for."""

    context_poolings = ("mean",)

    def __init__(self, sizes: dict[str, Any], *, cls: bool, shares: bool) -> None:
        n, self._shares, self.n_features = sizes["vocab_size"], shares, sizes["hidden_size"]
        names = ["<pad>", "<mask>", *(["<cls>", "<eos>"] if cls else [])]
        self.vocabulary = Vocabulary.of_names([f"gene{i}" for i in range(n - len(names))], names)

    def max_genes(self, options: Options) -> int:
        return 2048

    def perturber(self, kind: Kind, options: Options) -> Perturber:
        return partial(edit_ranks, kind=kind, max_genes=2048)

    def forward(self, network: Any, batch: Any, options: Options) -> torch.Tensor:
        tokens, lengths, first_only = torch.from_numpy(batch.tokens), batch.lengths.tolist(), options.pooling == "cls"
        if self._shares:
            return copies_forward(network, tokens, lengths, batch.rows.tolist(), first_only=first_only)
        output: torch.Tensor = network(tokens, lengths, first_only=first_only)
        return output


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {args.genes} genes, {_cpu()}\n")
    print(
        "| | CPU ms a copy | wall ms a copy | ratio to upstream's procedure (lowest, highest of a turn) | largest error |"
    )
    print("|---|---|---|---|---|")
    for shape in args.shape:
        _run_shape(shape, args)


def _run_shape(shape: str, args: argparse.Namespace) -> None:
    import transformers

    torch.manual_seed(0)
    sizes, cls = SHAPES[shape] | SHARED, shape == "v2"
    genes = torch.randperm(sizes["vocab_size"] - 4)[: args.genes] + 4
    peer = transformers.BertForMaskedLM(transformers.BertConfig(**sizes)).eval()
    tensors = {name: value for name, value in peer.state_dict().items() if "decoder" not in name}
    n_layers = sizes["num_hidden_layers"] - 1
    ways = {
        "upstream's procedure": (lambda: theirs(peer, genes, args.peer_copies, n_layers, cls=cls), args.peer_copies)
    }
    for dtype in args.dtype:
        network = BertEncoder(BertConfig.from_dict(sizes), n_layers).eval()
        network.load_published(tensors)
        network = network.to(getattr(torch, dtype))
        for words, shares in (("", True), (", no shared layer", False)):
            task = partial(ours, Recipe(sizes, cls=cls, shares=shares), network, genes.numpy(), args.copies, cls=cls)
            ways[f"scfm, {dtype}{words}"] = (task, args.copies)
    effects = {name: way() for name, (way, _) in ways.items()}  # a turn that does not count
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, (way, n) in ways.items():
            began = process_time(), perf_counter()
            way()
            turns[name].append(((process_time() - began[0]) / n, (perf_counter() - began[1]) / n))
    base, wanted = turns["upstream's procedure"], effects["upstream's procedure"]
    for name, times in turns.items():
        cpu, wall = (1000 * median(one) for one in zip(*times, strict=True))
        ratios = [their[0] / our[0] for our, their in zip(times, base, strict=True)]
        error = np.abs(effects[name][: args.peer_copies] - wanted).max() / wanted.mean()
        print(
            f"| {shape}, {name} | {cpu:.0f} | {wall:.0f} | {median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f}) | {error:.1e} |",
            flush=True,
        )


def _cpu() -> str:
    """Whether the CPU has units for bfloat16."""
    info = Path("/proc/cpuinfo")
    return "avx512_bf16" if info.exists() and "avx512_bf16" in info.read_text() else "no avx512_bf16"


def ours(recipe: Recipe, network: Any, genes: np.ndarray, n_copies: int, *, cls: bool) -> np.ndarray:
    frame = ([2], [3]) if cls else ([], [])
    tokens = np.concatenate([frame[0], genes, frame[1]]).astype(np.int32)
    groups = tuple((int(gene),) for gene in genes[:n_copies])
    task = Perturb(recipe, Options("cls" if cls else "mean"), Perturbations("delete", groups))
    compute = task.make_forward(network, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        for block in task.edit(TokenBlock(0, tokens, np.array([0, len(tokens)]), np.array([len(genes)]))):
            for batch in plan_batches(block, BUDGET):
                task.sink.write(batch, compute(batch))
    return task.effects.table()[2][:, 0]


@torch.no_grad()
def theirs(peer: Any, genes: torch.Tensor, n_copies: int, layer: int, *, cls: bool) -> np.ndarray:
    before, after = (torch.tensor([token] if cls else [], dtype=torch.int64) for token in (2, 3))

    def states(sequences: torch.Tensor) -> torch.Tensor:
        rows = len(sequences)
        ids = torch.cat([before.expand(rows, -1), sequences, after.expand(rows, -1)], dim=1)
        return peer(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states[layer]

    whole, found = states(genes[None])[0], []
    copies = torch.stack([torch.cat([genes[:at], genes[at + 1 :]]) for at in range(n_copies)])
    for at, state in enumerate(states(copies)):
        if cls:
            found.append(torch.cosine_similarity(state[0], whole[0], dim=0))
        else:
            found.append(torch.cosine_similarity(state, torch.cat([whole[:at], whole[at + 1 :]])).mean())
    return 1 - torch.stack(found).numpy()

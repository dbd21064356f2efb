"""Deleting each gene of a cell: ours against the procedure of Geneformer's InSilicoPerturber with transformers.

Both have the same random weights. The peer computes as upstream does: copies of the cell in batches, padded, through
BertForMaskedLM with all hidden states and the head, then the cosines of the layer that is read. ``--shape v1`` are the
sizes of Geneformer V1 (10M) with mean pooling, ``v2`` those of V2 (104M) with ``<cls>``.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    import argparse

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
    parser.add_argument("--shape", choices=SHAPES, default="v1")
    parser.add_argument("--genes", type=int, default=1000, help="genes of the cell")
    parser.add_argument("--copies", type=int, default=32, help="genes of it that are deleted")
    parser.add_argument("--batch", type=int, default=16, help="copies of a batch of the peer")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of ours; the peer is float32"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


@dataclass
class Options:
    """As those of a run."""

    pooling: str
    compat: str = "upstream"


class Recipe:
    """As much of a model as the task asks for."""

    def __init__(self, cls: bool, n_features: int) -> None:
        self._frame, self.n_features = (2, 3) if cls else (-1, -1), n_features

    def rank_frame(self) -> tuple[int, int]:
        return self._frame

    def max_genes(self, options: Options) -> int:
        return 2048

    def forward(self, network: Any, batch: Any, options: Options) -> torch.Tensor:
        first_only = options.pooling == "cls"
        output: torch.Tensor = network(torch.from_numpy(batch.tokens), batch.lengths, first_only=first_only)
        return output


def run(args: argparse.Namespace) -> None:
    import transformers

    from scfm.nn import BertConfig, BertEncoder

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    sizes, cls = SHAPES[args.shape] | SHARED, args.shape == "v2"
    genes = torch.randperm(sizes["vocab_size"] - 4)[: args.genes] + 4
    peer = transformers.BertForMaskedLM(transformers.BertConfig(**sizes)).eval()
    tensors = peer.state_dict()
    dtype = getattr(torch, args.dtype)
    n_layers = sizes["num_hidden_layers"] - 1
    network = BertEncoder(BertConfig.from_dict(sizes), n_layers).eval()
    network.load_published({name: value for name, value in tensors.items() if "decoder" not in name})
    network = network.to(dtype)
    ways = {
        "scfm": lambda: ours(Recipe(cls, sizes["hidden_size"]), network, genes.numpy(), args, dtype),
        "upstream's procedure": lambda: theirs(peer, genes, args, n_layers, cls=cls),
    }
    effects = {name: way() for name, way in ways.items()}  # a turn that does not count
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, way in ways.items():
            began = perf_counter()
            way()
            seconds[name].append(perf_counter() - began)
    turns = [their / our for our, their in zip(*seconds.values(), strict=True)]
    print(
        f"torch {torch.__version__}, {args.threads} threads, {args.shape}, {args.dtype}, {args.genes} genes, {args.copies} copies\n"
    )
    print("| | ms a copy | ratio to scfm (lowest, highest of a turn) |")
    print("|---|---|---|")
    for name, times in seconds.items():
        ratio = f"{median(turns):.2f} ({min(turns):.2f}, {max(turns):.2f})" if name != "scfm" else "1"
        print(f"| {name} | {1000 * median(times) / args.copies:.1f} | {ratio} |")
    first, second = effects.values()
    print(f"\nLargest difference of an effect: {np.abs(first - second).max():.1e}, of {second.mean():.1e} on average")


def ours(recipe: Recipe, network: Any, genes: np.ndarray, args: argparse.Namespace, dtype: torch.dtype) -> np.ndarray:
    from scfm.batch import plan_batches
    from scfm.model import TokenBlock
    from scfm.tasks import Perturb, Perturbations

    options = Options("cls" if recipe.rank_frame()[0] >= 0 else "mean")
    frame = [np.asarray([token] if token >= 0 else []) for token in recipe.rank_frame()]
    tokens = np.concatenate([frame[0], genes, frame[1]]).astype(np.int32)
    groups = tuple((int(gene),) for gene in genes[: args.copies])
    task = Perturb(recipe, options, Perturbations("delete", groups))
    compute = task.make_forward(network, torch.device("cpu"), dtype)
    with torch.inference_mode():
        for block in task.edit(TokenBlock(0, tokens, np.array([0, len(tokens)]), np.array([len(genes)]))):
            for batch in plan_batches(block, BUDGET):
                task.sink.write(batch, compute(batch))
    return task.effects.table()[2][:, 0]


@torch.no_grad()
def theirs(peer: Any, genes: torch.Tensor, args: argparse.Namespace, layer: int, *, cls: bool) -> np.ndarray:
    before, after = (torch.tensor([token] if cls else [], dtype=torch.int64) for token in (2, 3))

    def states(sequences: torch.Tensor) -> torch.Tensor:
        rows = len(sequences)
        ids = torch.cat([before.expand(rows, -1), sequences, after.expand(rows, -1)], dim=1)
        return peer(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states[layer]

    whole, found = states(genes[None])[0], []
    copies = torch.stack([torch.cat([genes[:at], genes[at + 1 :]]) for at in range(args.copies)])
    for start in range(0, args.copies, args.batch):
        for at, state in enumerate(states(copies[start : start + args.batch]), start):
            if cls:
                found.append(torch.cosine_similarity(state[0], whole[0], dim=0))
            else:
                found.append(torch.cosine_similarity(state, torch.cat([whole[:at], whole[at + 1 :]])).mean())
    return 1 - torch.stack(found).numpy()

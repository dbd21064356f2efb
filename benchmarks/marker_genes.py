"""Masking each gene of a cell: ours against one run of the network a gene, and against batches of 32.

The network has scCello's sizes and random weights, float32. With ``--upstream`` the peer is scCello's own class, one copy at
a time and 32 at a time, as its script does it; without, the encoder of transformers takes its place, with fused attention
one at a time and eager attention 32 at a time. The last peer is our own encoder, one copy at a time, first token only.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from torch import Tensor

BATCH = 32
BUDGET = 8192
SIZES = {
    "vocab_size": 25_427,
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 2048,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 1,
    "initializer_range": 0.1,  # wider than usual, so that a masked gene changes something
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--genes", type=int, default=1000, help="genes of the cell, beside <cls>")
    parser.add_argument("--copies", type=int, default=64, help="genes of it that are masked in the measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--upstream", type=Path, help="a checkout of scCello (default: transformers takes its place)")
    parser.add_argument("--transformers", type=Path, help="folder with the transformers that upstream imports")


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cell = torch.randperm(25_424)[: args.genes + 1] + 2
    copies = cell.repeat(args.copies + 1, 1)
    copies[torch.arange(1, args.copies + 1), torch.arange(1, args.copies + 1)] = 1  # the first one stays as it is
    with TemporaryDirectory() as folder:
        ways = runs(args, copies, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        vectors = {name: way()[1] for name, way in ways.items()}  # a turn that does not count
        for _ in range(args.repeats):
            for name, way in ways.items():
                seconds[name].append(way()[0])
    print(f"torch {torch.__version__}, {args.threads} threads, {args.genes:,} genes, {args.copies} of them masked\n")
    print("| | ms a gene | ratio to scfm (lowest, highest of a turn) | largest difference of a score |")
    print("|---|---|---|---|")
    for name, times in seconds.items():
        turns = [time / ours for time, ours in zip(times, seconds["scfm"], strict=True)]
        difference = (scores_of(vectors[name]) - scores_of(vectors["scfm"])).abs().max()
        ratio = f"{median(turns):.2f} ({min(turns):.2f}, {max(turns):.2f})"
        print(f"| {name} | {1000 * median(times) / len(copies):.1f} | {ratio} | {difference:.1e} |")


def runs(args: argparse.Namespace, copies: Tensor, folder: Path) -> dict[str, Callable[[], tuple[float, Tensor]]]:
    """Each way to the vectors, timed."""
    import transformers

    from scfm.nn import BertConfig, BertEncoder
    from scfm.nn.masking import masked_outputs

    config = transformers.BertConfig(**SIZES)
    eager, fused = (
        transformers.BertModel._from_config(config, add_pooling_layer=False, attn_implementation=kind).eval()
        for kind in ("eager", "sdpa")
    )
    fused.load_state_dict(eager.state_dict())
    tensors = {f"bert.{name}": value for name, value in eager.state_dict().items()}
    encoder = BertEncoder(BertConfig.from_dict(SIZES)).eval()
    encoder.load_published(tensors)
    cell = copies[0]

    @torch.no_grad()
    def published(model: Any, size: int) -> Tensor:
        return torch.cat(
            [model(part, output_hidden_states=True).last_hidden_state[:, 0] for part in copies.split(size)]
        )

    @torch.inference_mode()
    def single() -> Tensor:
        return torch.cat([encoder(copy, [len(copy)], first_only=True) for copy in copies])

    @torch.inference_mode()
    def scfm() -> Tensor:
        cells = [(cell, torch.arange(1, len(copies)))]
        (masked,) = masked_outputs(encoder, cells, 1, lambda z, _: z, first_only=True, max_tokens=BUDGET)
        return torch.cat([encoder(cell, [len(cell)], first_only=True), masked])

    found = {"scfm": timed(scfm)}
    if args.upstream is None:
        found["transformers, one at a time"] = timed(lambda: published(fused, 1))
        found[f"transformers, eager, {BATCH} at a time"] = timed(lambda: published(eager, BATCH))
    else:
        # the table of token types is one of the three that upstream adds everywhere
        tensors["bert.embeddings.tf_class_embeddings.weight"] = tensors.pop(
            "bert.embeddings.token_type_embeddings.weight"
        )
        others = ("tf_superclass", "expbin")
        tensors |= {
            f"bert.embeddings.{name}_embeddings.weight": torch.zeros(1, SIZES["hidden_size"]) for name in others
        }
        torch.save({"copies": copies, "tensors": tensors, "sizes": SIZES}, folder / "input.pt")
        for size in (1, BATCH):
            found[f"upstream, {size} at a time"] = lambda size=size: upstream(args, folder, size)  # type: ignore[misc]
    return found | {"our encoder, one at a time, first token only": timed(single)}


def timed(compute: Callable[[], Tensor]) -> Callable[[], tuple[float, Tensor]]:
    def measured() -> tuple[float, Tensor]:
        began = perf_counter()
        vectors = compute()
        return perf_counter() - began, vectors

    return measured


def upstream(args: argparse.Namespace, folder: Path, size: int) -> tuple[float, Tensor]:
    """scCello's own class, in a process of its own; its start is not counted."""
    script = Path(__file__).with_name("upstream_marker_genes.py")
    words = [script, folder / "input.pt", folder / "output.pt", args.upstream, size, args.threads]
    subprocess.run([sys.executable, *map(str, [*words, *filter(None, [args.transformers])])], check=True)
    result = torch.load(folder / "output.pt", weights_only=True)
    return result["seconds"], result["vectors"]


def scores_of(vectors: Tensor) -> Tensor:
    """``1 − cos`` of the first vector and each of the others."""
    whole, masked = vectors[:1].double(), vectors[1:].double()
    return 1 - torch.cosine_similarity(whole, masked)

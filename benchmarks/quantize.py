"""Weights of 8 and 4 bits: time and memory of the network, and how close embeddings are to those in float32.

Time and memory are those of networks with random weights: ``v1`` has the sizes of Geneformer V1 (10M), ``v2`` those of V2
(104M), which read cells of 512 genes; ratios are medians over turns, on the CPU of CPU time. Memory is that of all weights,
embeddings of tokens included.
Closeness is measured by a real model: mean cosine of the embeddings of the same cell, and the Spearman correlation of the
similarities (cosines of centred embeddings) of all pairs of cells.
"""

from __future__ import annotations

from functools import partial
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import spearmanr

from scfm.nn import BertConfig, BertEncoder
from scfm.run.quantize import DEVICES, quantize_network

from .perturb import SHAPES, SHARED

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from numpy.typing import NDArray

LENGTH = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--cells", type=int, default=4, help=f"cells of {LENGTH} genes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", default="scfm-mini", help="real model, for closeness")
    parser.add_argument("--data", help="file of its cells; by default those of scfm.datasets.pbmc68k")


def run(args: argparse.Namespace) -> None:
    from scfm import settings

    settings.progress = False
    torch.set_num_threads(args.threads)
    schemes = [None, *(scheme for scheme, devices in DEVICES.items() if args.device in devices)]
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads"
    print(f"torch {torch.__version__}, {where}, {args.cells} cells of {LENGTH} genes\n")
    print("| shape | dtype | quantize | ms a cell | time / float32 | time / bfloat16 | memory / float32 |")
    print("|---" * 7 + "|")
    for shape in args.shape:
        for row in costs(shape, schemes, args):
            print(row, flush=True)
    print("\n| model | dtype | quantize | mean cosine | rank agreement |\n|---|---|---|---|---|", flush=True)
    for row in closeness(schemes, args):
        print(row, flush=True)


def costs(shape: str, schemes: list[Any], args: argparse.Namespace) -> list[str]:
    """Time and memory of one network in all ways."""
    config = BertConfig.from_dict(SHARED | SHAPES[shape])
    torch.manual_seed(0)
    tokens = torch.randint(0, config.vocab_size, (args.cells * LENGTH,))
    first = BertEncoder(config).eval()
    runs: dict[tuple[str, Any], Callable[[], Any]] = {}
    memory = {}
    for dtype in ("float32", "bfloat16"):
        for scheme in schemes:
            network = BertEncoder(config).eval()
            network.load_state_dict(first.state_dict())
            network.to(device=args.device, dtype=getattr(torch, dtype))
            if scheme is not None:
                quantize_network(network, scheme)
            runs[dtype, scheme] = partial(compute, network, tokens)
            memory[dtype, scheme] = sum(map(n_bytes, network.parameters()))
    clock = process_time if args.device == "cpu" else perf_counter
    turns = [{key: seconds(work, clock) for key, work in runs.items()} for _ in range(args.repeats + 1)][1:]

    def ratio(key: tuple[str, Any], other: str) -> float:
        return median(turn[key] / turn[other, None] for turn in turns)

    return [
        f"| {shape} | {key[0]} | {key[1] or 'none'} | {1000 * median(turn[key] for turn in turns) / args.cells:.2f} | "
        f"{ratio(key, 'float32'):.2f} | {ratio(key, 'bfloat16'):.2f} | {memory[key] / memory['float32', None]:.2f} |"
        for key in runs
    ]


def seconds(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    """What one call takes."""
    start = clock()
    work()
    return clock() - start


def compute(network: BertEncoder, tokens: torch.Tensor) -> None:
    """One pass, until its result is there."""
    with torch.inference_mode():
        network(tokens, [LENGTH] * (len(tokens) // LENGTH))[0].cpu()


def n_bytes(parameter: torch.Tensor) -> int:
    """Bytes of a parameter, whichever tensors it is made of."""
    inner = parameter.data
    if hasattr(inner, "__tensor_flatten__"):
        return sum(getattr(inner, name).nbytes for name in inner.__tensor_flatten__()[0])
    scales = getattr(parameter, "quant_state", None)
    return inner.nbytes + (0 if scales is None else scales.absmax.nbytes)


def closeness(schemes: list[Any], args: argparse.Namespace) -> list[str]:
    """Embeddings of a real model against those in float32."""
    import scfm

    model = scfm.model.load(args.model)
    cells = scfm.datasets.pbmc68k() if args.data is None else args.data
    exact = model.embed(cells, device=args.device, dtype="float32")
    rows = []
    for dtype in ("float32", "bfloat16"):
        for scheme in schemes:
            found = model.embed(cells, device=args.device, dtype=dtype, quantize=scheme)
            cosines = (found * exact).sum(1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(exact, axis=1))
            agreement = spearmanr(similarities(found), similarities(exact)).statistic
            rows.append(f"| {model.card.id} | {dtype} | {scheme or 'none'} | {cosines.mean():.4f} | {agreement:.4f} |")
    return rows


def similarities(embedding: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosines of all pairs of cells, in one row."""
    values = embedding.astype(np.float64) - embedding.mean(0)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return (values @ values.T)[np.triu_indices(len(values), 1)]

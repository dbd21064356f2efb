"""The network alone: our encoder against the upstream procedure, and against the matrix products it is made of.

Both get the same random weights and the same tokens, run one after the other in turns, and are compared by medians.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from . import peers

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from numpy.typing import NDArray

Key = TypeVar("Key", str, int)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="counts as .h5ad, Ensembl ids as var_names (default: synthetic)")
    parser.add_argument("--dictionaries", type=Path, help="folder with the published dictionaries (default: made up)")
    parser.add_argument("--models", nargs="+", choices=peers.MODELS, default=list(peers.MODELS))
    parser.add_argument("--cells", type=int, nargs="+", default=[128, 4], help="cells for each model")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 8, 16], help="upstream; the best one counts")
    parser.add_argument("--token-budget", type=int, default=8192, help="tokens of one of our batches")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, upstream in float32\n")
    print("| model | dtype | upstream, cells/s (batch) | scfm, cells/s | ratio | share of GEMM ceiling | deviation |")
    print("|---|---|---|---|---|---|---|")
    n_cells = dict(zip(args.models, args.cells * len(args.models), strict=False))
    for name in args.models:
        for row in compare(name, load_cells(args, name, n_cells[name]), args):
            print(row, flush=True)


def load_cells(args: argparse.Namespace, name: str, n_cells: int) -> peers.Cells:
    if args.data is not None and args.data.is_file():
        import anndata

        return peers.rank_tokens(anndata.read_h5ad(args.data)[:n_cells], name, args.dictionaries)
    from scfm import datasets

    return peers.rank_tokens(datasets.synthetic(n_cells), name, None)


def compare(name: str, cells: peers.Cells, args: argparse.Namespace) -> list[str]:
    """One row of the table for each dtype."""
    model, pooling = peers.random_model(name), peers.MODELS[name]["pooling"]
    # the logits of a cell of V2 are 332 MB, so larger batches only cost memory
    sizes = [size for size in args.batch_sizes if size <= 4 or name.startswith("V1")]
    peer: dict[int, Callable[[], NDArray[Any]]] = {
        size: lambda size=size: peers.upstream_embed(model, cells, pooling, size) for size in sizes
    }
    once = take_turns(peer, 1, warm=False)[0]
    best = min(sizes, key=once.__getitem__)
    runs = {"upstream": peer[best]}
    dtypes = {key: dtype for key, dtype in DTYPES.items() if key == "float32" or has_bfloat16()}
    runs |= {key: ours(model, cells, pooling, dtype, args.token_budget) for key, dtype in dtypes.items()}
    seconds, results = take_turns(runs, args.repeats)

    upstream, exact = seconds["upstream"], results["upstream"]
    rows = []
    for key in DTYPES:
        if key not in dtypes:
            rows.append(f"| {name} | {key} | skipped: this CPU has no bfloat16 products (avx512_bf16, amx_bf16) ||||||")
            continue
        ceiling = ceiling_seconds(name, cells, dtypes[key]) / seconds[key]
        deviation = f"{np.abs(results[key] - exact).max():.1e}" if key == "float32" else cosine(results[key], exact)
        rates = f"{len(cells) / upstream:.2f} ({best}) | {len(cells) / seconds[key]:.2f}"
        rows.append(f"| {name} | {key} | {rates} | {upstream / seconds[key]:.2f} | {ceiling:.0%} | {deviation} |")
    return rows


def ours(
    model: Any, cells: peers.Cells, pooling: str, dtype: torch.dtype, token_budget: int
) -> Callable[[], NDArray[Any]]:
    """Our side of the comparison; the only function that knows how scfm is called."""
    from scfm.nn import BertConfig, BertEncoder, pool_mean

    config = BertConfig.from_dict(model.config.to_dict())
    encoder = BertEncoder(config, config.n_layers - 1)
    encoder.load_published(model.state_dict())
    encoder.to(dtype).eval()
    order = np.argsort([-len(cell) for cell in cells], kind="stable")
    n_cells = max(1, token_budget // max(map(len, cells)))

    def embed() -> NDArray[Any]:
        out = np.empty((len(cells), config.hidden_size), dtype=np.float32)
        for chosen in (order[start : start + n_cells] for start in range(0, len(order), n_cells)):
            lengths = [len(cells[i]) for i in chosen]
            tokens = torch.from_numpy(np.concatenate([cells[i] for i in chosen]))
            with torch.inference_mode():
                hidden = encoder(tokens, lengths, first_only=pooling == "cls")
                pooled = hidden.float() if pooling == "cls" else pool_mean(hidden, lengths)
            out[chosen] = pooled.numpy()
        return out

    return embed


def take_turns(
    runs: dict[Key, Callable[[], Any]], repeats: int, *, warm: bool = True
) -> tuple[dict[Key, float], dict[Key, Any]]:
    """Median seconds and last result of each run; with ``warm``, after one turn that does not count."""
    times: dict[Key, list[float]] = {key: [] for key in runs}
    results = {}
    for turn in range(0 if warm else 1, repeats + 1):
        for key, function in runs.items():
            start = perf_counter()
            results[key] = function()
            if turn:
                times[key].append(perf_counter() - start)
    return {key: median(values) for key, values in times.items()}, results


def ceiling_seconds(name: str, cells: peers.Cells, dtype: torch.dtype) -> float:
    """Seconds that ``torch.mm`` alone needs for the matrix products of our encoder."""
    layers, d, heads, ffn, *_ = peers.MODELS[name]["sizes"]
    first_only = peers.MODELS[name]["pooling"] == "cls"
    n_full = layers - 2 if first_only else layers - 1
    seconds = 0.0
    for length, count in zip(*np.unique([len(cell) for cell in cells], return_counts=True), strict=True):
        n = int(length)
        linear = sum(mm_seconds(n, k, m, dtype) for k, m in ((d, 3 * d), (d, d), (d, ffn), (ffn, d)))
        attention = heads * (mm_seconds(n, d // heads, n, dtype) + mm_seconds(n, n, d // heads, dtype))
        last = mm_seconds(n, d, 2 * d, dtype) if first_only else 0.0
        seconds += int(count) * (n_full * (linear + attention) + last)
    return seconds


_MM_SECONDS: dict[tuple[int, int, int, torch.dtype], float] = {}


def mm_seconds(n: int, k: int, m: int, dtype: torch.dtype, repeats: int = 5) -> float:
    """Median seconds of one product of shapes (n, k) and (k, m)."""
    key = (n, k, m, dtype)
    if key not in _MM_SECONDS:
        a, b = torch.randn(n, k).to(dtype), torch.randn(m, k).to(dtype).T
        out = torch.empty(n, m, dtype=dtype)
        _MM_SECONDS[key] = take_turns({"mm": lambda: torch.mm(a, b, out=out)}, repeats)[0]["mm"]
    return _MM_SECONDS[key]


def cosine(a: NDArray[Any], b: NDArray[Any]) -> str:
    cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return f"cosine ≥ {np.floor(cosines.min() * 1e6) / 1e6:.6f}"


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (known on Linux on x86 only)."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and any(flag in cpuinfo.read_text() for flag in ("avx512_bf16", "amx_bf16"))

"""Whether reading, encoding and the network overlap: each alone, and all of them together, from a file.

The network is the smallest there is, the embedding of tokens of a random Geneformer of width 8, so that it does not hide
what comes before it. Overlap is complete when the whole is as fast as its slowest part alone. Parts that take all cores
when they are alone, as decompression and encoding do, cannot overlap: then the whole is done when it keeps all cores
busy, which the second table shows. The file has been read before; medians over turns.

reading: all blocks of the file, kept by nobody. encoding: blocks that are in memory already. network: batches that are
in memory already. planning: reading and encoding ahead, as in every run, and a consumer that only makes batches. embed:
everything that a user calls, opening of the file and matching of genes included.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from . import synthetic_files
from .synthetic_files import LAYOUTS, counts_of, positive, suffix_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    import torch

    from scfm._types import TokenBatch, TokenBlock
    from scfm.model import FoundationModel
    from scfm.model.session import Session

PARTS = ("reading", "encoding", "network", "planning", "embed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cells", type=positive, default=20_000)
    synthetic_files.add_sizes(parser, mean=1500, most=1800)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=["contiguous", "gzip"])
    parser.add_argument("--max-tokens", type=positive, default=64, help="of a cell; few keep the network small")
    parser.add_argument("--repeats", type=positive, default=3)


def run(args: argparse.Namespace) -> None:
    from scfm import settings

    settings.progress = False
    with tempfile.TemporaryDirectory() as name:
        ids = tuple(f"ENSG{number:011d}" for number in range(1, args.genes + 1))
        counts = counts_of(args, args.cells, ids)
        model = smallest(Path(name) / "model", args.genes)
        print(f"{args.cells:,} cells of {args.mean:,} genes, {settings.threads} threads; cells/s\n")
        print("| file | reading | encoding | network | reading, then encoding | planning | embed |", end="")
        print(" planning / slower of reading and encoding | embed / slowest of the three |")
        print("|---" * 9 + "|")
        cores: dict[str, dict[str, float]] = {}
        for layout in args.layouts:
            path = synthetic_files.write(Path(name) / f"{layout}{suffix_of(layout)}", counts, layout)
            seconds, cores[layout] = measure(model, path, args.max_tokens, args.repeats)
            print(row(layout, seconds, args.cells), flush=True)
    print(f"\n| cores in use | {' | '.join(PARTS)} |")
    print("|---" * (len(PARTS) + 1) + "|")
    for layout, by_part in cores.items():
        print(f"| {layout} | {' | '.join(f'{by_part[part]:.1f}' for part in PARTS)} |")


def smallest(folder: Path, n_genes: int) -> FoundationModel:
    from scfm.model import load
    from scfm.testing import write_geneformer

    write_geneformer(folder, n_genes=n_genes, n_layers=1, hidden_size=8, n_heads=1, max_tokens=2048)
    return load(folder, dictionaries=folder)


def row(layout: str, seconds: dict[str, float], n_cells: int) -> str:
    slower = max(seconds["reading"], seconds["encoding"])
    times = [seconds[part] for part in PARTS]
    times.insert(3, seconds["reading"] + seconds["encoding"])
    rates = " | ".join(f"{n_cells / time:,.0f}" for time in times)
    shares = f"{slower / seconds['planning']:.2f} | {max(slower, seconds['network']) / seconds['embed']:.2f}"
    return f"| {layout} | {rates} | {shares} |"


class Nothing:
    """A task that computes vectors of no features, and a sink that keeps none."""

    block_rows = batch_tokens = empty_rows = None

    def __init__(self) -> None:
        self.sink = self

    def edit(self, block: TokenBlock) -> tuple[TokenBlock]:
        """The sequences as they are."""
        return (block,)

    def make_forward(self, *_: Any) -> Callable[[TokenBatch], torch.Tensor]:
        """What stands for the network."""
        import torch

        return lambda batch: torch.empty(len(batch.rows), 0)

    def shrink(self, batch: TokenBatch) -> bool:
        """Nothing takes memory."""
        return False

    def write(self, *_: Any) -> None:
        """Nothing is kept."""

    def end_block(self, *_: Any) -> None:
        """Nothing is held back."""


def measure(
    model: FoundationModel, path: Path, max_tokens: int, repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each part, and how many cores it had in use."""
    from scfm.model.arguments import Arguments

    how = Arguments(hidden_layer=-model.n_layers, max_tokens=max_tokens, device="cpu")
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    cpu = dict.fromkeys(PARTS, 0.0)
    with warnings.catch_warnings(), model.session(path, how) as session:
        warnings.simplefilter("ignore")  # about cells that are cut, which is what is wanted here
        parts = parts_of(session) | {"embed": lambda: model.run(path, how)}
        for turn in range(repeats + 1):
            for part, work in parts.items():
                start, used = perf_counter(), process_time()
                work()
                if turn:  # the first one compiles and fills the page cache
                    times[part].append(perf_counter() - start)
                    cpu[part] += process_time() - used
    return {part: median(values) for part, values in times.items()}, {p: cpu[p] / sum(times[p]) for p in PARTS}


def parts_of(session: Session) -> dict[str, Callable[[], object]]:
    import torch

    from scfm import settings
    from scfm.batch import plan_batches
    from scfm.run.device import default_batch_tokens

    encode = session.model.encoder(session.source, session.genes, session.options)
    (network,), budget = session.networks(), default_batch_tokens(session.device)

    def blocks() -> Any:
        return session.source.blocks(settings.block_rows, max_nnz=settings.block_values)

    counts = list(blocks())
    batches = [batch for block in counts for batch in plan_batches(encode(block), budget)]

    def compute() -> None:
        with torch.inference_mode():
            for batch in batches:
                session.model.forward(network, batch, session.options)

    return {
        "reading": lambda: sum(block.n_cells for block in blocks()),
        "encoding": lambda: sum(len(encode(block).tokens) for block in counts),
        "network": compute,
        "planning": lambda: session.run(Nothing()),
    }

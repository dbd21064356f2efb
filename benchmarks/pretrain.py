"""Tokens per second of pretraining, beside the Trainer of transformers: masked genes, Geneformer's V1-10M, the CPU in float32.

Both train a network of the same sizes (6 layers of 256, 25,426 tokens) on the same cells, as many at a time, each in a process
of its own and in turns. The peer gets the cells tokenised, in memory, and pads a batch to its longest cell; scfm reads, encodes
and masks them from an .h5ad file on the way. Tokens are those of cells, without padding. The first step of each turn, which
compiles and allocates, is left out; medians over the other steps of all turns. Where others use the machine, too, the CPU
seconds of all threads tell more than the clock, best with one thread. Memory is the peak of the process; that of the cells is in
both.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from . import synthetic_files
from .rss import peak
from .synthetic_files import counts_of, positive

if TYPE_CHECKING:
    import argparse

N_GENES = 25_424
SIZES = {"hidden_size": 256, "n_layers": 6, "n_heads": 4, "intermediate_size": 512, "max_positions": 2048}
MASK, PAD = 1, 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cells", type=positive, default=256)
    parser.add_argument("--batch-cells", type=positive, default=8)
    parser.add_argument("--steps", type=positive, default=5, help="of a turn")
    parser.add_argument("--turns", type=positive, default=2)
    parser.add_argument("--threads", type=positive, default=2)
    synthetic_files.add_sizes(parser, mean=1200, most=2048)
    parser.set_defaults(genes=N_GENES)


def run(args: argparse.Namespace) -> None:
    sides: dict[str, list[dict[str, Any]]] = {"scfm": [], "transformers": []}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), args)
        for turn in range(args.turns):
            for side in sides:
                words = [sys.executable, "-m", "benchmarks.pretrain", side, name, str(turn)]
                words += [str(args.batch_cells), str(args.steps), str(args.threads)]
                done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
                sides[side].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{args.batch_cells} cells a step, {args.threads} threads\n")
    print("| | tokens/s | tokens per CPU second | tokens a step | peak memory, MB |\n|---|---|---|---|---|")
    figures: dict[str, list[float]] = {}
    for side, turns in sides.items():
        tokens, seconds, busy = zip(*(step for turn in turns for step in turn["steps"][1:]), strict=True)
        speeds = [median(n / time for n, time in zip(tokens, times, strict=True)) for times in (seconds, busy)]
        figures[side] = [*speeds, median(tokens), max(turn["peak"] for turn in turns) / 1e6]
        print(f"| {side} | {' | '.join(f'{figure:,.0f}' for figure in figures[side])} |")
    ratios = [ours / theirs for ours, theirs in zip(*figures.values(), strict=True)]
    print(f"| ratio | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Write the cells, a vocabulary of their genes, and the tokens of the cells for the peer."""
    synthetic_files.write(folder / "cells.h5ad", counts_of(args, args.cells, gene_ids()), "contiguous")
    write_model(folder / "genes", SIZES)
    (folder / "tokens.json").write_text(json.dumps(tokens_of(folder / "genes", folder / "cells.h5ad")))


def gene_ids() -> tuple[str, ...]:
    """Made-up ids, as many as the published vocabulary has."""
    return tuple(f"ENSG{number:011d}" for number in range(1, N_GENES + 1))


def write_model(folder: Path, sizes: dict[str, int]) -> None:
    """A model of these genes with random weights."""
    import numpy as np

    from scfm.genes import Vocabulary
    from scfm.model.families.geneformer import Geneformer
    from scfm.model.recipe import NO_WEIGHTS
    from scfm.model.saved import write_folder

    tokens = np.arange(2, N_GENES + 2, dtype=np.int32)
    vocabulary = Vocabulary(np.array(gene_ids()), tokens, np.ones(N_GENES), {"<pad>": PAD, "<mask>": MASK})
    card = Geneformer.new_card(folder.name, sizes, vocabulary)
    recipe = Geneformer(card, vocabulary, NO_WEIGHTS)
    write_folder(folder, card, vocabulary, recipe.published_tensors(recipe.training_network()))


def tokens_of(model: Path, cells: Path) -> list[list[int]]:
    """Token sequence of each cell."""
    import numpy as np

    from scfm.model import load

    with load(model).session(cells) as session:
        blocks = list(session.tokens())
    return [part.tolist() for block in blocks for part in np.split(block.tokens, block.offsets[1:-1])]


def now() -> Any:
    """The clock, and the CPU seconds of all threads."""
    import numpy as np

    return np.array([perf_counter(), process_time()])


def ours(folder: Path, seed: int, batch_cells: int, n_steps: int, threads: int) -> dict[str, Any]:
    import scfm
    from scfm.train.module import PretrainingModule

    steps: list[tuple[int, float, float]] = []
    step, last = PretrainingModule.training_step, now()

    def timed(self: Any, batches: Any, number: int) -> None:
        nonlocal last
        step(self, batches, number)
        steps.append((sum(len(batch.batch.tokens) for batch in batches), *(now() - last)))
        last = now()

    PretrainingModule.training_step = timed  # type: ignore[method-assign]
    scfm.settings.progress = False
    run = {
        "family": "geneformer",
        "genes": {"source": str(folder / "genes")},
        "architecture": SIZES,
        "sampling": {"batch_cells": batch_cells},
        "validation": {"cells": 0},
        "machine": {"threads": threads, "accelerator": "cpu"},
        "checkpoint_every": 10**6,
    }
    with tempfile.TemporaryDirectory() as out:
        scfm.train.pretrain(folder / "cells.h5ad", out=Path(out) / "model", config=run, steps=n_steps, seed=seed)
    return {"steps": steps, "peak": peak()}


def theirs(folder: Path, seed: int, batch_cells: int, n_steps: int, threads: int) -> dict[str, Any]:
    import torch
    from transformers import (
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.set_num_threads(threads)
    collate, n_tokens = DataCollatorForLanguageModeling(peer_tokenizer(), mlm_probability=0.15), list[int]()

    def counted(features: list[dict[str, list[int]]]) -> Any:
        n_tokens.append(sum(len(one["input_ids"]) for one in features))
        return collate(features)

    class Clock(TrainerCallback):
        times: list[tuple[float, float]] = []
        last = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(tuple(now() - Clock.last))
            Clock.last = now()

    config = peer_config(dropout=0.0)
    cells = [{"input_ids": cell} for cell in json.loads((folder / "tokens.json").read_text())]
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            max_steps=n_steps,
            per_device_train_batch_size=batch_cells,
            learning_rate=1e-3,
            seed=seed,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            dataloader_num_workers=0,
        )
        Trainer(BertForMaskedLM(config), arguments, counted, cells, callbacks=[Clock()]).train()  # type: ignore[arg-type]
    steps = [(n, *times) for n, times in zip(n_tokens, Clock.times, strict=False)]
    return {"steps": steps, "peak": peak()}


def peer_tokenizer() -> Any:
    """One that pads and masks; the cells are tokens already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<mask>": MASK, **{str(token): token for token in range(2, N_GENES + 2)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")), pad_token="<pad>", mask_token="<mask>"
    )


def peer_config(dropout: float, **how: Any) -> Any:
    """The sizes, as transformers names them."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=N_GENES + 2,
        hidden_size=SIZES["hidden_size"],
        num_hidden_layers=SIZES["n_layers"],
        num_attention_heads=SIZES["n_heads"],
        intermediate_size=SIZES["intermediate_size"],
        max_position_embeddings=SIZES["max_positions"],
        hidden_act="relu",
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=PAD,
        **how,
    )


if __name__ == "__main__":
    side, name, *numbers = sys.argv[1:]
    print(json.dumps({"scfm": ours, "transformers": theirs}[side](Path(name), *map(int, numbers))))

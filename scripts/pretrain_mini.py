"""Pretrain scfm-mini: a small BERT over ranked genes, trained to fill in masked genes.

The objective is masked genes alone; no label of a cell is read. Run from a checkout with the test dependencies::

    python scripts/pretrain_mini.py --data cell_lines.h5ad pbmc5k.h5ad \
        --symbols gene_name_id_dict_gc104M.pkl gene_name_id_dict_gc30M.pkl \
        --aliases ensembl_mapping_dict_gc104M.pkl --out scfm-mini

``--data`` are .h5ad files with counts in ``X`` and Ensembl ids or gene symbols as ``var_names``; ``--symbols`` are
pickled dictionaries of gene symbols to Ensembl ids, the first that knows a symbol wins; ``--aliases`` likewise of
upper-case other names, asked last. ``--out`` becomes a folder that ``scfm.model.load`` takes; weights are float16 under
their published names. The recipe and why it is so: ``docs/models/scfm-mini.md``.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import torch
from safetensors.torch import save_file
from scipy import sparse
from torch.nn import functional as F

from scfm._types import CountBlock
from scfm.encode import RankEncoder
from scfm.genes import Vocabulary
from scfm.genes.vocabulary import vocabulary_files
from scfm.nn import BertConfig, BertEncoder, MaskedLMHead
from scfm.nn.bert import encoder_targets
from scfm.nn.heads import head_targets
from scfm.weights import ModelCard
from scfm.weights.pickles import read_dictionary
from scfm.weights.tensors import sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Names = dict[str, str]
    Network = tuple[BertEncoder, MaskedLMHead]
    Save = Callable[[], None]

SPECIAL_TOKENS = {"<pad>": 0, "<mask>": 1}
MASK, FIRST_GENE, N_ALIASES = 1, 2, 10_000
HIDDEN_SIZE, N_LAYERS, N_HEADS, WIDTH = 128, 2, 2, 256


@dataclass(frozen=True)
class Recipe:
    """Everything about the training that is not an argument of the script."""

    min_cells: float = 0.1
    """A gene is in the vocabulary if this share of the cells of a file express it ..."""
    min_cells_symbols: float = 0.002
    """... or this share, if the file is already a selection of genes (fewer than ``selection`` of them)."""
    selection: int = 10_000
    lengths: tuple[int, ...] = (128, 256, 512, 1024)
    """Largest number of genes of a training cell, drawn for each cell with ``length_odds``."""
    length_odds: tuple[float, ...] = (0.4, 0.4, 0.12, 0.08)
    thin: float = 0.3
    """Half of the cells are thinned: counts are drawn again as Binomial(count, p), p log-uniform from here to 1."""
    panel: float = 0.3
    """Half of the cells lose genes at random: a share, uniform from here to 1, is kept."""
    mask_rate: tuple[float, float] = (0.2, 0.6)
    """Share of the genes of a cell that are to be predicted, uniform in these bounds."""
    foreign_odds: float = 0.7
    """Share of the cells of the smallest panel in which random genes from outside it take the place of others ..."""
    foreign_rate: tuple[float, float] = (0.1, 0.9)
    """... and the share of the genes so replaced. The model has to fill in what was there."""
    shared_panel: float = 0.7
    """Share of the cells of larger panels that are cut down to the genes of the smallest panel, and then treated so."""
    foreign_from: tuple[float, float] = (0.0, 0.2)
    """Part of the training over which ``foreign_odds`` rises from 0."""
    batch_tokens: int = 2048
    learning_rate: tuple[float, float] = (2e-3, 7e-4)
    """Of the embeddings, and of everything else."""
    warmup: int = 100
    weight_decay: float = 0.01
    candidates: tuple[float, float] = (0.8, 0.1)
    """Odds of a gene to be predicted in a step at all: of the ``n_variable`` most variable of each file, of others."""
    n_variable: int = 1500


@dataclass(frozen=True)
class CountFile:
    """Counts of one file."""

    name: str
    genes: list[str]
    """Ensembl id of each column; empty where none is known."""
    counts: sparse.csr_matrix
    """Cells × columns, float64."""

    def over(self, vocabulary: Sequence[str]) -> sparse.csr_matrix:
        """Counts with one column per gene of ``vocabulary``; columns of one gene are added."""
        place = {gene: i for i, gene in enumerate(vocabulary)}
        target = np.array([place.get(gene, -1) for gene in self.genes])
        known = np.flatnonzero(target >= 0)
        shape = len(self.genes), len(vocabulary)
        to_gene = sparse.csr_matrix((np.ones(len(known)), (known, target[known])), shape=shape)
        return sparse.csr_matrix(self.counts @ to_gene).sorted_indices()


def read_names(paths: Sequence[Path]) -> Names:
    """Read name → Ensembl id pairs; the first file that knows a name wins."""
    pairs: Names = {}
    for path in paths:
        for symbol, gene in read_dictionary(path, str).items():
            if gene.startswith("ENSG") and not symbol.startswith("ENSG"):
                pairs.setdefault(symbol, gene)
    return pairs


def read_counts(path: Path, symbols: Names, aliases: Names) -> CountFile:
    """Read the counts of a file and name its columns by Ensembl id."""
    adata = ad.read_h5ad(path)
    counts = sparse.csr_matrix(adata.X, dtype=np.float64)
    if (counts.data < 0).any() or (counts.data != np.rint(counts.data)).any():
        msg = f"{path}: X must hold counts."
        raise ValueError(msg)
    genes = [n if n.startswith("ENSG") else symbols.get(n) or aliases.get(n.upper(), "") for n in adata.var_names]
    print(f"{path.name}: {counts.shape[0]:,} cells, {sum(map(bool, genes)):,} of {len(genes):,} genes have an id")
    return CountFile(path.stem, genes, counts)


def choose_genes(files: Sequence[CountFile], recipe: Recipe) -> list[str]:
    """Take the genes that enough cells of a file express, in lexicographic order."""
    chosen: set[str] = set()
    for file in files:
        present = sorted(set(file.genes) - {""})
        n_cells = np.asarray((file.over(present) > 0).sum(axis=0)).ravel()
        share = recipe.min_cells_symbols if len(present) < recipe.selection else recipe.min_cells
        chosen.update(np.asarray(present)[n_cells >= share * file.counts.shape[0]].tolist())
    return sorted(chosen)


def combine_medians(files: Sequence[CountFile], matrices: Sequence[sparse.csr_matrix]) -> NDArray[np.float64]:
    """Non-zero median of counts per 10,000 of each gene, over files of different depth and gene selection.

    A file that holds a selection of the genes, or shallow cells, has larger medians throughout. So each file's are
    divided by one factor: their median ratio, over the genes common to all files, to the geometric mean of the files.
    The result is the geometric mean over files, weighted by the number of cells that express the gene.
    """
    logs, weights = np.zeros((2, len(files), matrices[0].shape[1]))
    for i, (file, matrix) in enumerate(zip(files, matrices, strict=True)):
        totals = np.asarray(file.counts.sum(axis=1)).ravel()
        per_gene = sparse.csc_matrix(sparse.diags(10_000 / np.maximum(totals, 1)) @ matrix)
        weights[i] = np.diff(per_gene.indptr)
        for gene in np.flatnonzero(weights[i]):
            logs[i, gene] = math.log(np.median(per_gene.data[per_gene.indptr[gene] : per_gene.indptr[gene + 1]]))
    common = (weights >= 10).all(axis=0)
    if len(files) > 1 and common.any():
        factors = np.median(logs[:, common] - logs[:, common].mean(axis=0), axis=1)
        print("depth factors:", {file.name: round(math.exp(f), 3) for file, f in zip(files, factors, strict=True)})
        logs -= factors[:, None]
    return np.exp((logs * weights).sum(axis=0) / weights.sum(axis=0))


def variability(matrix: sparse.csr_matrix, overdispersion: float = 0.01) -> NDArray[np.float64]:
    """Variance of each gene over what its mean and the depth of the cells explain (analytic Pearson residuals)."""
    counts = matrix.toarray()
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    residuals = (counts - expected) / np.sqrt(np.maximum(expected + overdispersion * expected**2, 1e-12))
    return np.clip(residuals, None, math.sqrt(len(counts))).var(axis=0)


@dataclass(frozen=True)
class CellSampler:
    """Draws cells, thins them, takes genes away, ranks the rest, and packs cells of like length into batches."""

    matrices: Sequence[sparse.csr_matrix]
    """Counts of each file over the vocabulary."""
    in_panel: NDArray[np.bool_]
    """Genes of the smallest panel, the file that measures the fewest."""
    encoder: RankEncoder
    recipe: Recipe
    rng: np.random.Generator

    def batches(self, pool_size: int = 256) -> Iterator[tuple[list[NDArray[np.int32]], list[int]]]:
        """Yield token sequences and the file of each, for ever."""
        first_cell = np.cumsum([0, *(matrix.shape[0] for matrix in self.matrices)])
        while True:
            files = np.searchsorted(first_cell, self.rng.integers(first_cell[-1], size=pool_size), "right") - 1
            rows = [self._draw(int(file)) for file in files]
            lengths = np.array([len(genes) for genes, _ in rows])
            indptr = np.concatenate([[0], np.cumsum(lengths)])
            indices = np.concatenate([genes for genes, _ in rows]).astype(np.int32)
            data = np.concatenate([counts for _, counts in rows])
            block = self.encoder(CountBlock(0, indptr, indices, data, np.ones(pool_size)))
            cells = np.split(block.tokens, block.offsets[1:-1])
            batches: list[list[int]] = [[]]
            for i in np.argsort(lengths, kind="stable").tolist():
                if (len(batches[-1]) + 1) * len(cells[i]) > self.recipe.batch_tokens:
                    batches.append([])
                batches[-1].append(i)
            for j in self.rng.permutation(len(batches)).tolist():
                yield [cells[i] for i in batches[j]], [int(files[i]) for i in batches[j]]

    def _draw(self, file: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        matrix, recipe, rng = self.matrices[file], self.recipe, self.rng
        panel = self.in_panel if rng.random() < recipe.shared_panel else np.ones_like(self.in_panel)
        longest = int(rng.choice(recipe.lengths, p=recipe.length_odds))
        while True:
            row = rng.integers(matrix.shape[0])
            part = slice(matrix.indptr[row], matrix.indptr[row + 1])
            genes, counts = matrix.indices[part], matrix.data[part]
            if rng.random() < 0.5:
                counts = rng.binomial(counts.astype(np.int64), recipe.thin ** rng.random()).astype(np.float64)
            keep = (counts > 0) & panel[genes]
            share = rng.uniform(recipe.panel, 1) if rng.random() < 0.5 else 1.0
            if longest < max(recipe.lengths):  # short cells are random panels; only the longest are cut by rank
                share = min(share, rng.uniform(0.6, 1) * longest / max(int(keep.sum()), 1))
            keep &= rng.random(len(genes)) < share
            if keep.sum() >= 20:
                return genes[keep], counts[keep]


class Corruption:
    """Chooses the genes to predict and what the model sees in their place.

    Of the chosen genes 80 % are masked, 10 % replaced by a random gene and 10 % left. In ``foreign_odds`` of the cells
    within the smallest panel, whatever their file, more are replaced by genes from outside it. So how many such genes
    a cell has tells nothing about its kind, and what the model puts in their place is read off the rest of the cell.
    Each file has its own gene frequencies added to the output while training: hidden states need not carry the file.
    """

    def __init__(self, matrices: Sequence[sparse.csr_matrix], in_panel: NDArray[np.bool_], recipe: Recipe) -> None:
        self.recipe = recipe
        detected = np.array([np.asarray((matrix > 0).sum(axis=0)).ravel() for matrix in matrices], dtype=float)
        self.frequency = (detected / detected.sum()).sum(axis=0)
        shares = detected / detected.sum(axis=1, keepdims=True) + 1e-6
        self.file_bias = torch.from_numpy(np.log(shares) - np.log(self.frequency + 1e-6)).float()
        self.odds = np.full(len(in_panel), recipe.candidates[1])
        for matrix in matrices:
            order = np.argsort(-variability(matrix), kind="stable")
            self.odds[order[: recipe.n_variable]] = recipe.candidates[0]
        share = np.where(in_panel, 0, self.frequency) ** 0.75
        self.outside = np.concatenate([np.zeros(FIRST_GENE, bool), ~in_panel])
        self.foreign = np.cumsum(share / max(share.sum(), 1e-12))

    def __call__(
        self, cells: list[NDArray[np.int32]], files: list[int], foreign_odds: float, rng: np.random.Generator
    ) -> tuple[torch.Tensor, ...]:
        """Give input tokens, positions to predict, files of these, answers among the candidates, and candidates."""
        lengths = [len(cell) for cell in cells]
        tokens = np.concatenate(cells).astype(np.int64)
        is_candidate = np.concatenate([np.zeros(FIRST_GENE, bool), rng.random(len(self.odds)) < self.odds])
        answer = np.cumsum(is_candidate) - 1
        shown, replaced, start = tokens.copy(), np.zeros(len(tokens), bool), 0
        for cell in cells:
            if rng.random() < foreign_odds and self.outside.any() and not self.outside[cell].any():
                here = start + np.flatnonzero(rng.random(len(cell)) < rng.uniform(*self.recipe.foreign_rate))
                drawn = np.searchsorted(self.foreign, rng.random(len(here)) * self.foreign[-1])
                shown[here] = np.minimum(drawn, len(self.foreign) - 1) + FIRST_GENE
                replaced[here] = True
            start += len(cell)
        rate = np.repeat(rng.uniform(*self.recipe.mask_rate, len(cells)), lengths)
        chosen = (rng.random(len(tokens)) < rate) & is_candidate[tokens]
        kind = rng.random(len(tokens))
        shown[chosen & ~replaced & (kind < 0.8)] = MASK
        random = chosen & ~replaced & (kind >= 0.9)
        shown[random] = rng.integers(FIRST_GENE, FIRST_GENE + len(self.odds), int(random.sum()))
        places = np.flatnonzero(chosen)
        arrays = shown, places, np.repeat(files, lengths)[places], answer[tokens[places]], np.flatnonzero(is_candidate)
        return tuple(torch.from_numpy(array) for array in arrays)


def build_network(config: BertConfig, frequency: NDArray[np.float64]) -> Network:
    """Draw the initial weights.

    Linear layers start wider than in BERT (standard deviation 0.5 / √inputs): with 0.02 hardly anything passes through
    the attention of so narrow a network, and learning takes long to begin. The output bias starts at the log
    frequencies of the genes.
    """
    encoder, head = BertEncoder(config, attention="padded"), MaskedLMHead(config)
    with torch.no_grad():
        for module in [*encoder.modules(), *head.modules()]:
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, 0.5 / math.sqrt(module.in_features))
        head.bias[:FIRST_GENE] = -15
        head.bias[FIRST_GENE:] = torch.from_numpy(np.log(frequency + 1e-6))
    return encoder, head


def train(network: Network, sampler: CellSampler, corruption: Corruption, steps: int, save: Save) -> None:
    """Minimise the cross-entropy of the masked genes among the candidates of each step (AdamW, warm-up, cosine)."""
    encoder, head = network
    recipe, rng, (low, high) = sampler.recipe, sampler.rng, sampler.recipe.foreign_from
    parameters = [*encoder.parameters(), *head.parameters()]
    words = encoder.word_embeddings.weight
    fast, slow = recipe.learning_rate
    groups = [
        {"params": [words], "peak": fast, "weight_decay": recipe.weight_decay},
        {
            "params": [p for p in parameters if p.ndim > 1 and p is not words],
            "peak": slow,
            "weight_decay": recipe.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim == 1], "peak": slow, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=slow, betas=(0.9, 0.98), fused=True)
    batches, mean_loss, started = sampler.batches(), math.nan, time.perf_counter()
    for step in range(1, steps + 1):
        done = step / steps
        for group in optimizer.param_groups:
            cosine = 0.05 + 0.475 * (1 + math.cos(math.pi * done))
            group["lr"] = group["peak"] * min(1, step / recipe.warmup) * cosine
        cells, files = next(batches)
        foreign_odds = recipe.foreign_odds * min(1, max(0, (done - low) / (high - low)))
        tokens, positions, file_of, answers, candidates = corruption(cells, files, foreign_odds, rng)
        x = head.norm(F.relu(head.dense(encoder(tokens, [len(cell) for cell in cells])[positions])))
        logits = F.linear(x, words[candidates], head.bias[candidates])
        logits = logits + corruption.file_bias[:, candidates - FIRST_GENE][file_of]
        loss = F.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        mean_loss = loss.item() if math.isnan(mean_loss) else 0.98 * mean_loss + 0.02 * loss.item()
        if step % 100 == 0 or step == steps:
            print(f"step {step} loss {mean_loss:.3f} {time.perf_counter() - started:.0f} s", flush=True)
        if step % 1000 == 0 or step == steps:
            save()


def save_checkpoint(out: Path, description: str, config: BertConfig, vocabulary: Vocabulary, network: Network) -> None:
    """Write a folder that ``scfm.model.load`` takes: weights under their published names, vocabulary, card."""
    encoder, head = network
    out.mkdir(parents=True, exist_ok=True)
    targets = {**encoder_targets(encoder), **head_targets(head), "cls.predictions.bias": head.bias}
    tensors = {name: tensor.detach().to(torch.float16).clone() for name, tensor in targets.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors makes it private
    vocabulary.save(out)
    hashes = {"weights_sha256": sha256(out / "model.safetensors"), "vocabulary_sha256": sha256(*vocabulary_files(out))}
    sizes = {"architecture": config.architecture(), "n_parameters": sum(tensor.numel() for tensor in tensors.values())}
    card = ModelCard(id=out.resolve().name, family="scfm_mini", pooling="mean", max_tokens=config.max_positions)
    card = card.with_(**hashes, **sizes, special_tokens=SPECIAL_TOKENS)
    card.with_(license="BSD-3-Clause", description=description).write(out)


def make_vocabulary(
    genes: list[str], medians: NDArray[np.float64], frequency: NDArray[np.float64], symbols: Names, aliases: Names
) -> Vocabulary:
    """Number the genes after the special tokens; take their symbols, and other names of the most frequent genes."""
    tokens = np.arange(FIRST_GENE, FIRST_GENE + len(genes), dtype=np.int32)
    rank = {genes[i]: place for place, i in enumerate(np.argsort(-frequency, kind="stable").tolist())}
    names = {symbol: gene for symbol, gene in symbols.items() if gene in rank}
    taken = {symbol.upper() for symbol in names}
    other = [(rank[gene], alias) for alias, gene in aliases.items() if gene in rank and alias.upper() not in taken]
    names |= {alias: aliases[alias] for _, alias in sorted(other)[:N_ALIASES]}
    return Vocabulary(np.asarray(genes, dtype=str), tokens, medians, SPECIAL_TOKENS, {}, names)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help=".h5ad files with counts in X")
    parser.add_argument("--symbols", type=Path, nargs="+", default=[], help="pickled symbol → Ensembl dictionaries")
    parser.add_argument("--aliases", type=Path, nargs="+", default=[], help="the same for upper-case other names")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--description", default="", help="one line on the training data, for the card")
    parser.add_argument("--exclude", nargs="*", default=[], help="file names (without suffix) of --data to leave out")
    for name, default in (("--steps", 5000), ("--seed", 0), ("--threads", 1)):
        parser.add_argument(name, type=int, default=default)
    return parser.parse_args()


def main() -> None:
    """Read, train, write."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    rng, recipe = np.random.default_rng(arguments.seed), Recipe()
    symbols, aliases = read_names(arguments.symbols), read_names(arguments.aliases)
    files = [read_counts(path, symbols, aliases) for path in arguments.data if path.stem not in arguments.exclude]
    genes = choose_genes(files, recipe)
    matrices = [file.over(genes) for file in files]
    in_panel = np.isin(genes, min(files, key=lambda file: len(set(file.genes))).genes)
    corruption = Corruption(matrices, in_panel, recipe)
    vocabulary = make_vocabulary(genes, combine_medians(files, matrices), corruption.frequency, symbols, aliases)
    config = BertConfig(vocabulary.size, HIDDEN_SIZE, N_LAYERS, N_HEADS, WIDTH, max(recipe.lengths))
    network = build_network(config, corruption.frequency)
    print(f"{len(genes):,} genes, {sum(p.numel() for part in network for p in part.parameters()):,} parameters")
    ranks = RankEncoder(vocabulary.tokens, vocabulary.median_of_token, config.max_positions, merge=False)
    sampler = CellSampler(matrices, in_panel, ranks, recipe, rng)
    save = partial(save_checkpoint, arguments.out, arguments.description, config, vocabulary, network)
    train(network, sampler, corruption, arguments.steps, save)


if __name__ == "__main__":
    main()

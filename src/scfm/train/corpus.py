"""The genes of a corpus, as a vocabulary for a model that is trained on it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfm._checks import check_least, check_share, typed
from scfm.batch.shuffle import RANGE_ROWS
from scfm.genes import Vocabulary, align, union_of
from scfm.read import JoinedSource, open_counts, paths_of
from scfm.train.cells import Corpus
from scfm.train.medians import GeneMedians

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from scfm._types import CountBlock

__all__ = ["corpus_vocabulary", "read_blocks", "source_weights"]

AT_ONCE = 4 * RANGE_ROWS
"""Cells in memory together."""


@typed
def corpus_vocabulary(
    files: str | Path | Sequence[str | Path],
    special_tokens: Sequence[str] = (),
    *,
    names: Vocabulary | None = None,
    layer: str | None = None,
    gene_key: str | None = None,
    species: str = "human",
    min_cells: int = 10,
    min_share: float = 0.002,
    min_sources: int = 1,
    power: float = 0.5,
    means: bool = False,
    exact_values: int = 50_000_000,
) -> tuple[Vocabulary, pd.DataFrame]:
    """Make a vocabulary of the genes of some files, with the median of each, in one pass over the counts.

    Genes are told by Ensembl id; files may measure different ones. Counts of columns of one gene are added, as when a
    model is run. The median of a gene is that of its counts per 10,000 of the cell, over the cells that express it
    (Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9), with a weight for the cells of each file.

    Parameters
    ----------
    files
        Files with counts, patterns such as ``"atlas/*.h5ad"``, or stores.
    special_tokens
        Names of the tokens that are no genes, which get the first ids.
    names
        Vocabulary whose symbols and other ids of genes are understood, and kept in the result.
    layer, gene_key
        Where counts and ids of genes are in the files, as in :func:`scfm.tl.embed`.
    species
        Species of the genes.
    min_cells, min_share, min_sources
        A gene is taken if so many cells of all files express it, this share of the cells of at least one file, and cells
        of so many files.
    power
        A file weighs as its number of cells to this power: 1 by cells, 0 all alike.
    means
        Keep the weighted mean of the same values of each gene, too, as the column ``mean`` of the vocabulary.
    exact_values
        Counts up to which medians are exact; beyond, they come from a sketch (:class:`scfm.train.medians.GeneMedians`).

    Returns
    -------
    The vocabulary, with genes in the order of their ids; and a table of the sources: for each file ``cells``, ``genes`` of
    it that are in the vocabulary, and the sum of its ``counts``; the index are the names of the files.

    Raises
    ------
    ValueError
        If a file has no cells, other values than counts, or no gene that is known by an id or by ``names``; if no gene
        is expressed by enough cells; or if a number is out of bounds.
    TypeError, KeyError, OSError
        As :func:`scfm.tl.embed`, if a file cannot be read.
    """
    for name, value in (("min_cells", min_cells), ("min_sources", min_sources)):
        check_least(name, value)
    check_share("min_share", min_share)
    check_share("power", power)
    open_file = partial(open_counts, layer=layer)
    paths = paths_of(files)
    with JoinedSource(paths, lambda source: source.var, open_file) as opened:
        everything = union_of(opened.facts, names=names, gene_key=gene_key, species=species)
    corpus = Corpus(paths, everything, partial(align, vocabulary=everything, gene_key=gene_key), open_file)
    weights = source_weights(corpus, power)
    n = len(everything.genes)
    medians = GeneMedians(n, exact_values)
    n_cells, n_sources = np.zeros((2, n), np.int64)
    share, sums, total = np.zeros((3, n))
    counts = []
    for number, (size, weight) in enumerate(zip(corpus.sizes, weights.tolist(), strict=True)):
        expressed, counted = np.zeros(n, np.int64), 0
        for block in read_blocks(corpus, number):
            depth = np.repeat(block.totals, np.diff(block.indptr))
            values = block.data / np.maximum(depth, 1) * 10_000
            medians.add(block.indices, values, weight)
            sums += weight * np.bincount(block.indices, values, minlength=n)
            expressed += np.bincount(block.indices, minlength=n)
            counted += int(block.totals.sum())
        n_cells += expressed
        n_sources += expressed > 0
        total += weight * expressed
        share = np.maximum(share, expressed / size)
        counts.append(counted)
    kept = (n_cells >= min_cells) & (share >= min_share) & (n_sources >= min_sources)
    if not kept.any():
        msg = (
            f"None of the {n:,} genes is expressed by {min_cells} cells of all files, by the share {min_share} of one file, "
            f"and in {min_sources} files; lower min_cells, min_share or min_sources."
        )
        raise ValueError(msg)
    columns = {"mean": sums[kept] / total[kept]} if means else {}
    vocabulary = _selected(everything, kept, medians.result()[kept], special_tokens, columns)
    n_genes = [int(panel[kept].sum()) for panel in corpus.panels]
    table = {"cells": corpus.sizes, "genes": n_genes, "counts": counts}
    return vocabulary, pd.DataFrame(table, index=pd.Index(corpus.names, name="source"))


def source_weights(corpus: Corpus, power: float) -> NDArray[np.float64]:
    """Weight of a cell of each file, so that a file weighs as its number of cells to a power; the least is 1."""
    weights = np.array(corpus.sizes, float) ** (power - 1)
    return weights / weights.min()


def read_blocks(corpus: Corpus, number: int) -> Iterator[CountBlock]:
    """Counts of a file by the position of genes in the vocabulary, a few thousand cells at a time."""
    size = corpus.sizes[number]
    for start in range(0, size, AT_ONCE):
        yield corpus.read(number, [(start, min(start + AT_ONCE, size))])


def _selected(
    everything: Vocabulary,
    kept: NDArray[np.bool_],
    medians: NDArray[np.float64],
    special_tokens: Sequence[str],
    columns: dict[str, NDArray[np.float64]],
) -> Vocabulary:
    """Some of the genes, with their names, and tokens behind the special ones."""
    genes = everything.genes[kept].tolist()
    known = set(genes)
    mapping, symbols = (
        {name: gene for name, gene in names.items() if gene in known}
        for names in (everything.mapping, everything.symbols)
    )
    plain = Vocabulary.of_names(genes, special_tokens, species=everything.species)
    return Vocabulary(
        plain.genes, plain.tokens, medians, plain.special_tokens, mapping, symbols, everything.species, columns
    )

"""Which genes move cells of one state towards another when they are deleted, and how far that can be trusted.

Prints Markdown: the genes with the smallest p-values, beside their difference in expression between the states and the
share of the batches that agree; and how well the effects of one half of the cells predict those of the other. Draws a
volcano and bars into ``--out``::

    python scripts/evaluate_perturbation.py --data cell_lines.h5ad --out pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy.stats import spearmanr

import scfm

MIN_CELLS = 5
N_SHOWN = 12


def expression_difference(adata: ad.AnnData, key: str, start: str, goal: str) -> pd.Series:
    """Mean of log-normalised counts in the goal minus that in the start."""
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=10_000)
    sc.pp.log1p(logged)
    means = {name: np.asarray(logged[logged.obs[key] == name].X.mean(axis=0)).ravel() for name in (start, goal)}
    return pd.Series(means[goal] - means[start], adata.var_names)


def mean_effects(raw: pd.DataFrame) -> pd.Series:
    """Mean effect of each gene that enough cells have."""
    effects = raw.groupby("names")["effect"]
    return effects.mean()[effects.size() >= MIN_CELLS]


def screen(adata: ad.AnnData, args: argparse.Namespace) -> None:
    """Delete every gene of some cells of the start."""
    states = {"states_key": args.states_key, "start": args.start, "goal": args.goal}
    limits = {"n_cells": args.n_cells, "max_tokens": args.max_tokens}
    scfm.tl.perturb(adata, args.model, random_states=200, **limits, **states)


def report(adata: ad.AnnData, args: argparse.Namespace) -> None:
    """Print the tables."""
    symbols = scfm.model.load(args.model).vocabulary.symbol_of
    raw = scfm.get.perturb_df(adata, table="raw")
    raw = raw.assign(batch=adata.obs[args.batch_key].astype(str).reindex(raw["cell"]).to_numpy())
    significant = {}
    for test in ("random_states", "ranksum", "paired"):
        scfm.tl.perturb_stats(adata, test=test)
        significant[test] = int((scfm.get.perturb_df(adata)["pvals_adj"] < 0.05).sum())
    table = scfm.get.perturb_df(adata).set_index("names")
    table["expression"] = expression_difference(adata, args.states_key, args.start, args.goal)[table.index]
    by_batch = raw.groupby(["names", "batch"])["effect"].mean().gt(0).groupby("names")
    table["batches"] = by_batch.sum().astype(str) + " of " + by_batch.size().astype(str)
    half = raw["cell"].isin(np.random.default_rng(0).permutation(raw["cell"].unique())[::2])
    halves = pd.concat([mean_effects(raw[half]), mean_effects(raw[~half])], axis=1).dropna()
    enough = table[table["n_cells"] >= MIN_CELLS]
    print(f"{raw['cell'].nunique()} cells of {args.start}, {len(raw):,} deletions of {len(table):,} genes\n")
    print("| | |\n| --- | --- |")
    for test, n in significant.items():
        print(f"| genes below a false discovery rate of 5 %, `{test}` | {n:,} |")
    print(f"| genes in at least {MIN_CELLS} cells | {len(enough):,} |")
    print(
        f"| Spearman's ρ of mean effects, two halves of the cells ({len(halves):,} genes) | "
        f"{spearmanr(halves.iloc[:, 0], halves.iloc[:, 1]).statistic:.2f} |"
    )
    print(
        "| Spearman's ρ of mean effect and difference in expression (goal − start) | "
        f"{spearmanr(enough['effect'], enough['expression']).statistic:.2f} |\n"
    )
    print("| gene | effect × 1,000 | cells | adjusted p | expression, goal − start | batches towards |")
    print("| --- | --- | --- | --- | --- | --- |")
    for gene, row in table.head(N_SHOWN).iterrows():
        print(
            f"| {symbols.get(gene, gene)} | {1000 * row['effect']:+.2f} | {row['n_cells']} | {row['pvals_adj']:.1e} | "
            f"{row['expression']:+.2f} | {row['batches']} |"
        )


def main() -> None:
    """Read the arguments, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="scfm-mini")
    parser.add_argument("--states-key", default="cell_line")
    parser.add_argument("--start", default="H1975")
    parser.add_argument("--goal", default="HCC827")
    parser.add_argument("--batch-key", default="batch")
    parser.add_argument("--n-cells", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=512, help="genes of a cell, the highest ones")
    parser.add_argument("--out", type=Path, help="folder for the pictures")
    args = parser.parse_args()
    adata = ad.read_h5ad(args.data)
    screen(adata, args)
    report(adata, args)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        for kind in ("volcano", "bar"):
            axes = scfm.pl.perturb(adata, kind=kind, show=False)
            axes.figure.savefig(args.out / f"perturb_{kind}.png", bbox_inches="tight", dpi=120)


if __name__ == "__main__":
    main()

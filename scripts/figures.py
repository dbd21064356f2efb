"""Print the figures of scfm-mini that guides give and no command prints, as Markdown.

The code of ``docs/guide/marker_genes.md`` and ``drug_response.md`` is run as it stands there::

    python scripts/figures.py
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

import scfm

GUIDE = Path(__file__).parents[1] / "docs" / "guide"
N_REFERENCE = 500
N_DRAWS = 5
METHODS: dict[str, dict[str, Any]] = {
    "kNN, cosine": {"metric": "cosine"},
    "kNN, whitened": {},
    "logistic": {"method": "logistic"},
}


def run(page: str, *starts: str) -> dict[str, Any]:
    """Run the blocks of code of a page that start so, one after the other, and give their names."""
    blocks = re.findall(r"```python\n(.*?)```", (GUIDE / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"scfm": scfm}
    for start in starts:
        exec(next(block for block in blocks if block.startswith(start)), names)
    return names


def panels(sizes: tuple[int, ...]) -> pd.DataFrame:
    """Accuracy for cells of which so many genes were measured, from cells with all genes; means over draws of genes."""
    cells, model = scfm.datasets.pbmc68k(), scfm.model.load("scfm-mini")
    order = np.random.default_rng(0).permutation(cells.n_obs)
    reference, rows = cells[order[:N_REFERENCE]].copy(), []
    scfm.tl.embed(reference, model, key_added="whole")
    for n_genes in sizes:
        for seed in range(N_DRAWS if n_genes < cells.n_vars else 1):
            genes = np.random.default_rng(seed).permutation(cells.n_vars)[:n_genes]
            query = cells[order[N_REFERENCE:], genes].copy()
            scfm.tl.embed(query, model, key_added="whole")
            query.obsm["shared"] = query.obsm["whole"]  # the reference has all of its genes
            scfm.tl.embed(reference, model, key_added="shared", shared_with=query)
            row: dict[str, float] = {"genes": n_genes, "matched": scfm.pp.match_genes(query, model).matched}
            for rep, suffix in (("whole", ""), ("shared", ", shared")):
                for name, how in METHODS.items():
                    scfm.tl.annotate(query, reference, labels_key="bulk_labels", use_rep=rep, **how)
                    right = query.obs["annotation"].astype(str) == query.obs["bulk_labels"].astype(str)
                    row[name + suffix] = float(right.mean())
            rows.append(row)
    return pd.DataFrame(rows).groupby("genes").mean().sort_index(ascending=False)


def drug_response() -> dict[str, float]:
    """Correlations of the made-up screen, and of one whose values are shuffled among the lines."""
    names = run("drug_response", "import numpy")
    screen, rng = names["screen"], np.random.default_rng(0)
    found = {"": screen.uns["drug_response"]}
    screen.obsm["ic50"] = screen.obsm["ic50"].apply(lambda drug: rng.permutation(drug))
    scfm.tl.drug_response(screen, "X_scfm_mini", split="line")
    found["shuffled, "] = screen.uns["drug_response"]
    return {
        f"{kind}{name}": stats[name] for kind, stats in found.items() for name in ("pearson", "pearson_within_drugs")
    }


def show(title: str, rows: pd.DataFrame) -> None:
    """Print a table."""
    print(f"\n{title}\n\n| {' | '.join(['', *rows.columns])} |\n|{' --- |' * (rows.shape[1] + 1)}")
    for name, values in rows.iterrows():
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |")


def main() -> None:
    """Compute and print, page by page."""
    mpl.use("Agg")
    scfm.settings.progress = False
    warnings.filterwarnings("ignore", message=".*based on different genes")
    show("annotation.md, genes of the query", panels((765, 500, 250)))
    names = run("marker_genes", "adata = ", "markers = ")
    auroc = pd.Series(names["auroc"], names["labels"].to_numpy()).dropna()
    means = auroc.groupby(level=0).mean()
    show("marker_genes.md, AUROC", pd.DataFrame({"mean": {"all cells": auroc.mean(), **means}}))
    show("drug_response.md", pd.DataFrame({"value": drug_response()}))


if __name__ == "__main__":
    main()

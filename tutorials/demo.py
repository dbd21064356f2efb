"""Embed 700 real blood cells with the bundled model, offline: ``python tutorials/demo.py [folder]``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import scanpy as sc

import scfm


def main(folder: str = "demo") -> None:
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)

    adata = scfm.datasets.pbmc68k()
    print(f"data        {adata.n_obs} cells x {adata.n_vars} genes, {adata.obs['bulk_labels'].nunique()} cell types")
    print(f"genes       {scfm.pp.match_genes(adata, 'scfm-mini')}")

    start = time.perf_counter()
    scfm.tl.embed(adata, model="scfm-mini")
    seconds = time.perf_counter() - start
    print(f"embedding   obsm['X_scfm_mini'], {adata.obsm['X_scfm_mini'].shape}, in {seconds:.1f} s with start-up")

    sc.pp.neighbors(adata, use_rep="X_scfm_mini")
    sc.tl.umap(adata)
    figure = sc.pl.umap(adata, color="bulk_labels", title="scfm-mini", show=False, return_fig=True)
    figure.savefig(out / "umap.png", dpi=150, bbox_inches="tight")
    adata.write_h5ad(out / "pbmc68k.h5ad")
    print(f"wrote       {out / 'pbmc68k.h5ad'}, with the settings of the run in uns['scfm_mini']['params']")
    print(f"wrote       {out / 'umap.png'}")


if __name__ == "__main__":
    main(*sys.argv[1:])

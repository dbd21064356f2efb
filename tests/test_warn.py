"""Warnings name the line of the caller, whichever way the package was entered."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import mudata as md
import numpy as np
import pytest

import scfm
from scfm._warn import warn
from scfm.batch import prefetch
from scfm.testing import write_transcriptformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import anndata as ad


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> scfm.model.FoundationModel:
    return scfm.model.load(write_transcriptformer(tmp_path_factory.mktemp("model")))


@pytest.fixture
def adata() -> ad.AnnData:
    """Values that are no counts, of few genes that the models know, in one cell without any: three warnings."""
    adata = scfm.datasets.pbmc68k()[:4, :300].copy()
    adata.X = np.full(adata.shape, 0.5, np.float32)
    del adata.raw
    adata.var_names = [f"unknown{i}" if i > 20 else name for i, name in enumerate(adata.var_names)]
    return adata


CALLS: dict[str, Callable[[ad.AnnData, str], Any]] = {
    "tl.embed": lambda adata, path: scfm.tl.embed(adata, "scfm-mini"),
    "model.embed": lambda adata, path: scfm.model.load("scfm-mini").embed(adata),
    "the accessor": lambda adata, path: adata.scfm.embed("scfm-mini"),
    "MuData": lambda adata, path: md.MuData({"rna": adata}).scfm.embed("scfm-mini", modality="rna"),
    "tl.marker_genes": lambda adata, path: scfm.tl.marker_genes(
        adata, "scfm-mini", n_cells=1, genes=adata.var_names[:1]
    ),
    "tl.gene_embeddings": lambda adata, path: scfm.tl.gene_embeddings(adata, "scfm-mini"),
    "pp.match_genes": lambda adata, path: scfm.pp.match_genes(adata, "scfm-mini"),
    "tl.embed_store": lambda adata, path: scfm.tl.embed_store(f"{path}/a.h5ad", "scfm-mini", f"{path}/out.zarr"),
    "several files": lambda adata, path: scfm.tl.embed_store([f"{path}/a.h5ad"] * 2, "scfm-mini", f"{path}/out.zarr"),
}


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("name", CALLS)
def test_verbs(name: str, adata: ad.AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    call = CALLS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(adata, str(tmp_path))
    ours = [one for one in caught if issubclass(one.category, UserWarning) and "model" in str(one.message)]
    assert ours
    wanted = (__file__, inspect.getsourcelines(call)[1])
    assert {(one.filename, one.lineno) for one in ours} == {wanted}


def test_cells_without_genes(model: scfm.model.FoundationModel) -> None:
    genes = model.vocabulary.genes[:5]
    adata = scfm.datasets.synthetic(3, 5, genes_per_cell=3, genes=genes)
    adata.X = adata.X.toarray()
    adata.X[0] = 0
    with pytest.warns(UserWarning, match="1 of 3 cells hold no gene") as caught:
        scfm.tl.score(adata, model)
    assert caught[0].filename == __file__


def test_threads_of_the_package() -> None:
    def warning() -> Iterator[int]:
        # as if the package did it
        exec(compile("warn('in a thread')", scfm.__file__, "exec"), {"warn": warn})
        yield 1

    with pytest.warns(UserWarning, match="in a thread") as caught:
        list(prefetch(prefetch(warning())))
    assert {one.filename for one in caught} == {__file__}
    assert caught[0].lineno == inspect.currentframe().f_lineno - 2

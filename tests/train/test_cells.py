"""Where cells come from: files in memory or read in stretches, in an order that the seed decides."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest

from scfm.genes import Vocabulary, align
from scfm.read import open_counts
from scfm.train import cells
from scfm.train.cells import Corpus, Draws, Stream

from .conftest import GENES, write_cells

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from scfm._types import CountBlock

VOCABULARY = Vocabulary.of_names(GENES, ["<pad>", "<mask>"])


def corpus_of(*files: Path | str) -> Corpus:
    return Corpus(files, VOCABULARY, partial(align, vocabulary=VOCABULARY), open_counts)


def dense(block: CountBlock) -> NDArray[np.float64]:
    values = np.zeros((block.n_cells, len(GENES)))
    values[np.repeat(np.arange(block.n_cells), np.diff(block.indptr)), block.indices] = block.data
    return values


def test_files_are_read_by_the_genes_of_the_vocabulary(corpus: Path) -> None:
    both = corpus_of(corpus / "*.h5ad")
    assert both.names == ["one", "two"]
    assert both.sizes == [80, 40]
    assert both.panels.sum(axis=1).tolist() == [50, 40]
    expected = ad.read_h5ad(corpus / "two.h5ad").X.toarray()
    block = both.read(1, [(3, 5), (30, 40)])
    np.testing.assert_array_equal(dense(block)[:, 20:], np.concatenate([expected[3:5], expected[30:40]]))
    assert block.data.dtype == np.uint8


def test_columns_of_one_gene_are_added(tmp_path: Path) -> None:
    adata = ad.AnnData(np.array([[1, 2, 3], [0, 4, 0]], np.float32))
    adata.var_names = [GENES[3], f"{GENES[3]}.2", GENES[0]]
    adata.write_h5ad(tmp_path / "a.h5ad")
    found = dense(corpus_of(tmp_path / "a.h5ad").read(0, [(0, 2)]))
    assert found[:, [0, 3]].tolist() == [[3, 3], [0, 4]]
    assert found.sum() == 10


@pytest.mark.filterwarnings("ignore:X of .* holds mostly whole numbers")
@pytest.mark.parametrize("value", [0.5, -1.0, 2.0**40])
def test_other_values_than_counts(tmp_path: Path, value: float) -> None:
    counts = np.ones((400, 60), np.float64)
    counts[300, 7] = value
    adata = ad.AnnData(counts)
    adata.var_names = GENES
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match="Cell 300 holds .* Models are trained on counts|holds -1 for cell '300'"):
        corpus_of(tmp_path / "a.h5ad").read(0, [(0, 400)])


def test_files_without_cells_and_of_one_name(corpus: Path, tmp_path: Path) -> None:
    adata = ad.read_h5ad(corpus / "one.h5ad")
    adata[:0].write_h5ad(tmp_path / "none.h5ad")
    with pytest.raises(ValueError, match="no cells"):
        corpus_of(tmp_path / "none.h5ad")
    adata.write_h5ad(tmp_path / "one.h5ad")
    with pytest.raises(ValueError, match="Several files are named one"):
        corpus_of(tmp_path / "one.h5ad", corpus / "one.h5ad")


@pytest.fixture
def short_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "RANGE_ROWS", 8)


@pytest.mark.usefixtures("short_ranges")
@pytest.mark.parametrize("held", [80, 30, 1])
def test_every_epoch_has_every_cell_once(corpus: Path, held: int) -> None:
    """Whether the file is in memory, or stretches of it, the counts are those of the cells."""
    rows = np.setdiff1d(np.arange(80), [3, 17, 64])
    stream = Stream(corpus_of(corpus / "one.h5ad"), 0, rows, held, seed=5)
    counts = ad.read_h5ad(corpus / "one.h5ad").X.toarray()
    orders = []
    for epoch in range(3):
        block, found = stream.take(np.arange(epoch * 77, (epoch + 1) * 77))
        np.testing.assert_array_equal(np.sort(found), rows)
        np.testing.assert_array_equal(dense(block)[:, :50], counts[found])
        orders.append(found.tolist())
    assert orders[0] != orders[1] != orders[2]
    stream.close()
    stream = Stream(corpus_of(corpus / "one.h5ad"), 0, rows, held, seed=5)
    _, again = stream.take(np.arange(70, 90))
    assert again.tolist() == (orders[0] + orders[1])[70:90]
    stream.close()


@pytest.mark.usefixtures("short_ranges")
def test_only_stretches_of_large_files_are_in_memory(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = corpus_of(corpus / "one.h5ad")
    read: list[int] = []
    original = Corpus.read

    def counted(self: Corpus, number: int, spans: list[tuple[int, int]]) -> CountBlock:
        read.append(sum(stop - start for start, stop in spans))
        return original(self, number, spans)

    monkeypatch.setattr(Corpus, "read", counted)
    stream = Stream(whole, 0, np.arange(80), 32, seed=0)
    for place in range(80):
        stream.take(np.array([place]))
    stream.close()
    assert max(read) == 16  # half of what may be held: the next stretch is read meanwhile
    assert 80 <= sum(read) <= 96


def test_files_are_drawn_by_their_weights(corpus: Path) -> None:
    both = corpus_of(corpus / "*.h5ad")
    for power, share in ((0.0, 0.5), (1.0, 2 / 3), (0.5, 2**0.5 / (1 + 2**0.5))):
        draws = Draws([Stream(both, n, np.arange(size), 100, 0) for n, size in enumerate(both.sizes)], power, 1, 0)
        files, places = draws(0, 4096)
        assert (files == 0).mean() == pytest.approx(share, abs=2e-4)
        for file in (0, 1):
            np.testing.assert_array_equal(places[files == file], np.arange((files == file).sum()))
        np.testing.assert_array_equal(draws(4000, 4200)[0][:96], files[4000:])
        later, following = draws(4096, 8192)
        assert following[later == 1][0] == (files == 1).sum()
        assert not np.array_equal(files, later)


def test_cells_of_a_file_are_drawn_together(corpus: Path) -> None:
    both = corpus_of(corpus / "*.h5ad")
    streams = [Stream(both, n, np.arange(size), 100, 0) for n, size in enumerate(both.sizes)]
    files, _ = Draws(streams, 0.5, 6, 0)(0, 600)
    assert (files.reshape(-1, 6) == files[::6, None]).all()
    assert len(set(files.tolist())) == 2


def test_draws_come_with_their_counts(corpus: Path) -> None:
    both = corpus_of(corpus / "*.h5ad")
    streams = [Stream(both, n, np.arange(size), 100, 0) for n, size in enumerate(both.sizes)]
    draws = Draws(streams, 0.0, 1, 0)
    files, places = draws(10, 40)
    block, rows = draws.cells(files, places)
    read = [ad.read_h5ad(corpus / f"{name}.h5ad").X.toarray() for name in ("one", "two")]
    for cell, (file, row) in enumerate(zip(files.tolist(), rows.tolist(), strict=True)):
        own = slice(0, 50) if file == 0 else slice(20, 60)
        np.testing.assert_array_equal(dense(block)[cell, own], read[file][row])


def test_labels_of_several_files(corpus: Path, tmp_path: Path) -> None:
    adata = ad.read_h5ad(write_cells(tmp_path / "three.h5ad", 20, GENES, 3))
    adata.obs["cell_type"] = ["unknown"] * 10 + ["new"] * 10
    adata.write_h5ad(tmp_path / "three.h5ad")
    del adata.obs["cell_type"]
    adata.write_h5ad(tmp_path / "four.h5ad")
    codes, names = corpus_of(corpus / "one.h5ad", tmp_path / "three.h5ad", tmp_path / "four.h5ad").labels("cell_type")
    assert names == ["kind 0", "kind 1", "kind 2", "new"]
    expected = [int(kind[-1]) for kind in ad.read_h5ad(corpus / "one.h5ad").obs["cell_type"]]
    assert codes[0].tolist() == expected
    assert codes[1].tolist() == [-1] * 10 + [3] * 10
    assert codes[2].tolist() == [-1] * 20
    with pytest.raises(KeyError, match="labels_key='no' is a column with labels in none of the 1 files"):
        corpus_of(corpus / "one.h5ad").labels("no")

"""What all sources have in common, of whatever their cells are stored in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scfm.read import JoinedSource, open_counts, open_tokenized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import anndata as ad

    from scfm.read import Source

pytestmark = pytest.mark.filterwarnings("ignore:X holds log-transformed values; reading raw")


@pytest.fixture
def files(build: Callable[..., ad.AnnData], tmp_path: Path) -> list[Path]:
    """Two files of 23 and 5 cells, of which the second has counts in raw only and other columns of ``obs``."""
    first, second = build(), build()[4:9].copy()
    first.obs["donor"] = "d1"
    second.X = second.X * 0.5
    second.obs["extra"] = 1
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for adata, path in zip((first, second), paths, strict=True):
        adata.write_h5ad(path)
    return paths


@pytest.fixture(params=["counts", "joined", "tokenized"])
def source(request: pytest.FixtureRequest, files: list[Path], tmp_path: Path) -> Iterator[Source[Any]]:
    if request.param == "counts":
        found: Any = open_counts(files[0])
    elif request.param == "joined":
        found = JoinedSource(files, lambda source: source.n_vars, open_counts)
    else:
        table = pa.table({"input_ids": [[5], [6, 7], []], "cell_id": ["x", "y", "z"], "donor": ["d", "d", "e"]})
        pq.write_table(table, tmp_path / "cells.parquet")
        found = open_tokenized(tmp_path / "cells.parquet")
    with found:
        yield found


def test_every_source_tells_of_its_cells(source: Source[Any]) -> None:
    names = list(source.names(0, source.n_obs))
    assert len(names) == source.n_obs
    assert list(source.obs_names) == list(source.obs.index) == names
    assert list(source.names(1, 3)) == names[1:3]
    assert source.obs_columns
    assert list(source.obs.columns) == source.obs_columns
    for name in source.obs_columns:
        assert list(source.column(name)) == list(source.obs[name])
    with pytest.raises(KeyError, match="nothing"):
        source.column("nothing")


def test_every_source_gives_its_cells_in_order(source: Source[Any]) -> None:
    row = 1
    for block in source.blocks(2, start=1):
        assert block.row0 == row
        assert 1 <= block.n_cells <= 2
        row += block.n_cells
    assert row == source.n_obs
    sizes = [block.n_cells for block in source.blocks(max_nnz=1)]
    assert len(sizes) > 1
    assert sum(sizes) == source.n_obs


def test_several_files_are_named_and_have_the_columns_that_all_have(files: list[Path]) -> None:
    with JoinedSource(files, lambda source: source.matrix, open_counts) as source:
        assert [tuple(file) for file in source.files] == [(str(files[0]), 23), (str(files[1]), 5)]
        assert source.facts == ["X", "raw.X"]
        assert source.matrix == "X, raw.X"
        assert source.obs_columns == ["batch"]
        with pytest.raises(KeyError, match="donor"):
            source.column("donor")


def test_one_file_is_not_several(files: list[Path]) -> None:
    with open_counts(files[0]) as source:
        assert not source.files
        assert source.matrix == "X"

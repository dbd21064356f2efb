"""Datasets that are tokenised already, in real files of every layout that pyarrow writes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scfm.read import tokenized
from scfm.read.tokenized import TokenizedSource, is_tokenized, open_tokenized

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Write = "Callable[[Any, Path], Path]"
LARGEST = np.iinfo(np.int32).max


def draw_cells(n_cells: int = 2500, seed: int = 0) -> list[list[int]]:
    """Sequences that start with ``<cls>``; some are empty, also the first, the last and two in a row."""
    rng = np.random.default_rng(seed)
    cells = [[25_426, *rng.integers(2, 25_426, n).tolist()] for n in rng.integers(0, 12, n_cells)]
    for row in (0, 7, 8, n_cells - 1):
        cells[row] = []
    return cells


CELLS = draw_cells()


def table_of(cells: list[list[int]], kind: Any = None, name: str = "input_ids", **columns: Any) -> Any:
    return pa.table({name: pa.array(cells, kind or pa.list_(pa.int64())), **columns})


def stream(table: Any, path: Path, rows: int | None = 1000, compression: str | None = None) -> Path:
    """As datasets writes: an IPC stream of batches of 1,000 rows."""
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def ipc_file(table: Any, path: Path, rows: int | None = 700, compression: str | None = None) -> Path:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def parquet(table: Any, path: Path, rows: int = 900, compression: str = "snappy") -> Path:
    pq.write_table(table, path, row_group_size=rows, compression=compression)
    return path


def save_to_disk(table: Any, folder: Path, n_files: int = 1) -> Path:
    """The folder that ``datasets`` 2 to 5 write."""
    folder.mkdir()
    size = -(-len(table) // n_files)
    names = [f"data-{i:05d}-of-{n_files:05d}.arrow" for i in range(n_files)]
    for i, name in enumerate(names):
        stream(table.slice(i * size, size), folder / name)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0123", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


WRITERS: dict[str, Any] = {
    "parquet": (parquet, "cells.parquet"),
    "stream": (stream, "cells.arrow"),
    "file": (ipc_file, "cells.arrow"),
}


@pytest.fixture(params=list(WRITERS))
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    write, name = WRITERS[request.param]
    return lambda table: write(table, tmp_path / name)


def cells_in(source: TokenizedSource, *args: Any, **kwargs: Any) -> list[list[int]]:
    """All cells of all blocks, after a look at the blocks themselves."""
    found, row = [], kwargs.get("start", 0)
    for block in source.blocks(*args, **kwargs):
        assert (block.tokens.dtype, block.offsets.dtype, block.n_genes.dtype) == (np.int32, np.int64, np.int64)
        assert block.row0 == row
        assert block.values is None
        assert block.offsets[0] == 0
        assert block.offsets[-1] == len(block.tokens)
        np.testing.assert_array_equal(block.n_genes, np.diff(block.offsets))
        row += block.n_cells
        found += [cell.tolist() for cell in np.split(block.tokens, block.offsets[1:-1])]
    return found


@pytest.mark.parametrize("rows", [1, 333, 1024, 10_000])
def test_all_cells(written: Callable[[Any], Path], rows: int) -> None:
    with open_tokenized(written(table_of(CELLS))) as source:
        assert source.n_obs == len(CELLS)
        assert source.matrix == "input_ids"
        assert cells_in(source, rows) == CELLS
        assert max(block.n_cells for block in source.blocks(rows)) == min(rows, len(CELLS))


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.int16()),
        pa.list_(pa.uint16()),
        pa.list_(pa.int32()),
        pa.list_(pa.uint32()),
        pa.list_(pa.uint64()),
        pa.large_list(pa.int64()),
        pa.large_list(pa.int32()),
    ],
    ids=str,
)
def test_types_of_lists(written: Callable[[Any], Path], kind: Any) -> None:
    cells = [[value % 32_768 for value in cell] for cell in CELLS[:50]]
    with open_tokenized(written(table_of(cells, kind))) as source:
        assert cells_in(source, 7) == cells


def test_lists_of_one_length(written: Callable[[Any], Path]) -> None:
    cells = [[i, i + 1, i + 2] for i in range(40)]
    with open_tokenized(written(table_of(cells, pa.list_(pa.int32(), 3)).slice(5, 30))) as source:
        assert cells_in(source, 7) == cells[5:35]


def test_cells_without_any_token(written: Callable[[Any], Path]) -> None:
    with open_tokenized(written(pa.table({"input_ids": [[], [], []]}))) as source:
        assert cells_in(source) == [[], [], []]
    with open_tokenized(written(table_of([]))) as source:
        assert source.n_obs == 0
        assert list(source.blocks()) == []
        assert source.obs.shape == (0, 0)


@pytest.mark.parametrize(
    ("write", "name", "compression"),
    [(parquet, "a.parquet", codec) for codec in ("none", "gzip", "zstd", "brotli", "lz4")]
    + [(write, "a.arrow", codec) for write in (stream, ipc_file) for codec in ("lz4", "zstd")],
)
def test_compression(tmp_path: Path, write: Any, name: str, compression: str) -> None:
    path = write(
        table_of(CELLS, cell_type=[i % 5 for i in range(len(CELLS))]), tmp_path / name, compression=compression
    )
    with open_tokenized(path) as source:
        assert cells_in(source) == CELLS
        assert source.obs["cell_type"].tolist() == [i % 5 for i in range(len(CELLS))]


def test_slices_and_chunks(written: Callable[[Any], Path]) -> None:
    """Arrays that start in the middle of their buffers, and columns in several pieces."""
    table = table_of(CELLS[:30]).slice(9, 14)
    chunked = pa.concat_tables([table.slice(0, 3), table.slice(3, 0), table.slice(3)])
    with open_tokenized(written(chunked)) as source:
        assert cells_in(source, 4) == CELLS[9:23]


@given(st.data())
def test_ranges_and_limits(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any blocks, one range after the other or not, hold the cells that they should, as many as fit."""
    cells = draw_cells(60, seed=3)
    folder = tmp_path_factory.mktemp("files")
    write, name = data.draw(st.sampled_from([(parquet, "{}.parquet"), (stream, "{}.arrow"), (ipc_file, "{}.arrow")]))
    batch, border = data.draw(st.integers(1, 70)), data.draw(st.integers(0, 60))
    for number, part in enumerate((cells[:border], [], cells[border:])):
        write(table_of(part), folder / name.format(number), rows=batch)
    with open_tokenized(folder) as source:
        start = 0
        for _ in range(4):
            start = data.draw(st.sampled_from([start, data.draw(st.integers(0, 60))]))
            stop = data.draw(st.integers(start, 60))
            rows, limit = data.draw(st.integers(1, 70)), data.draw(st.one_of(st.none(), st.integers(1, 40)))
            assert cells_in(source, rows, start=start, stop=stop, max_nnz=limit) == cells[start:stop]
            for block in source.blocks(rows, start=start, stop=stop, max_nnz=limit):
                after, n_tokens = block.row0 + block.n_cells, len(block.tokens)
                assert block.n_cells == 1 or n_tokens <= (limit or LARGEST)
                full = block.n_cells == rows or after == stop
                assert full or n_tokens + len(cells[after]) > (limit or LARGEST)
            start = stop


def test_consecutive_ranges_read_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(table_of(CELLS), tmp_path / "a.parquet", rows=len(CELLS))
    starts: list[int] = []
    read = TokenizedSource._read
    monkeypatch.setattr(TokenizedSource, "_read", lambda self, start: starts.append(start) or read(self, start))
    with open_tokenized(path) as source:
        for start in range(0, 1000, 100):
            assert cells_in(source, 30, start=start, stop=start + 100) == CELLS[start : start + 100]
        assert starts == [0]
        assert cells_in(source, 30, start=50, stop=60) == CELLS[50:60]
        next(source.blocks(10, start=60, stop=90))  # left in the middle
        assert cells_in(source, 30, start=70, stop=80) == CELLS[70:80]
        assert starts == [0, 50, 70]


def test_bad_ranges(tmp_path: Path) -> None:
    with open_tokenized(stream(table_of(CELLS), tmp_path / "a.arrow")) as source:
        for start, stop in ((-1, 5), (3, 2), (0, 2501)):
            with pytest.raises(ValueError, match=f"Cells {start} to {stop} are not in a source of 2500 cells"):
                source.blocks(start=start, stop=stop)
        with pytest.raises(ValueError, match="rows=0 and max_nnz=None must be at least 1"):
            source.blocks(0)
        with pytest.raises(ValueError, match="rows=1 and max_nnz=0 must be at least 1"):
            source.blocks(1, max_nnz=0)


def test_columns_of_upstream(written: Callable[[Any], Path]) -> None:
    """What is a list is left out; text may be dictionary-encoded; a column may be null here and there."""
    tissues = ["lung", "blood", None, "lung"]
    table = table_of(
        [[1, 2], [], [3], [4]],
        name="gene_token_ids",
        gene_expression_nums=pa.array([[0.0, 1.5], [], [0.0], [0.0]]),
        cell_type=pa.array([3, 1, 4, 1], pa.int32()),
        cell_tissue=pa.array(tissues).dictionary_encode(),
        cell_assay_ids=pa.array(tissues),
        cell_counts=pa.array([[[5.0]], [[6.0]], [[7.0]], [[8.0]]]),
        length=[2, 0, 1, 1],
    )
    with open_tokenized(written(table)) as source:
        assert source.matrix == "gene_token_ids"
        assert source.obs_columns == ["cell_type", "cell_tissue", "cell_assay_ids", "length"]
        assert list(source.obs.columns) == source.obs_columns
        assert source.obs["cell_type"].tolist() == [3, 1, 4, 1]
        assert source.obs["cell_tissue"].dtype == "category"
        assert (
            source.obs["cell_tissue"].astype(object).where(source.obs["cell_tissue"].notna(), None).tolist() == tissues
        )
        assert source.column("length").tolist() == [2, 0, 1, 1]
        assert list(source.column("length").index) == ["0", "1", "2", "3"]
        with pytest.raises(KeyError, match="gene_expression_nums"):
            source.column("gene_expression_nums")


def test_what_the_network_was_given_comes_first(tmp_path: Path) -> None:
    table = table_of([[1], [2]], gene_token_ids=pa.array([[7], [8]]))
    with open_tokenized(parquet(table, tmp_path / "a.parquet")) as source:
        assert cells_in(source) == [[1], [2]]


@pytest.mark.parametrize("column", ["barcode", "cell_id", "__index_level_0__"])
def test_names_of_cells(written: Callable[[Any], Path], column: str) -> None:
    names = [f"AAC-{i}" for i in range(len(CELLS))]
    path = written(table_of(CELLS, **{column: pa.array(names).dictionary_encode()}))
    with open_tokenized(path) as source:
        assert list(source.obs_names) == names
        assert list(source.obs.index) == names
        assert source.names(1020, 1030).tolist() == names[1020:1030]
        assert ("__index_level_0__" in source.obs) is False


def test_numbers_for_names(tmp_path: Path) -> None:
    with open_tokenized(stream(table_of(CELLS), tmp_path / "a.arrow")) as source:
        assert list(source.obs_names[:2]) == ["0", "1"]
        assert source.names(9, 11).tolist() == ["9", "10"]
        assert source.obs.shape == (len(CELLS), 0)
    table = table_of([[1], [2]], barcode=[17, 18])
    with open_tokenized(stream(table, tmp_path / "b.arrow")) as source:
        assert source.names(0, 2).tolist() == ["17", "18"]


def test_a_pandas_index_is_kept(tmp_path: Path) -> None:
    pd.DataFrame({"input_ids": [[1], [2, 3]], "batch": ["a", "b"]}, index=["AAC", "GGT"]).to_parquet(
        tmp_path / "a.parquet"
    )
    with open_tokenized(tmp_path / "a.parquet") as source:
        assert list(source.obs_names) == ["AAC", "GGT"]
        assert source.obs.to_dict() == {"batch": {"AAC": "a", "GGT": "b"}}


@pytest.mark.parametrize("n_files", [1, 3])
def test_a_folder_of_datasets(tmp_path: Path, n_files: int) -> None:
    folder = save_to_disk(table_of(CELLS, cell_type=range(len(CELLS))), tmp_path / "cells.dataset", n_files)
    stream(table_of([[99]]), folder / "cache-0123.arrow")  # left behind by a map()
    assert is_tokenized(folder)
    with open_tokenized(folder) as source:
        assert len(source.paths) == n_files
        assert cells_in(source, 500) == CELLS
        assert source.obs["cell_type"].tolist() == list(range(len(CELLS)))


def test_several_files(tmp_path: Path) -> None:
    tables = [table_of(CELLS[i : i + 10], batch=["a"] * 10) for i in range(0, 30, 10)]
    paths = [parquet(table, tmp_path / f"train-{i:05d}-of-00003.parquet") for i, table in enumerate(tables)]
    (tmp_path / "._train.parquet").write_bytes(b"of a Mac")
    for data in (tmp_path, str(tmp_path / "train-*.parquet"), paths):
        assert is_tokenized(data)
        with open_tokenized(data) as source:
            assert cells_in(source, 7) == CELLS[:30]
            assert source.names(8, 22).tolist() == [str(i) for i in range(8, 22)]
            assert source.obs["batch"].tolist() == ["a"] * 30
    with open_tokenized([paths[2], paths[0]]) as source:
        assert cells_in(source) == CELLS[20:30] + CELLS[:10]
    paths[1].unlink()
    with pytest.raises(ValueError, match="holds 2 of the 3 files of train"):
        open_tokenized(tmp_path)


def test_files_that_differ(tmp_path: Path) -> None:
    parquet(table_of([[1]], batch=["a"], age=[1]), tmp_path / "a.parquet")
    parquet(table_of([[2]], age=pa.array([2], pa.int16()), batch=["b"]), tmp_path / "b.parquet")
    with open_tokenized(tmp_path) as source:
        assert source.obs.to_dict("list") == {"batch": ["a", "b"], "age": [1, 2]}
    parquet(table_of([[2]], age=["old"], batch=["b"]), tmp_path / "b.parquet")
    with open_tokenized(tmp_path) as source:
        assert source.column("batch").tolist() == ["a", "b"]
        with pytest.raises(ValueError, match=r"Columns \['age'\] do not have the same types in all of 2 files"):
            source.column("age")
    parquet(table_of([[2]], age=[2]), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet has columns \['input_ids', 'age'\], but .*a\.parquet has"):
        open_tokenized(tmp_path)


def test_folders_that_are_no_dataset(tmp_path: Path) -> None:
    several = tmp_path / "several"
    for split in ("train", "test"):
        several.mkdir(exist_ok=True)
        save_to_disk(table_of(CELLS), several / split)
    (several / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(ValueError, match="several holds several datasets: train, test. Pass the folder of one"):
        open_tokenized(several)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no \.parquet or \.arrow file with cells"):
        open_tokenized(tmp_path / "empty")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name in ("train-00000-of-00001-0a1b.parquet", "test-00000-of-00001-2c3d.parquet"):
        parquet(table_of(CELLS), mixed / name)
    with pytest.raises(ValueError, match=r"mixed holds several datasets: test-\*, train-\*. Pass a pattern such as"):
        open_tokenized(mixed)
    stream(table_of(CELLS), mixed / "a.arrow")
    (mixed / "test-00000-of-00001-2c3d.parquet").unlink()
    with pytest.raises(ValueError, match=r"mixed holds several datasets: \*\.parquet, \*\.arrow"):
        open_tokenized(mixed)


def test_a_damaged_description(tmp_path: Path) -> None:
    folder = save_to_disk(table_of(CELLS), tmp_path / "cells.dataset", 2)
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks data-00001-of-00002\.arrow, which its state\.json names"):
        open_tokenized(folder)
    for text in ("{", "[]", "{}", '{"_data_files": [3]}', '{"_data_files": [{}]}', '{"_data_files": 1}'):
        (folder / "state.json").write_text(text)
        with pytest.raises(ValueError, match=r"state\.json is damaged: it holds no names under"):
            open_tokenized(folder)
    (folder / "state.json").write_text('{"_data_files": []}')
    with pytest.raises(ValueError, match="holds no .* file with cells"):
        open_tokenized(folder)
    state = {"_data_files": [{"filename": "dataset.arrow"}], "_indices_data_files": [{"filename": "indices.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"holds a selection of rows; call flatten_indices\(\)"):
        open_tokenized(folder)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "/etc/passwd"}]}')
    with pytest.raises(FileNotFoundError, match="lacks passwd"):
        open_tokenized(folder)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file .*a\.parquet"):
        open_tokenized(tmp_path / "a.parquet")
    with pytest.raises(FileNotFoundError, match="No file fits the pattern"):
        open_tokenized(tmp_path / "*.parquet")
    with pytest.raises(ValueError, match="https://host/a.parquet must be downloaded first"):
        open_tokenized("https://host/a.parquet")
    (tmp_path / "a.h5ad").touch()
    with pytest.raises(ValueError, match=r"a\.h5ad is no tokenised dataset. Accepted: \.parquet, \.arrow files"):
        open_tokenized(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match="An empty list of files"):
        open_tokenized([])


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"ARROW1", b"no such thing" * 100], ids=len)
def test_files_of_something_else(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"cells{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"cells{suffix} is damaged or no {suffix} file: "):
        open_tokenized(path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_files_that_end_early(written: Callable[[Any], Path], share: float) -> None:
    path = written(table_of(CELLS))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="is damaged or no"), open_tokenized(path) as source:
        list(source.blocks())


def test_a_stream_that_was_never_finished(tmp_path: Path) -> None:
    """The writer died between two batches: what there is, is valid."""
    path = stream(table_of(CELLS), tmp_path / "a.arrow")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="it does not end as a stream does"):
        open_tokenized(path)


def test_offsets_that_point_elsewhere(tmp_path: Path) -> None:
    """Arrow itself does not look at them, and reads what lies there."""
    table = table_of([[1, 2, 3], [4, 5], [6]], pa.list_(pa.int32()))
    for write in (stream, ipc_file):
        path = write(table, tmp_path / "a.arrow")
        offsets = np.array([0, 3, 5, 6], np.int32).tobytes()
        for lie in ([0, 3, 2**30, 6], [0, -3, 5, 6], [0, 5, 3, 6], [0, 3, 5, 2**30]):
            content = path.read_bytes()
            assert content.count(offsets) == 1
            path.write_bytes(content.replace(offsets, np.array(lie, np.int32).tobytes()))
            with open_tokenized(path) as source, pytest.raises(ValueError, match=r"a\.arrow is damaged"):
                list(source.blocks())
            path.write_bytes(content)


def test_files_that_change_while_they_are_open(written: Callable[[Any], Path]) -> None:
    with open_tokenized(written(table_of(CELLS, age=range(len(CELLS))))) as source:
        path = written(table_of(CELLS[:2000], age=range(2000)))
        with pytest.raises(ValueError, match="is damaged: it holds 2000 cells instead of 2500"):
            list(source.blocks())
        path.unlink()
        with pytest.raises(FileNotFoundError):
            list(source.blocks())
        with pytest.raises(FileNotFoundError):
            source.column("age")


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (pa.int64(), -1, "-1"),
        (pa.int16(), -32_768, "-32768"),
        (pa.int64(), LARGEST + 1, "2147483648"),
        (pa.uint64(), 2**64 - 1, "18446744073709551615"),
        (pa.uint32(), 2**32 - 1, "4294967295"),
        (pa.int32(), None, "null"),
    ],
)
def test_ids_that_are_none(written: Callable[[Any], Path], kind: Any, value: int | None, text: str) -> None:
    cells: list[list[Any]] = [[1, 2], []] * 700
    cells[1337] = [5, value, 7]
    with open_tokenized(written(table_of(cells, pa.list_(kind)))) as source:
        blocks = source.blocks(100)
        assert next(blocks).n_cells == 100
        with pytest.raises(
            ValueError, match=rf"Row 1337 of .*cells\..* holds the token id {text}; ids are integers from"
        ):
            list(blocks)


def test_a_list_that_is_missing(written: Callable[[Any], Path]) -> None:
    cells: list[Any] = [[1, 2]] * 1400
    cells[1337] = None
    with open_tokenized(written(table_of(cells))) as source:
        with pytest.raises(ValueError, match=r"Row 1337 of .* has no list of token ids \(null\)"):
            list(source.blocks(100))
        with pytest.raises(ValueError, match=r"Row 1337 of"):
            list(source.blocks(100, start=1300))


def test_ids_beyond_the_vocabulary(tmp_path: Path) -> None:
    path = parquet(table_of([[1, 9], [10]]), tmp_path / "a.parquet")
    with open_tokenized(path, vocab_size=11) as source:
        assert cells_in(source) == [[1, 9], [10]]
    with (
        open_tokenized(path, vocab_size=10) as source,
        pytest.raises(ValueError, match="Row 1 .* id 10; .* from 0 to 9"),
    ):
        list(source.blocks())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"input_ids": [[1.0], [2.0]]}, r"'input_ids' of .* holds list<.*double>; token ids are lists of integers"),
        ({"input_ids": [["ENSG1"], []]}, "holds list<.*string>; token ids are lists of integers"),
        ({"input_ids": [1, 2]}, "holds int64; token ids are lists of integers"),
        ({"input_ids": [[[1]], []]}, "holds list<.*list<.*>>; token ids are lists of integers"),
        ({"tokens": [[1], [2]]}, r"has no column 'input_ids' or 'gene_token_ids' of token ids; found \['tokens'\]"),
    ],
)
def test_columns_that_hold_no_tokens(written: Callable[[Any], Path], columns: dict[str, Any], message: str) -> None:
    path = written(pa.table(columns))
    with pytest.raises(ValueError, match=message):
        open_tokenized(path)


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([[1]]), pa.array([2]), pa.array([3])], ["input_ids", "a", "a"])
    with pytest.raises(ValueError, match="several columns of one name"):
        open_tokenized(stream(table, tmp_path / "a.arrow"))


def test_what_is_tokenized(tmp_path: Path) -> None:
    assert is_tokenized(tmp_path / "a.parquet")
    assert is_tokenized(["a.parquet", tmp_path / "b.arrow"])
    for other in (tmp_path, "a.h5ad", "a.zarr", [], ["a.parquet", "b.h5ad"], None, 3, pd.DataFrame()):
        assert not is_tokenized(other)
    (tmp_path / "state.json").touch()
    assert is_tokenized(str(tmp_path))


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert is_tokenized("a.parquet")
    with pytest.raises(ImportError, match=r"pip install \"scfm-tools\[arrow\]\""):
        open_tokenized("a.parquet")


def test_a_source_says_what_it_is(tmp_path: Path) -> None:
    with open_tokenized(stream(table_of(CELLS), tmp_path / "a.arrow")) as source:
        assert repr(source) == f"TokenizedSource({tmp_path / 'a.arrow'}: input_ids, 2500 cells in 1 file)"
    assert tokenized.__all__ == ["TokenizedSource", "is_tokenized", "open_tokenized"]


def test_values_that_a_file_cannot_back(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"input_ids": pa.array([[1] * 20_000_000], pa.list_(pa.int16()))}), path)
    with pytest.raises(ValueError, match=r"declares 80,000,000 bytes of values in .*Accepted: 1100 for each byte"):
        open_tokenized(path)


@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("rows", [2, 900])
def test_a_text_that_is_stored_once_is_in_memory_once(dictionary: bool, rows: int, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    texts = pa.DictionaryArray.from_arrays(pa.array([*np.zeros(300, "i4"), None]), pa.array(["x" * 2**20]))
    texts = texts if dictionary else texts.dictionary_decode()
    parquet(table_of([[1]] * 301, cell_type=texts), tmp_path / "a.parquet", rows)
    del texts
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_tokenized(tmp_path / "a.parquet") as source:
        found = source.obs["cell_type"]
    assert isinstance(found.dtype, pd.CategoricalDtype) == dictionary
    assert found.iloc[299] == "x" * 2**20
    assert found.isna().tolist() == [False] * 300 + [True]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000

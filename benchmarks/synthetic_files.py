"""Files of made-up cells of any size, written block by block: ``python -m benchmarks.synthetic_files cells.h5ad``.

A cell depends on the seed and on its row alone, not on how many cells there are or how they are stored. So a file is
never held in memory, and any of its cells can be made again to compare with what was computed from it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy import sparse

BLOCK = 4096
LAYOUTS = {
    "contiguous": "h5ad in one piece, not compressed",
    "chunked": "h5ad as anndata writes it: chunks of the size that h5py chooses",
    "gzip": "the same, compressed by gzip",
    "zarr": "zarr format 3 with the chunks and the compression that zarr chooses",
    "sharded": "zarr format 3, 65,536 values a chunk, 64 chunks a shard",
}
CHUNK, SHARD = 2**16, 2**22
BUFFER = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthetic_files", description=__doc__)
    parser.add_argument("path", type=Path, help=".h5ad or .zarr, as the layout asks for")
    described = "; ".join(f"{name}: {text}" for name, text in LAYOUTS.items())
    parser.add_argument("--layout", choices=LAYOUTS, default="contiguous", help=described)
    parser.add_argument("--cells", type=positive, default=10_000)
    add_sizes(parser, mean=200, most=300)
    args = parser.parse_args()
    counts = counts_of(args, args.cells)
    try:
        write(args.path, counts, args.layout)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))


def add_sizes(parser: argparse.ArgumentParser, *, mean: int, most: int) -> None:
    parser.add_argument("--genes", type=positive, default=20_000, help="columns of the matrix")
    parser.add_argument("--mean", type=positive, default=mean, help="genes of a cell")
    parser.add_argument("--most", type=positive, default=most, help="genes of the largest cell")
    parser.add_argument("--seed", type=int, default=0)


def counts_of(args: argparse.Namespace, n_cells: int, ids: tuple[str, ...] | None = None) -> Counts:
    try:
        return Counts(n_cells, mean=args.mean, most=args.most, n_genes=args.genes, seed=args.seed, ids=ids)
    except ValueError as error:
        msg = f"--mean, --most, --genes: {error}"
        raise SystemExit(msg) from error


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        msg = f"{text!r} is not a whole number from 1 on"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


@dataclass(frozen=True)
class Counts:
    """Which cells: some genes are common and most are rare, counts are geometric, whole numbers in float32."""

    n_cells: int
    mean: int = 200
    """Genes of a cell."""
    most: int = 300
    """Genes of the largest cell."""
    n_genes: int = 20_000
    seed: int = 0
    ids: tuple[str, ...] | None = None
    """Gene ids, ``n_genes`` of them; by default those of scfm-mini and then made-up ones, in random order."""

    def __post_init__(self) -> None:
        if self.n_cells < 1:
            msg = "There has to be a cell at least."
            raise ValueError(msg)
        if not 1 <= self.mean <= self.most <= self.n_genes:
            msg = f"{self.mean} genes a cell, at most {self.most}, of {self.n_genes} genes: none may exceed the next."
            raise ValueError(msg)
        if self.ids is not None and len(self.ids) != self.n_genes:
            msg = f"{len(self.ids)} gene ids for {self.n_genes} genes."
            raise ValueError(msg)

    @cached_property
    def var(self) -> pd.DataFrame:
        """Annotation of the genes; ids are also in the column that TranscriptFormer reads."""
        import pandas as pd

        ids = np.asarray(self.ids if self.ids is not None else _ids(self.n_genes), dtype=object)
        ids = np.random.default_rng([self.seed, 1]).permutation(ids)
        return pd.DataFrame({"ensembl_id": ids}, index=pd.Index(ids))

    @cached_property
    def _column_of_rank(self) -> NDArray[np.int32]:
        return np.random.default_rng([self.seed, 2]).permutation(self.n_genes).astype(np.int32)

    def sizes(self, block: int) -> NDArray[np.int64]:
        """Genes of each cell of a block."""
        width = (self.most - self.mean) / 2.5
        drawn = np.random.default_rng([self.seed, 3, block]).normal(self.mean, width, BLOCK)
        sizes = drawn.round().clip(1, self.most).astype(np.int64)
        return sizes[: self.n_cells - block * BLOCK]

    def blocks(self) -> Iterator[sparse.csr_matrix]:
        for block in range(-(-self.n_cells // BLOCK)):
            yield self.block(block)

    def block(self, block: int) -> sparse.csr_matrix:
        """Cells ``BLOCK * block`` and on."""
        from scipy import sparse

        rng, counts_rng = np.random.default_rng([self.seed, 4, block]).spawn(2)
        sizes = self.sizes(block)
        used = np.arange(self.most) < sizes[:, None]
        # distinct ranks: sorted draws from a range that is shorter by the number of draws, spread by their position
        drawn = rng.random((BLOCK, self.most), dtype=np.float32)[: len(sizes)]
        ranks = (drawn * drawn * (self.n_genes - sizes[:, None])).astype(np.int32)
        ranks[~used] = self.n_genes
        ranks.sort(axis=1)
        ranks += np.arange(self.most, dtype=np.int32)
        columns = self._column_of_rank[np.minimum(ranks, self.n_genes - 1)]
        columns[~used] = self.n_genes
        columns.sort(axis=1)
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        data = counts_rng.geometric(0.5, indptr[-1]).astype(np.float32)
        return sparse.csr_matrix((data, columns[used], indptr), shape=(len(sizes), self.n_genes))

    def cells(self, rows: Sequence[int]) -> AnnData:
        """Some of the cells, in memory; rows in ascending order."""
        import anndata
        from scipy import sparse

        wanted = np.asarray(rows)
        numbers, first = np.unique(wanted // BLOCK, return_index=True)
        parts = np.split(wanted, first[1:])
        x = [self.block(int(number))[part % BLOCK] for number, part in zip(numbers, parts, strict=True)]
        adata = anndata.AnnData(sparse.csr_matrix(sparse.vstack(x)), var=self.var)
        adata.obs_names = [f"cell-{row}" for row in rows]
        return adata


def _ids(n_genes: int) -> list[str]:
    from scfm import datasets

    return list(datasets.synthetic(0, n_genes, genes_per_cell=1).var_names)


def suffix_of(layout: str) -> str:
    return ".zarr" if layout in ("zarr", "sharded") else ".h5ad"


def write(path: Path, counts: Counts, layout: str = "contiguous") -> Path:
    """Write a file that anndata reads, with a few blocks of cells in memory at a time."""
    import pandas as pd
    from anndata import AnnData
    from anndata.io import write_elem

    suffix = suffix_of(layout)
    if path.suffix != suffix:
        msg = f"The layout {layout!r} makes a {suffix} file, not {path.name}."
        raise ValueError(msg)
    if path.exists():
        msg = f"{path} exists already; choose another name."
        raise FileExistsError(msg)
    root = _created(path)
    empty = AnnData(obs=pd.DataFrame(index=pd.Index([], dtype=object)), var=counts.var)
    write_elem(root, "/", empty, dataset_kwargs={} if suffix == ".h5ad" else {"shards": None})
    for name in ("obs/_index", "X", "raw"):  # made below, or a mark for None that older anndata cannot read
        if name in root:
            del root[name]
    names = _Growing(root["obs"], "_index", counts.n_cells, str, "contiguous" if suffix == ".h5ad" else "zarr")
    names.array.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    x = root.create_group("X")
    x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    x.attrs["shape"] = [counts.n_cells, counts.n_genes]
    sizes = [counts.sizes(block) for block in range(-(-counts.n_cells // BLOCK))]
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
    nnz = int(indptr[-1])
    pointers = _Growing(x, "indptr", len(indptr), np.int64, layout)
    columns, values = _Growing(x, "indices", nnz, np.int32, layout), _Growing(x, "data", nnz, np.float32, layout)
    pointers.append(indptr)
    for number, block in enumerate(counts.blocks()):
        columns.append(block.indices)
        values.append(block.data)
        first = number * BLOCK
        names.append(np.array([f"cell-{row}" for row in range(first, first + block.shape[0])], dtype=object))
    for array in (names, pointers, columns, values):
        array.finish()
    if suffix == ".h5ad":
        root.close()
    return path


def _created(path: Path) -> Any:
    if path.suffix == ".h5ad":
        import h5py

        return h5py.File(path, "w")
    import zarr

    return zarr.open_group(path, mode="w-", zarr_format=3)


class _Growing:
    """A one-dimensional array of known length that is filled from the start, by whole chunks."""

    def __init__(self, group: Any, name: str, length: int, dtype: type, layout: str) -> None:
        how: dict[str, Any] = {}
        if layout in ("zarr", "sharded"):
            if layout == "sharded" and length > CHUNK:
                how = {"chunks": (CHUNK,), "shards": (min(SHARD, -(-length // CHUNK) * CHUNK),)}
            self.array = group.create_array(name, shape=(length,), dtype=dtype, **how)
            chunk = (self.array.shards or self.array.chunks)[0]
        else:
            import h5py

            if layout != "contiguous":  # room to grow is what anndata asks for, and what makes h5py choose chunks
                how = {"maxshape": (None,), "compression": "gzip" if layout == "gzip" else None}
            stored = h5py.string_dtype() if dtype is str else dtype
            self.array = group.create_dataset(name, shape=(length,), dtype=stored, **how)
            chunk = self.array.chunks[0] if self.array.chunks else 1
        self._step = chunk * max(1, BUFFER // chunk)
        self._at = 0
        self._waiting: list[NDArray[Any]] = []

    def append(self, values: NDArray[Any]) -> None:
        self._waiting.append(values)
        if sum(map(len, self._waiting)) >= self._step:
            found = np.concatenate(self._waiting)
            whole = len(found) // self._step * self._step
            self._write(found[:whole])
            self._waiting = [found[whole:]]

    def finish(self) -> None:
        if self._waiting:
            self._write(np.concatenate(self._waiting))

    def _write(self, values: NDArray[Any]) -> None:
        self.array[self._at : self._at + len(values)] = values
        self._at += len(values)


if __name__ == "__main__":
    main()

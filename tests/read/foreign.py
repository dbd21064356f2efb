"""Writers of files of other programs, as these write them."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import h5py
import numpy as np
from scipy import io, sparse

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad

GENES, ANTIBODY = "Gene Expression", "Antibody Capture"


def write_tenx(path: Path, adata: ad.AnnData, genome: str | None = None) -> Path:
    """A file of Cell Ranger 3 and later, or with a genome one of Cell Ranger 2, to which it is added."""
    matrix = sparse.csr_matrix(adata.X)
    with h5py.File(path, "a") as file:
        group = file.create_group("matrix" if genome is None else genome)
        compressed = {"compression": "gzip", "chunks": (16,), "shuffle": True}
        group.create_dataset("data", data=matrix.data.astype("i4"), **compressed)
        group.create_dataset("indices", data=matrix.indices.astype("i8"), **compressed)
        group["indptr"], group["shape"] = matrix.indptr.astype("i8"), np.array(adata.shape[::-1], "i4")
        group["barcodes"] = adata.obs_names.to_numpy().astype("S")
        names, ids = adata.var_names.to_numpy().astype("S"), adata.var["gene_ids"].to_numpy().astype("S")
        if genome is not None:
            group["genes"], group["gene_names"] = ids, names
            return path
        features = group.create_group("features")
        features["id"], features["name"] = ids, names
        features["feature_type"] = adata.var["feature_types"].to_numpy().astype("S")
        features["genome"] = np.full(len(names), b"GRCh38")
        features["_all_tag_keys"] = np.array([b"genome"])
    return path


def write_mtx(folder: Path, adata: ad.AnnData, *, version: int, prefix: str = "", by_gene: bool = False) -> Path:
    """A folder of Cell Ranger 2 or 3, entries in the order of cells or of genes."""
    folder.mkdir(exist_ok=True)
    matrix = sparse.coo_matrix(sparse.csr_matrix(adata.X).T.astype(int))
    order = np.lexsort((matrix.col, matrix.row) if by_gene else (matrix.row, matrix.col))
    matrix = sparse.coo_matrix((matrix.data[order], (matrix.row[order], matrix.col[order])), shape=matrix.shape)
    columns = ["gene_ids", None, "feature_types"][: version if version > 2 else 2]
    lists = [adata.var_names if name is None else adata.var[name] for name in columns]
    features = "".join("\t".join(row) + "\n" for row in zip(*lists, strict=True))
    texts = {"genes.tsv" if version == 2 else "features.tsv": features, "barcodes.tsv": "\n".join(adata.obs_names)}
    io.mmwrite(folder / f"{prefix}matrix.mtx", matrix, field="integer")
    for name, text in texts.items():
        (folder / f"{prefix}{name}").write_text(text)
    if version > 2:
        for file in list(folder.glob(f"{prefix}*.tsv")) + [folder / f"{prefix}matrix.mtx"]:
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    return folder


def write_loom(path: Path, adata: ad.AnnData) -> Path:
    """A file of loompy 3."""
    dense = sparse.csr_matrix(adata.X).toarray()
    with h5py.File(path, "w") as file:
        file.create_dataset("matrix", data=dense.T, chunks=(4, 4), compression="gzip")
        for name in adata.layers:
            file.create_dataset(f"layers/{name}", data=sparse.csr_matrix(adata.layers[name]).toarray().T)
        for place, table, index in (("col_attrs", adata.obs, "CellID"), ("row_attrs", adata.var, "Gene")):
            group = file.create_group(place)
            group[index] = table.index.to_numpy().astype(object)
            for name in table:
                values = table[name].to_numpy()
                group[name] = values if values.dtype.kind in "if" else values.astype(object)
            group["two dimensions"] = np.zeros((len(table), 2))
    return path

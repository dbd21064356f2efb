"""The files that the fuzzing starts from."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save

from scfm.run.store import COUNTED
from scfm.weights.gene_vectors import write_gene_vectors

if TYPE_CHECKING:
    from pathlib import Path


def tar_of(names: dict[str, bytes], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.pax_headers = {"comment": "x" * 20, "mtime": "1.5"}
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_small(folder: Path) -> None:
    """One file of each kind."""
    folder.mkdir()
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.int64), "c": torch.zeros(0)}
    (folder / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    torch.save(tensors, folder / "pytorch_model.bin")
    table = {"a": np.float64(1.5), "b": 2, "c": np.int64(3), "d": 2.5, "e": True}
    (folder / "token_dictionary.pkl").write_bytes(pickle.dumps(table, protocol=4))
    files = {"tf/config.json": b"{}", "tf/" + "n" * 120: b"1" * 600, "tf/vocabs/a.h5": b"\x89HDF"}
    (folder / "a.tar").write_bytes(tar_of(files, tarfile.PAX_FORMAT))
    write_gene_vectors(folder / "a_gene.h5", ["ENSG02", "LOC7", "ENSG01"], np.arange(6.0).reshape(3, 2))


def write_legacy(folder: Path) -> None:
    """The same kinds in older or rarer formats."""
    import h5py

    folder.mkdir()
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2).expand(1, -1)}
    torch.save({"state_dict": tensors}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "token_dictionary.pkl").write_bytes(pickle.dumps({"a": np.float32(1.5), "b": 2, "c": "x"}, protocol=0))
    (folder / "a.tar").write_bytes(gzip.compress(tar_of({"tf/" + "n" * 120: b"1" * 600}, tarfile.GNU_FORMAT)))
    with h5py.File(folder / "a_gene.h5", "w", libver="latest") as file:
        file.create_dataset("keys", data=np.array([b"a", b"b", b"a"]), chunks=(2,), compression="gzip", shuffle=True)
        for name in "ab":
            file.create_dataset(f"arrays/{name}", data=np.ones(4), chunks=(3,), maxshape=(None,), fletcher32=True)


def write_store(folder: Path) -> None:
    """What a store of embeddings says of itself."""
    markers = folder / "obsm" / "X_a" / ".shards"
    markers.mkdir(parents=True)
    array = {"path": "obsm/X_a", "shape": [10, 4], "dtype": "float32", "fill": 0, "shard_rows": 4, "chunk_rows": 4}
    plan: dict[str, object] = {"format": 2, "verb": "embed", "key": "a", "n_obs": 10, "shard_rows": 4}
    plan |= {"arrays": [array], "sequences": None}
    plan["identity"] = {"source": [{"n_obs": 10, "bytes": 1, "modified": 2}]}
    (markers.parent / ".scfm.json").write_text(json.dumps(plan))
    (markers / "00000000.json").write_text(
        json.dumps(dict.fromkeys(COUNTED, 0) | {"start": 0, "stop": 4, "n_cells": 4})
    )


OWL = """<?xml version="1.0"?>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:owl="http://www.w3.org/2002/07/owl#"
  xmlns:rdfs="http://www.w3.org/2000/01/rdf-schema#">
{}</rdf:RDF>
"""
OWL_CLASS = """<owl:Class rdf:about="http://purl.obolibrary.org/obo/CL_{}">
<rdfs:label>type {}</rdfs:label><rdfs:subClassOf rdf:resource="http://purl.obolibrary.org/obo/CL_0000000"/></owl:Class>
"""


def write_tables(folder: Path) -> None:
    """Tokenised cells and an ontology."""
    import pyarrow as pa
    import pyarrow.parquet

    folder.mkdir()
    table = pa.table({"input_ids": [[7, 2], [], [5, 3, 9]], "cell_type": ["a", None, "b"], "n": [1.5, 2.0, 3.0]})
    pa.parquet.write_table(table, folder / "cells.parquet", row_group_size=2)
    with pa.ipc.new_stream(folder / "cells.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": "cells.arrow"}], "_fingerprint": "1", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    terms = [f"{number:07d}" for number in range(1, 6)]
    root = '<owl:Class rdf:about="http://purl.obolibrary.org/obo/CL_0000000"/>\n'
    (folder / "cl.owl").write_text(OWL.format(root + "".join(OWL_CLASS.format(term, term) for term in terms)))
    obo = [f"[Term]\nid: CL:{term}\nname: type {term}\nis_a: CL:0000000 ! cell\n" for term in terms]
    (folder / "cl.obo").write_text("\n".join(["format-version: 1.2\n", "[Term]\nid: CL:0000000\nname: cell\n", *obo]))

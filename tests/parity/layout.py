"""Write the cut values of ``tests/data`` as their authors publish such files: the same tree as the full values have."""

from __future__ import annotations

import json
import lzma
import pickle
import shutil
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load as from_bytes
from safetensors.torch import save_file
from scipy import sparse

if TYPE_CHECKING:
    from pathlib import Path

Arrays = dict[str, np.ndarray]

HEAD_BIASES = ("cls.predictions", "cell_cls.predictions")
GENE_TABLE = "gene_embeddings.embedding.weight"
N_SPECIALS = 7
NAMESPACES = {
    "owl": "http://www.w3.org/2002/07/owl#",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "rdfs": "http://www.w3.org/2000/01/rdf-schema#",
    "oboInOwl": "http://www.geneontology.org/formats/oboInOwl#",
    "obo": "http://purl.obolibrary.org/obo/",
}
_SUBCLASS = NAMESPACES["rdfs"] + "subClassOf"


def write_layouts(data: Path, root: Path) -> Path:
    """Write the files of all families below ``root``, from the arrays in ``data``."""
    fixtures = root / "fixtures"
    for version in ("v1", "v2"):
        source = data / "geneformer" / version
        write_geneformer(source, fixtures / "geneformer" / version)
        write_dictionaries(load(source / "dictionaries.safetensors.xz"), root / "dictionaries" / version.upper())
    write_sccello(data / "sccello", fixtures / "sccello")
    (root / "sccello_data").mkdir(parents=True)
    names = load(data / "sccello" / "names.safetensors.xz")
    table = pd.DataFrame({name: names[name].astype(str) for name in ("id", "name")})
    table.to_csv(root / "sccello_data" / "vocab_id2name.csv", index=False)
    write_transcriptformer(data / "transcriptformer", fixtures / "transcriptformer")
    return root


def load(path: Path) -> Arrays:
    stored = from_bytes(lzma.decompress(path.read_bytes()))
    text = {name.removesuffix("@text"): values for name, values in stored.items() if name.endswith("@text")}
    numbers = {name: values for name, values in stored.items() if not name.endswith("@text")}
    return numbers | {name: values.view(f"S{values.shape[-1]}")[..., 0] for name, values in text.items()}


def as_text(values: np.ndarray) -> np.ndarray:
    """Text as such, not as the bytes that it is stored as."""
    return values.astype(str) if values.dtype.kind == "S" else values


def whole_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors in their published shapes; rows that were cut off are zero."""
    arrays = load(path)
    tensors = {}
    for name in (name for name in arrays if "@" not in name):
        values = arrays[name]
        if f"{name}@rows" in arrays:
            whole = np.zeros((int(arrays[f"{name}@length"]), *values.shape[1:]), values.dtype)
            whole[arrays[f"{name}@rows"]] = values
            values = whole
        tensors[name] = torch.from_numpy(values)
    return tensors


def read_cells(path: Path) -> ad.AnnData:
    """Cells as they were: the order of stored entries, explicit zeros and types of numbers included."""
    arrays = load(path)

    def frame(prefix: str) -> pd.DataFrame:
        columns: dict[str, Any] = {}
        for name in (name for name in arrays if name.startswith(f"{prefix}.")):
            values = arrays[name]
            if values.dtype.kind == "S":
                values = values.astype(str).astype(object)
                values[values == ""] = np.nan
            columns[name.removeprefix(f"{prefix}.")] = values
        names = arrays.get(f"{prefix}_names")
        table = pd.DataFrame(columns, index=None if names is None else names.astype(str))
        return table.set_axis(table.index.astype(str))

    def matrix(prefix: str, shape: tuple[int, int]) -> sparse.csr_matrix:
        counts = arrays[f"{prefix}.data"].astype(arrays[f"{prefix}.dtype"].item().decode())
        indices = arrays[f"{prefix}.indices"].astype(np.int32)
        return sparse.csr_matrix((counts, indices, arrays[f"{prefix}.indptr"].astype(np.int32)), shape=shape)

    obs, var = frame("obs"), frame("var")
    adata = ad.AnnData(matrix("X", (len(obs), len(var))), obs=obs, var=var)
    if "raw.data" in arrays:
        raw_var = frame("raw_var")
        adata.raw = ad.AnnData(matrix("raw", (len(obs), len(raw_var))), obs=obs[[]], var=raw_var)
    return adata


def write_expected(source: Path, folder: Path) -> None:
    for path in source.glob("expected*"):
        np.savez(folder / f"{path.name.partition('.')[0]}.npz", **load(path))


def write_cells(source: Path, folder: Path, *names: str) -> None:
    for name in names:
        read_cells(source / f"{name}.safetensors.xz").write_h5ad(folder / f"{name}.h5ad")


def write_dictionaries(arrays: Arrays, folder: Path) -> None:
    """Write the four pickles of a Geneformer vocabulary."""
    folder.mkdir(parents=True)
    genes = arrays["gene"].astype(str).astype(object)
    tokens, specials = arrays["token"].tolist(), arrays["special_name"].astype(str).tolist()
    tables: dict[str, dict[str, Any]] = {
        "token_dictionary": dict(zip(specials, arrays["special_token"].tolist(), strict=True))
        | dict(zip(genes.tolist(), tokens, strict=True)),
        "gene_median_dictionary": dict(zip(genes.tolist(), arrays["median"].tolist(), strict=True)),
        "ensembl_mapping_dict": {gene: gene for gene in genes[arrays["maps_to_itself"]]},
        "gene_name_id_dict": {},
    }
    for table, prefix in (("ensembl_mapping_dict", "alias"), ("gene_name_id_dict", "symbol")):
        names = arrays[prefix].astype(str).tolist()
        tables[table] |= dict(zip(names, genes[arrays[f"{prefix}_gene"]].tolist(), strict=True))
    for name, table in tables.items():
        (folder / f"{name}_{arrays['release'].item().decode()}.pkl").write_bytes(pickle.dumps(table))


def write_geneformer(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    shutil.copyfile(source / "config.json", folder / "config.json")
    write_expected(source, folder)
    save_file(whole_tensors(source / "weights.safetensors.xz"), folder / "model.safetensors", metadata={"format": "pt"})
    plain = ["input_plain"] * (source / "input_plain.safetensors.xz").exists()
    write_cells(source, folder, "input", "edge", "isp_input", *plain)
    columns: dict[str, dict[str, np.ndarray]] = {}
    for name, values in load(source / "tables.safetensors.xz").items():
        table, _, column = name.partition(".")
        columns.setdefault(table, {})[column] = as_text(values)
    for table, parts in columns.items():
        pd.DataFrame(parts).to_csv(folder / f"{table}.csv")


def write_sccello(source: Path, folder: Path) -> None:
    (folder / "checkpoint").mkdir(parents=True)
    shutil.copyfile(source / "config.json", folder / "checkpoint" / "config.json")
    write_expected(source, folder)
    tensors = whole_tensors(source / "weights.safetensors.xz")
    save_file(tensors, folder / "checkpoint" / "model.safetensors", metadata={"format": "pt"})
    twice = {f"{head}.dense_2.bias": tensors[f"{head}.bias"] for head in HEAD_BIASES}
    torch.save(tensors | twice, folder / "checkpoint" / "pytorch_model.bin")
    write_cells(source, folder, "input")
    bulk = load(source / "drug_expression.safetensors.xz")
    rows = [f"line{i}" for i in range(len(bulk["values"]))]
    table = pd.DataFrame(bulk["values"], rows, bulk["symbol"].astype(str))
    table.to_csv(folder / "drug_expression.csv")
    write_ontology(source / "cl_small.tsv", folder / "cl_small.owl")


def write_ontology(table: Path, path: Path) -> None:
    """Write OWL from rows of a term, a relation and what it relates to."""
    for prefix, address in NAMESPACES.items():
        ElementTree.register_namespace(prefix, address)
    root = ElementTree.Element(_tag("rdf:RDF"))
    classes: dict[str, ElementTree.Element] = {}
    for line in table.read_text(encoding="utf-8").splitlines():
        term, relation, target = line.split("\t")
        if relation == "owl:Axiom":
            axiom = ElementTree.SubElement(root, _tag(relation))
            for part, of_part in (("Source", _uri(term)), ("Property", _SUBCLASS), ("Target", _uri(target))):
                ElementTree.SubElement(axiom, _tag(f"owl:annotated{part}"), {_tag("rdf:resource"): of_part})
        elif relation == "owl:Class":
            classes[term] = ElementTree.SubElement(root, _tag(relation), {_tag("rdf:about"): _uri(term)})
            ElementTree.SubElement(classes[term], _tag("oboInOwl:id")).text = term
        else:
            _relate(classes[term], relation, target)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _relate(of_term: ElementTree.Element, relation: str, target: str) -> None:
    """Relate a term to another, to ``property some other``, or to ``genus and property some other``."""
    element = ElementTree.SubElement(of_term, _tag(relation))
    if relation in ("oboInOwl:hasAlternativeId", "owl:deprecated"):
        element.text = target
        return
    rest, _, filler = target.partition(" some ")
    genus, _, prop = rest.rpartition(" and ")
    if not filler:
        element.set(_tag("rdf:resource"), _uri(target))
        return
    if genus:
        both = ElementTree.SubElement(element, _tag("owl:Class"))
        element = ElementTree.SubElement(both, _tag("owl:intersectionOf"), {_tag("rdf:parseType"): "Collection"})
        ElementTree.SubElement(element, _tag("rdf:Description"), {_tag("rdf:about"): _uri(genus)})
    restriction = ElementTree.SubElement(element, _tag("owl:Restriction"))
    ElementTree.SubElement(restriction, _tag("owl:onProperty"), {_tag("rdf:resource"): _uri(prop)})
    ElementTree.SubElement(restriction, _tag("owl:someValuesFrom"), {_tag("rdf:resource"): _uri(filler)})


def _tag(name: str) -> str:
    prefix, _, local = name.partition(":")
    return f"{{{NAMESPACES[prefix]}}}{local}"


def _uri(term: str) -> str:
    return NAMESPACES["obo"] + term.replace(":", "_")


def write_gene_vectors(path: Path, genes: np.ndarray, vectors: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["keys"] = genes
        for gene, vector in zip(genes, vectors, strict=True):
            file[f"arrays/{gene.decode()}"] = vector


def write_transcriptformer(source: Path, folder: Path) -> None:
    checkpoint = folder / "checkpoint"
    (checkpoint / "vocabs").mkdir(parents=True)
    shutil.copyfile(source / "config.json", checkpoint / "config.json")
    shutil.copyfile(source / "assays.json", checkpoint / "vocabs" / "assay_vocab.json")
    tensors = whole_tensors(source / "weights.safetensors.xz")
    torch.save(tensors, checkpoint / "model_weights.pt")
    genes = load(source / "expected.safetensors.xz")["vocab"][N_SPECIALS:]
    (name,) = json.loads((source / "config.json").read_text())["model"]["data_config"]["esm2_mappings"]
    write_gene_vectors(checkpoint / "vocabs" / name, genes, tensors[GENE_TABLE][N_SPECIALS:].numpy())
    others = load(source / "expected_ood_corrected.safetensors.xz")["vocab"][N_SPECIALS:]
    vectors = whole_tensors(source / "ood_embedding.safetensors.xz")["vectors"].numpy()
    write_gene_vectors(folder / "ood_embedding.h5", others, vectors)
    write_expected(source, folder)
    write_cells(source, folder, "input", "input_sort", "input_raw", "input_ood")

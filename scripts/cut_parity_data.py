"""Cut the values that upstream's code wrote to what the repository holds, and compare both with our code.

Cells, genes and rows of weights are left out; no number is changed. ``tests/data/README.md`` says what is left::

    python scripts/cut_parity_data.py ../shared/reference
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import torch
from parity_packing import Arrays, cut_offsets, cut_rows, load, pack_cells, pack_frame, save
from safetensors.numpy import load_file

from scfm.nn import BertConfig, ScCelloNetwork
from scfm.weights.pickles import read_dictionary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 2_100_000
WORDS, POSITIONS = "bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight"
RELEASE = {"v1": "gc30M", "v2": "gc104M"}

# Geneformer: the shortest cells are embedded, the smallest that is cut off is only tokenised.
N_EMBEDDED = 4
PLAIN_CELLS = [1, 3, 4, 6]
N_POSITIONS, N_COLUMNS, N_GENES = 32, 64, 80
N_PERTURBED = 6  # genes whose effects on others stay, the anchor among them
# scCello: the shortest cell is embedded; one that its filter drops and one that is cut off are only tokenised.
SCCELLO_CELLS, SCCELLO_EMBEDDED = [11, 15, 16], [1]
ATTENTION_LAYERS, N_PROBED, N_PROTOTYPES = [5], 40, 40
NEGLIGIBLE = 1e-6  # mean probability of all genes left out where a gene is masked: as much is lost of the loss
# TranscriptFormer: made cells, odd assays and odd storage before others; genes of few cells have their states.
TF_ROWS = {
    "input": [1, 2, 4, 5, 9, 14, 15, 17, 18, 20, 23, 24, 25, 26],
    "input_sort": [1, 8],
    "input_raw": [0, 1, 8],
    "input_ood": [0, 3, 9, 11],
}
TF_STATES = {"input": [4, 14], "input_ood": [0]}
N_SPECIALS = 7


def cut_cells(path: Path, rows: Sequence[int], *, genes: bool = False) -> ad.AnnData:
    """Keep some cells, and only the genes that they have a value of."""
    adata = ad.read_h5ad(path)[rows].copy()
    return adata[:, np.unique(adata.X.indices)].copy() if genes else adata


class Geneformer:
    """One version: which cells stay, and where."""

    def __init__(self, reference: Path, version: str) -> None:
        self.folder, self.version = reference / "fixtures" / "geneformer" / version, version
        self.dictionaries = reference / "dictionaries" / version.upper()
        self.expected = load(self.folder / "expected.npz")
        self.perturbed = load(self.folder / "expected_isp.npz")
        pairs = self.perturbed["upstream_delall_genes_lm1_pairs"]
        others = np.setdiff1d(pairs[:, 1], self.perturbed["anchor_token"])
        self.perturbing = [int(self.perturbed["anchor_token"]), *others[: N_PERTURBED - 1].tolist()]
        lengths = np.diff(self.expected["upstream_tok_offsets"])
        stored = np.diff(ad.read_h5ad(self.folder / "input.h5ad").X.indptr)[self.expected["kept_cells"]]
        full = np.flatnonzero(lengths == lengths.max())
        short = np.argsort(lengths)[:N_EMBEDDED]
        self.cells = sorted([*short.tolist(), int(full[np.argmin(stored[full])])])
        self.embedded = np.array([place for place, cell in enumerate(self.cells) if cell in short])
        self.longest = int(lengths[short].max())

    def inputs(self) -> dict[str, ad.AnnData]:
        """Cells of each input file."""
        rows = self.expected["kept_cells"][self.cells]
        found = {"input": cut_cells(self.folder / "input.h5ad", rows, genes=True)}
        found |= {name: ad.read_h5ad(self.folder / f"{name}.h5ad") for name in ("edge", "isp_input")}
        if self.version == "v2":
            found["input_plain"] = cut_cells(self.folder / "input_plain.h5ad", PLAIN_CELLS, genes=True)
        return found

    def arrays(self) -> Arrays:
        """Expected values of the cells that stay."""
        theirs, place = self.expected, {cell: i for i, cell in enumerate(self.cells)}
        cut = {name: theirs[name] for name in theirs if name.startswith("upstream_edge_tok") and "values" not in name}
        for tok, cells in (("upstream_tok", self.cells), ("upstream_plain_tok", PLAIN_CELLS)):
            if f"{tok}_tokens" in theirs:
                names = [f"{tok}_{kind}" for kind in ("tokens", "tie_exact", "tie_near")]
                cut |= cut_offsets(theirs, f"{tok}_offsets", cells, names)
                cut[f"{tok}_cell_index"] = np.arange(len(cells))
        counted = [cell for cell in self.cells if cell < len(theirs["upstream_keepcounts_offsets"]) - 1]
        cut |= cut_offsets(theirs, "upstream_keepcounts_offsets", counted, ["upstream_keepcounts_counts"])
        cut |= {"kept_cells": np.arange(len(self.cells)), "embedded": self.embedded}
        of_embedded = [self.cells[i] for i in self.embedded]
        cut |= {name: values[of_embedded] for name, values in theirs.items() if name.startswith("upstream_emb_c")}
        at = np.linspace(0, len(theirs["hidden_short_positions"]) - 1, N_POSITIONS).astype(int)
        cut["hidden_short_row"] = np.array(place[int(theirs["hidden_short_row"])])
        cut["hidden_short_positions"] = theirs["hidden_short_positions"][at]
        cut["upstream_hidden_short"] = theirs["upstream_hidden_short"][:, at]
        cut["logits_tokens"], cut["logits_columns"] = theirs["logits_tokens"], theirs["logits_columns"][:N_COLUMNS]
        cut["upstream_logits"] = theirs["upstream_logits"][:, :N_COLUMNS]
        return cut | self.gene_means()

    def gene_means(self) -> Arrays:
        """Means of genes over the cells of upstream's group, for genes that none of those left out has."""
        theirs = self.expected
        tokens = np.split(theirs["upstream_tok_tokens"], theirs["upstream_tok_offsets"][1:-1])
        group = theirs["gene_mode_rows"].tolist()
        ours = [self.cells[i] for i in self.embedded if self.cells[i] in group]
        here = np.unique(np.concatenate([tokens[cell] for cell in ours]))
        elsewhere = np.concatenate([tokens[cell] for cell in group if cell not in ours])
        same = np.flatnonzero(np.isin(theirs["gene_tokens"], here) & ~np.isin(theirs["gene_tokens"], elsewhere))
        n_cells = np.array([sum(token in tokens[cell] for cell in ours) for token in theirs["gene_tokens"][same]])
        at = np.sort(same[np.argsort(-n_cells, kind="stable")[:N_GENES]])  # rather genes of several cells
        return {
            "gene_mode_rows": np.array([self.cells.index(cell) for cell in ours]),
            "gene_tokens": theirs["gene_tokens"][at],
            "gene_tokens_left_out": np.setdiff1d(here, theirs["gene_tokens"][at]),
            "upstream_gene_emb_lm1": theirs["upstream_gene_emb_lm1"][at],
        }

    def effects(self) -> Arrays:
        """Effects of perturbations, but for cells that are too long; of few genes also on others."""
        left_out = ("overflow", "gmm")
        cut = {name: values for name, values in self.perturbed.items() if not any(part in name for part in left_out)}
        pairs = "upstream_delall_genes_lm1_pairs"
        own = np.isin(cut[pairs][:, 1], self.perturbing)
        return cut | {name: cut[name][own] for name in (pairs, pairs.replace("pairs", "pair_cos"))}

    def tables(self) -> Arrays:
        """Columns of the tables of statistics, ``<table>.<column>``."""
        cut: Arrays = {}
        for path in sorted(set(self.folder.glob("*stats_*.csv")) - set(self.folder.glob("stats_synth*"))):
            table = pd.read_csv(path, index_col=0)
            if path.stem == "stats_aggregate_gene_shifts":
                table = table[table["Perturbed"].isin(self.perturbing)]
            names = [name for name in table if name != "Perturbed" and "name" not in name]
            cut |= pack_frame(path.stem, table, names, names=False)
        return cut

    def write(self, out: Path, more_names: set[str]) -> None:
        """Write everything below ``out``; the dictionaries know the genes called ``more_names``, too."""
        arrays, inputs = self.arrays(), self.inputs()
        save(out / "expected.safetensors.xz", arrays)
        save(out / "expected_isp.safetensors.xz", self.effects())
        save(out / "tables.safetensors.xz", self.tables())
        for name, adata in inputs.items():
            save(out / f"{name}.safetensors.xz", pack_cells(adata, ["n_counts"]))
        embedded = [self.cells[i] for i in self.embedded]
        tokens = cut_offsets(self.expected, "upstream_tok_offsets", embedded, ["upstream_tok_tokens"])
        rows = {0, 1, 2, 3, *tokens["upstream_tok_tokens"], *arrays["logits_tokens"], *arrays["logits_columns"]}
        rows |= {*self.perturbed["isp_tokens"]}
        kept = {WORDS: rows, POSITIONS: range(self.longest), "cls.predictions.bias": arrays["logits_columns"]}
        save(out / "weights.safetensors.xz", cut_rows(load_file(self.folder / "model.safetensors"), kept))
        shutil.copyfile(self.folder / "config.json", out / "config.json")
        names = more_names.union(*(adata.var["ensembl_id"] for adata in inputs.values()))
        save(out / "dictionaries.safetensors.xz", cut_dictionaries(self.dictionaries, RELEASE[self.version], names))


def cut_dictionaries(folder: Path, release: str, names: set[str]) -> Arrays:
    """Keep what the four pickles say about some ids and symbols, and the last token, which tells their size."""

    def read(name: str, kind: type) -> dict[str, Any]:
        return read_dictionary(folder / f"{name}_{release}.pkl", kind)

    tokens, medians = read("token_dictionary", int), read("gene_median_dictionary", float)
    mapping, symbols = read("ensembl_mapping_dict", str), read("gene_name_id_dict", str)
    names = names | {name.upper() for name in names} | {name.partition(".")[0].upper() for name in names}
    named = {table[name] for table in (mapping, symbols) for name in names if name in table}
    genes = sorted((names | named | {max(tokens, key=tokens.__getitem__)}) & set(tokens), key=tokens.__getitem__)
    place = {gene: i for i, gene in enumerate(genes)}
    special = {name: token for name, token in tokens.items() if name.startswith("<")}
    arrays: Arrays = {
        "release": np.array(release),
        "special_name": np.array(list(special), dtype="S"),
        "special_token": np.array(list(special.values()), dtype=np.int32),
        "gene": np.array(genes, dtype="S"),
        "token": np.array([tokens[gene] for gene in genes], dtype=np.int32),
        "median": np.array([medians[gene] for gene in genes]),
        "maps_to_itself": np.array([mapping.get(gene) == gene for gene in genes]),
    }
    for prefix, table in (("alias", mapping), ("symbol", symbols)):
        kept = {name: gene for name, gene in table.items() if name in names and gene in place and name != gene}
        arrays[prefix] = np.array(list(kept), dtype="S")
        arrays[f"{prefix}_gene"] = np.array([place[gene] for gene in kept.values()], dtype=np.int32)
    return arrays


def cut_sccello(reference: Path, out: Path) -> set[str]:
    """Write scCello's values; what the genes of its cells and tables are called is given back."""
    folder = reference / "fixtures" / "sccello"
    theirs, tensors = load(folder / "expected.npz"), load_file(folder / "checkpoint" / "model.safetensors")
    keep = theirs["cellxgene_keep"]
    per_token = ("tok_flat", "tok_rank_flat", "tok_expr_flat")
    per_cell = ("tok_full_length", "cell_counts", "cellxgene_keep")
    left_out = ("cls_last_no_mask", "nct_pretrain_names", "nct_target_names", "mk_label", "seq0_attentions")
    cut = {name: values for name, values in theirs.items() if name not in left_out and "lp_loss" not in name}
    cut |= cut_offsets(theirs, "tok_offsets", SCCELLO_CELLS, per_token)
    cut |= {name: theirs[name][SCCELLO_CELLS] for name in per_cell}
    cut["cellxgene_assay_id"] = theirs["cellxgene_assay_id"][
        [keep[:cell].sum() for cell in SCCELLO_CELLS if keep[cell]]
    ]
    cut |= {"cells": np.array(SCCELLO_CELLS), "embedded": np.array(SCCELLO_EMBEDDED)}
    cut["attention_layers"] = np.array(ATTENTION_LAYERS)
    cut["seq0_attentions"] = theirs["seq0_attentions"][ATTENTION_LAYERS]
    cut["grad_centroid"] = theirs["grad_centroid"][:N_PROTOTYPES]
    cut |= {name: theirs[name][:N_PROBED] for name in ("lp_weight", "lp_bias")}
    cut |= {name: values[:, :N_PROBED] for name, values in theirs.items() if name.startswith("lp_logits")}
    save(out / "expected.safetensors.xz", cut)
    cells = np.split(theirs["tok_flat"], theirs["tok_offsets"][1:-1])
    embedded = [cells[SCCELLO_CELLS[i]] for i in SCCELLO_EMBEDDED]
    labels = theirs["loss_labels"]
    tokens = [*embedded, theirs["mk_ids_flat"], theirs["drug_tok_flat"], theirs["loss_input_ids"].ravel()]
    tokens += [labels[labels >= 0], likely_genes(folder, tensors, theirs)]
    rows = {
        WORDS: np.concatenate(tokens),
        POSITIONS: range(max(map(len, [*embedded, *theirs["loss_input_ids"]]))),
        "learned_centroid.weight": range(len(tensors["ctgraph_sim"])),
    }
    save(out / "weights.safetensors.xz", cut_rows(tensors, rows))
    config = json.loads((folder / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    adata = cut_cells(folder / "input.h5ad", SCCELLO_CELLS, genes=True)
    save(out / "input.safetensors.xz", pack_cells(adata, ["organism", "assay", "is_primary_data"]))
    bulk = pd.read_csv(folder / "drug_expression.csv", index_col=0)
    save(
        out / "drug_expression.safetensors.xz", {"values": bulk.to_numpy(), "symbol": np.array(bulk.columns, dtype="S")}
    )
    table = pd.read_csv(reference / "sccello_data" / "vocab_id2name.csv", dtype=str, keep_default_na=False)
    table = table[table["name"].isin(bulk.columns)]
    save(out / "names.safetensors.xz", {name: table[name].to_numpy("S") for name in ("id", "name")})
    cut_ontology(folder / "cl_small.owl", out / "cl_small.tsv")
    return {*adata.var_names, *table["id"], *bulk.columns, *theirs["tie_genes"].astype(str)}


def likely_genes(folder: Path, tensors: Arrays, theirs: Arrays) -> NDArray[np.int64]:
    """Genes without which the softmax of the masked genes would be another one; the rows of others may be zero."""
    config = json.loads((folder / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    network = ScCelloNetwork(BertConfig.from_dict(config | {"type_vocab_size": 1}), gene_head=True).double()
    network.load_published({name: torch.from_numpy(values) for name, values in tensors.items()})
    assert network.gene_head is not None
    ids, labels = (torch.from_numpy(theirs[f"loss_{name}"].astype(np.int64)) for name in ("input_ids", "labels"))
    mean = torch.zeros(config["vocab_size"], dtype=torch.float64)
    unit = torch.nn.functional.normalize
    with torch.inference_mode():
        genes = unit(network.gene_head(network.word_embeddings.weight))
        for real in (torch.ones_like(ids, dtype=torch.bool), ids != 0):
            states = network(ids[real], real.sum(dim=1))
            masked = unit(network.gene_head(states[labels[real] >= 0]))
            mean = mean.maximum((masked @ genes.T / config["tau"]).softmax(dim=1).mean(dim=0))
    ascending = mean.argsort()
    return ascending[mean[ascending].cumsum(0) > NEGLIGIBLE].numpy()


def cut_ontology(path: Path, out: Path) -> None:
    """Write the terms and relations of an OWL file as a table, without names."""
    lines = []
    for element in ElementTree.parse(path).getroot():
        kind, parts = short(element.tag), {short(part.tag): part for part in element}
        if kind == "owl:Axiom":
            ends = (resource(parts[f"owl:annotated{end}"]) for end in ("Source", "Target"))
            lines.append("\t{}\t".join(ends).format(kind))
        elif kind == "owl:Class":
            term = resource(element)
            lines.append(f"{term}\t{kind}\t")
            lines += [
                f"{term}\t{short(part.tag)}\t{target(part)}"
                for part in element
                if "label" not in part.tag and short(part.tag) != "oboInOwl:id"
            ]
    out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def target(element: ElementTree.Element) -> str:
    """What a term relates to: a term, a text, ``property some term`` or ``genus and property some term``."""
    if element.text and element.text.strip():
        return element.text
    if not len(element):
        return resource(element)
    parts = {short(part.tag): part for part in element.iter()}
    genus = f"{resource(parts['rdf:Description'])} and " if "rdf:Description" in parts else ""
    return f"{genus}{resource(parts['owl:onProperty'])} some {resource(parts['owl:someValuesFrom'])}"


def short(tag: str) -> str:
    """Name of an element with the usual prefix of its namespace."""
    space, _, name = tag.removeprefix("{").partition("}")
    known = {"owl#": "owl", "rdf-syntax-ns#": "rdf", "rdf-schema#": "rdfs", "oboInOwl#": "oboInOwl", "obo/": "obo"}
    return next(f"{prefix}:{name}" for end, prefix in known.items() if space.endswith(end))


def resource(element: ElementTree.Element) -> str:
    """Id of the term that an element is or points to."""
    address = next(value for name, value in element.attrib.items() if short(name) in ("rdf:about", "rdf:resource"))
    return address.rpartition("/")[2].replace("_", ":", 1)


def cut_transcriptformer(reference: Path, out: Path) -> None:
    """Write the values of TranscriptFormer and ESM2-CE, which share a checkpoint and the inputs."""
    folder, checkpoint = (reference / "fixtures" / "transcriptformer" / name for name in ("", "checkpoint"))
    theirs = load(folder / "expected.npz")
    rows_of = {"sort": TF_ROWS["input_sort"], "raw": TF_ROWS["input_raw"]}
    cut = {"vocab": theirs["vocab"]}
    for name, values in theirs.items():
        if name not in cut and not name.startswith("cge"):
            kind = "sort" if name.startswith("sort_") else name[:3]
            cut[name] = values[rows_of.get(kind, TF_ROWS["input"])]
    save(out / "expected.safetensors.xz", cut | cut_states(theirs, "input"))
    tensors = torch.load(checkpoint / "model_weights.pt", weights_only=True)
    seen = [values.ravel() for name, values in cut.items() if name.endswith("tokens") and name != "aux_tokens"]
    rows = {"gene_embeddings.embedding.weight": np.concatenate([np.arange(N_SPECIALS), *seen])}
    save(out / "weights.safetensors.xz", cut_rows({name: tensor.numpy() for name, tensor in tensors.items()}, rows))
    for name, of_input in TF_ROWS.items():
        save(
            out / f"{name}.safetensors.xz",
            pack_cells(cut_cells(folder / f"{name}.h5ad", of_input), ["assay"], obs_names=True),
        )
    for which in ("upstream", "corrected"):
        theirs = load(folder / f"expected_ood_{which}.npz")
        whole = {
            name: values[TF_ROWS["input_ood"]]
            for name, values in theirs.items()
            if not name.startswith(("vocab", "cge"))
        }
        save(
            out / f"expected_ood_{which}.safetensors.xz",
            whole | {"vocab": theirs["vocab"]} | cut_states(theirs, "input_ood"),
        )
        used = whole["tokens"]  # of the corrected ones: gene i is token N_SPECIALS + i
    with h5py.File(folder / "ood_embedding.h5") as file:
        vectors = np.stack([file["arrays"][gene.decode()] for gene in theirs["vocab"][N_SPECIALS:]])
    save(
        out / "ood_embedding.safetensors.xz",
        cut_rows({"vectors": vectors}, {"vectors": used[used >= N_SPECIALS] - N_SPECIALS}),
    )
    shutil.copyfile(checkpoint / "config.json", out / "config.json")
    assays = json.loads((checkpoint / "vocabs" / "assay_vocab.json").read_text(encoding="utf-8"))
    (out / "assays.json").write_text(json.dumps(assays, indent=2) + "\n", encoding="utf-8")


def cut_states(theirs: Arrays, name: str) -> Arrays:
    """Keep the states of the genes of some cells."""
    kept = [cell for cell in TF_ROWS[name] if cell in TF_STATES[name]]
    at = np.isin(theirs["cge_cell_indices"], kept)
    cut = {array: theirs[array][at] for array in ("cge_embeddings", "cge_gene_names")}
    return cut | {"cge_cell_indices": np.searchsorted(TF_ROWS[name], theirs["cge_cell_indices"][at])}


def main() -> None:
    """Cut, check the size, and run the tests that compare our code with both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path, help="the folder that holds fixtures, dictionaries and sccello_data")
    reference, out = parser.parse_args().reference.resolve(), ROOT / "tests" / "data"
    for family in ("geneformer", "sccello", "transcriptformer"):
        shutil.rmtree(out / family, ignore_errors=True)
    names = cut_sccello(reference, out / "sccello")
    for version, more in (("v1", names), ("v2", set[str]())):
        Geneformer(reference, version).write(out / "geneformer" / version, more)
    cut_transcriptformer(reference, out / "transcriptformer")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{size:,} bytes")
    if size > MAX_BYTES:
        sys.exit(f"more than {MAX_BYTES:,} bytes: leave out more")
    environment = os.environ | {"SCFM_SHARED": str(reference.parent)}
    sys.exit(subprocess.run([sys.executable, "-m", "pytest", "tests/parity"], cwd=ROOT, env=environment).returncode)


if __name__ == "__main__":
    main()

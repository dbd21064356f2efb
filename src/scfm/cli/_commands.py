"""The commands, in the order in which ``scfm --help`` lists them."""

from __future__ import annotations

from scfm.cli._command import Command

__all__ = ["COMMANDS"]

COMMANDS = {
    "embed": Command(
        "Embed the cells of a file and write a copy of it with the embedding.",
        run="scfm.cli.verbs:embed",
        verb="scfm.tl:embed",
        example="scfm embed cells.h5ad --model scfm-mini --out embedded.h5ad",
        families="all",
        texts={
            "data": "file to read, block by block: .h5ad, .h5mu, a zarr store, or a tokenised dataset (.parquet, .arrow)",
        },
    ),
    "embed-store": Command(
        "Embed more cells than fit into memory, from one or more files, into a store; goes on where it stopped.",
        run="scfm.cli.stores:embed_store",
        verb="scfm.tl:embed_store",
        example='scfm embed-store "atlas/*.h5ad" --model tf-sapiens --out embeddings.zarr',
        positional=("source",),
        hidden=("client", "resume"),
        families="all",
        several=("source",),
        texts={
            "source": "files, patterns such as 'atlas/*.h5ad', folders of zarr stores, or addresses of zarr stores",
            "out": "folder of the store; one that is not complete is continued",
            "into_source": "add the embeddings to SOURCE at the end, to each file those of its cells",
        },
    ),
    "status": Command(
        "Say how much of a store of embeddings is done.",
        run="scfm.cli.stores:status",
        example="scfm status embeddings.zarr",
        positional=("store",),
    ),
    "merge": Command(
        "Add the embeddings of a complete store to the file of the cells.",
        run="scfm.cli.stores:merge",
        example="scfm merge embeddings.zarr cells.h5ad",
        positional=("store", "target"),
    ),
    "tokenize": Command(
        "Write cells as a tokenised dataset, like Geneformer's tokenizer.",
        run="scfm.cli.verbs:written",
        verb="scfm.tl:tokenize",
        example="scfm tokenize cells.h5ad --model geneformer-v2-104m --out tokens --obs-columns cell_type donor_id",
        hidden=(),
        families="rank_frame",
        texts={
            "model": "name or folder of a model that reads ranked genes, such as Geneformer or scCello",
            "out": "folder in the format of `datasets`, .arrow file or .parquet file to write",
            "overwrite": "replace OUT if it exists",
            "modality": "modality of an .h5mu file",
            "dictionaries": "files of gene tables, or folders that hold them, for a model that is not on this machine",
        },
    ),
    "gene-embeddings": Command(
        "Write the embedding of every gene in every cell to a zarr store.",
        run="scfm.cli.verbs:gene_embeddings",
        verb="scfm.tl:gene_embeddings",
        example="scfm gene-embeddings cells.h5ad --model tf-sapiens --out genes.zarr --genes CD3D LYZ",
        families="all",
        texts={
            "out": "zarr store to write: an AnnData with a row for each gene of each cell",
            "overwrite": "replace OUT if it exists",
        },
    ),
    "gene-context": Command(
        "Measure how much the state of each gene depends on the cell and write a copy of the file with the variances.",
        run="scfm.cli.verbs:with_model",
        verb="scfm.tl:gene_context",
        example="scfm gene-context cells.h5ad --model geneformer-v2-104m --groupby cell_type --out out.h5ad",
        families="all",
    ),
    "score": Command(
        "Score how likely cells are under a model and write a copy of the file with the scores.",
        run="scfm.cli.verbs:with_model",
        verb="scfm.tl:score",
        example="scfm score cells.h5ad --model tf-sapiens --out scored.h5ad",
        families="scorer",
    ),
    "marker-genes": Command(
        "Rank the genes that matter for the embedding of each group of cells, by masking.",
        run="scfm.cli.verbs:marker_genes",
        verb="scfm.tl:marker_genes",
        example="scfm marker-genes cells.h5ad --model scfm-mini --groupby cell_type --n-cells 20 --out out.h5ad --table m.csv",
        hidden=("copy",),
    ),
    "attention": Command(
        "Average how much genes attend to each other and write a copy of the file with the pairs.",
        run="scfm.cli.verbs:attention",
        verb="scfm.tl:attention",
        example="scfm attention cells.h5ad --model scfm-mini --groupby cell_type --genes LYZ --out out.h5ad",
        hidden=("copy",),
        families="attention_tiles",
    ),
    "predict-genes": Command(
        "Compute how probable genes are to the model, and what it would put in their place; writes a copy of the file.",
        run="scfm.cli.verbs:predict_genes",
        verb="scfm.tl:predict_genes",
        example="scfm predict-genes cells.h5ad --model geneformer-v2-104m --mask 0.15 --out out.h5ad",
        families="predictor",
    ),
    "perturb": Command(
        "Delete, overexpress, inhibit or activate genes in silico and write a copy of the file with the effects.",
        run="scfm.cli.verbs:perturb",
        verb="scfm.tl:perturb",
        example="scfm perturb cells.h5ad --model scfm-mini --states-key disease --start dcm --goal nf --out out.h5ad",
        required=(),
        families="rank_frame",
    ),
    "annotate": Command(
        "Annotate cells from an embedding in the file and labelled cells; writes a copy of the file.",
        run="scfm.cli.verbs:annotate",
        verb="scfm.tl:annotate",
        example="scfm annotate new.h5ad --reference atlas.h5ad --labels-key cell_type --use-rep X_sccello --out out.h5ad",
        texts={"data": "file with the embedding: .h5ad, .h5mu, or a zarr store; its matrix is not read"},
    ),
    "metrics": Command(
        "Score embeddings in a file: are cell types kept apart, and batches mixed?",
        run="scfm.cli.verbs:metrics",
        verb="scfm.metrics:score_embedding",
        example="scfm metrics cells.h5ad --use-rep X_scfm_mini X_pca --labels-key cell_type",
        required=(),
        hidden=("adata",),
        texts={
            "data": "file with the embeddings: .h5ad, .h5mu, or a zarr store; its matrix is not read",
            "out": "table to write, .csv or .tsv, besides showing it",
            "overwrite": "replace OUT if it exists",
            "modality": "modality of an .h5mu file",
        },
    ),
    "match": Command(
        "Report how the genes of a file match those of a model.",
        run="scfm.cli.verbs:match",
        verb="scfm.pp:match_genes",
        families="all",
        example="scfm match cells.h5ad --model tf-sapiens",
        texts={
            "modality": "modality of an .h5mu file",
            "dictionaries": "files of gene tables, or folders that hold them, for a model that is not on this machine",
        },
    ),
    "models": Command("List the models that are known by name.", run="scfm.cli.weights:models", positional=()),
    "fetch": Command(
        "Download the weights of models, check and convert them.",
        run="scfm.cli.weights:fetch",
        verb="scfm.model:fetch",
        example="scfm fetch geneformer-v2-104m tf-sapiens",
        positional=("models",),
        hidden=("model",),
    ),
    "convert": Command(
        "Convert published weights into one folder without pickles.",
        run="scfm.cli.verbs:written",
        verb="scfm.model:convert",
        example="scfm convert downloads/Geneformer --out geneformer",
        positional=("source",),
        texts={"out": "folder to write"},
    ),
    "cache": Command(
        "List, verify or prune what has been fetched.",
        run="scfm.cli.weights:cache",
        example="scfm cache prune tf-sapiens",
        positional=("action", "models"),
    ),
    "cellxgene": Command(
        "List datasets of CELLxGENE Discover, or fetch them into a folder.",
        run="scfm.cli.verbs:cellxgene",
        verb="scfm.datasets.cellxgene:list_datasets",
        example="scfm cellxgene --species human --tissue lung --out lung",
        positional=(),
        required=(),
        texts={
            "out": "folder to fetch the files into; without it they are listed",
            "species": 'species, as human, "Homo sapiens" or NCBITaxon:9606; several may be given, here and below',
            "tissue": "tissues, as lung or UBERON:0002048",
            "assay": 'assays, as "10x 3\' v3"',
            "disease": "diseases, as normal",
            "suspension_type": "what was sequenced: cell, nucleus or na",
        },
    ),
    "env": Command(
        "Show versions, devices and settings, for reports of problems.", run="scfm.cli._env:show", positional=()
    ),
}

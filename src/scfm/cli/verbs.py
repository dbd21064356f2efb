"""Commands that call a verb on a file; each is given the verb first."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

__all__ = [
    "annotate",
    "attention",
    "cellxgene",
    "embed",
    "evaluate",
    "gene_embeddings",
    "genes_of",
    "marker_genes",
    "match",
    "metrics",
    "model_of",
    "perturb",
    "predict_genes",
    "pretrain",
    "train",
    "with_model",
    "written",
]


def written(verb: Callable[..., Path], **arguments: Any) -> None:
    """Run a verb that writes a file or a folder."""
    print(f"wrote {verb(**arguments)}")


def model_of(model: str, family: str | None, dictionaries: list[str] | None) -> Any:
    """What a verb takes as model: the name, or the model itself where more is said of it."""
    from scfm.model import load

    return model if family is None and dictionaries is None else load(model, family=family, dictionaries=dictionaries)


def with_model(
    verb: Callable[..., Path],
    *,
    model: str,
    family: str | None = None,
    dictionaries: list[str] | None = None,
    **arguments: Any,
) -> Path:
    """Run a verb that takes a model and writes a file."""
    out = verb(model=model_of(model, family, dictionaries), **arguments)
    print(f"wrote {out}")
    return out


def embed(
    verb: Callable[..., Path],
    *,
    model: str,
    family: str | None = None,
    dictionaries: list[str] | None = None,
    scores: bool = False,
    **arguments: Any,
) -> None:
    """Embed cells, and score them.

    Parameters
    ----------
    scores
        Also add the log-likelihoods of the cells, as the command score does.
    """
    from scfm.model import load
    from scfm.tl import score

    if not scores:
        with_model(verb, model=model, family=family, dictionaries=dictionaries, **arguments)
        return
    loaded = load(model, family=family, dictionaries=dictionaries)
    if not loaded.implements("scorer"):
        msg = f"--scores: {loaded.card.id} has no likelihood; leave it out."
        raise TypeError(msg)
    out = verb(model=loaded, **arguments)
    known, own = signature(score).parameters, signature(verb).parameters
    shared = {name: value for name, value in arguments.items() if name in known or name not in own}
    shared |= {"data": out, "out": out, "overwrite": True, "modality": modality_in(out, arguments["modality"])}
    score(model=loaded, **shared)
    print(f"wrote {out}")


def modality_in(out: Path, modality: str | None) -> str | None:
    """The modality in the file written: an AnnData made of one modality of the data has none of its own."""
    from scfm._write import is_mudata_file

    return modality if is_mudata_file(out) else None


def gene_embeddings(
    verb: Callable[..., Path],
    *,
    model: str,
    family: str | None = None,
    dictionaries: list[str] | None = None,
    **arguments: Any,
) -> None:
    """Write the states of genes, and say how they are read."""
    out = with_model(verb, model=model, family=family, dictionaries=dictionaries, **arguments)
    print(f"In Python, anndata.read_zarr({str(out)!r}) reads it: a row for each gene of each cell.")


def genes_of(names: list[str] | None) -> Any:
    """What a verb takes as genes to perturb: of A+B a group."""
    return "all" if names is None else [tuple(name.split("+")) for name in names]


def perturb(
    verb: Callable[..., Any],
    *,
    model: str,
    family: str | None = None,
    dictionaries: list[str] | None = None,
    genes: list[str] | None = None,
    out: Path | None = None,
    **arguments: Any,
) -> None:
    """Perturb genes.

    Parameters
    ----------
    genes
        Genes to change, one by one; A+B changes both together. By default each gene that a cell expresses.
    """
    from scfm.model import load

    loaded = load(model, family=family, dictionaries=dictionaries)
    found = verb(model=loaded, genes=genes_of(genes), out=out, **arguments)
    if arguments["dry_run"]:
        print("{cells:,} cells, {sequences:,} sequences, {tokens:,} tokens, about {seconds:,.0f} s".format(**found))
    else:
        print(f"wrote {found}")


def pretrain(
    verb: Callable[..., Any], *, files: list[str] | None = None, example_config: bool = False, **arguments: Any
) -> None:
    """Train a model.

    Parameters
    ----------
    example_config
        Print a config with every key, what it means and its default, and exit.
    """
    if example_config:
        from scfm.train.example import example_config as example

        print(example(), end="")
        return
    found = verb(files or None, **arguments)
    if arguments["dry_run"]:
        text = (
            "{files} files, {cells:,} cells, {genes:,} genes, {parameters:,} parameters; {steps:,} steps of {tokens_per_step:,} "
            "tokens, {tokens:,} in all; about {minutes:,.0f} min and {gigabytes:.1f} GB"
        )
        print(text.format(**found, minutes=found["seconds"] / 60, gigabytes=found["bytes"] / 1e9))
    else:
        print(f"wrote {found}")


def train(verb: Callable[..., Path], *, labels_key: list[str], **arguments: Any) -> None:
    """Fine-tune a model, and show how good it is."""
    from scfm.train import load

    out = verb(labels_key=labels_key if len(labels_key) > 1 else labels_key[0], **arguments)
    report = load(out).report_
    if report is not None:
        print(report.dropna(axis=1, how="all").T.to_string(float_format="{:.3f}".format))
    print(f"wrote {out}")


def marker_genes(verb: Callable[..., Path], *, table: Path | None = None, **arguments: Any) -> None:
    """Rank genes.

    Parameters
    ----------
    table
        Table of the ranked genes of each group to write, too, .csv or .tsv.
    """
    from scfm._write import read_entry
    from scfm.metrics.ranking import table_of

    if table is not None:
        _check_table(table, "--table", overwrite=arguments["overwrite"])
        if arguments["groupby"] is None:
            msg = "--table ranks the genes of groups of cells: give --groupby, too."
            raise ValueError(msg)
    out = verb(**arguments)
    print(f"wrote {out}")
    if table is not None:
        ranked = table_of(read_entry(out, modality_in(out, arguments["modality"]), f"uns/{arguments['key_added']}"))
        _write_table(ranked.set_index("group"), table)
        print(f"wrote {table}: {ranked['names'].nunique():,} genes of {ranked['group'].nunique()} groups")


def attention(verb: Callable[..., Path], *, heads: list[str] | None = None, **arguments: Any) -> None:
    """Average attention.

    Parameters
    ----------
    heads
        mean or max over all heads, or the numbers of heads to average, from 0 on. By default mean.
    """
    words = heads or ["mean"]
    with_model(verb, heads=words[0] if words[0] in ("mean", "max") else list(map(int, words)), **arguments)


def predict_genes(verb: Callable[..., Path], *, mask: str = "each", **arguments: Any) -> None:
    """Predict genes.

    Parameters
    ----------
    mask
        each: one gene at a time; given: all --genes together; a share such as 0.15: so many genes of a cell together.
    """
    try:
        share = None if mask in ("each", "given") else float(mask)
    except ValueError:
        msg = f"--mask {mask} is not accepted; expected each, given, or a share such as 0.15."
        raise ValueError(msg) from None
    with_model(verb, mask=mask if share is None else share, **arguments)


def annotate(verb: Callable[..., Path], **arguments: Any) -> None:
    """Annotate cells and show how many have which label."""
    from scfm.read import open_container

    out = verb(**arguments)
    with open_container(out, modality_in(out, arguments["modality"])) as found:
        print(found.column(arguments["key_added"]).value_counts(dropna=False).to_string())
    print(f"wrote {out}")


def metrics(
    verb: Callable[..., pd.Series],
    data: str,
    *,
    use_rep: list[str],
    out: Path | None = None,
    overwrite: bool = False,
    modality: str | None = None,
    **arguments: Any,
) -> None:
    """Score embeddings.

    Parameters
    ----------
    use_rep
        Embeddings: one or several keys of obsm.
    """
    import pandas as pd

    from scfm._write import read_frame

    if out is not None:
        _check_table(out, "--out", overwrite=overwrite)
    cells = read_frame(Path(data), modality, obsm=use_rep, uns=())
    table = pd.DataFrame({rep: verb(cells, rep, **arguments) for rep in use_rep}).rename_axis(index="score")
    if out is not None:
        _write_table(table, out)
    print(table.round(4).to_string())


def evaluate(
    verb: Callable[..., pd.DataFrame],
    *,
    models: list[str],
    corpus: list[str] | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    **arguments: Any,
) -> None:
    """Score models.

    Parameters
    ----------
    models
        Models: names or folders.
    corpus
        Files on which the linear projection is made: those that the first model was trained on, and none that is scored.
    """
    if out is not None:
        _check_table(out, "--out", overwrite=overwrite)
    table = verb(models=models, corpus=corpus, **arguments)
    if out is not None:
        _write_table(table, out)
    print(table.round(3).to_string())


def match(verb: Callable[..., Any], **arguments: Any) -> None:
    """Report how genes match."""
    from scfm import settings

    settings.verbosity = "warning"  # the report is printed, and would be logged, too
    report = verb(**arguments)
    print(report)
    if report.examples_unmatched:
        print(f"not matched: {', '.join(report.examples_unmatched)}")


def cellxgene(
    verb: Callable[..., pd.DataFrame],
    *,
    ids: list[str] | None = None,
    out: Path | None = None,
    workers: int = 4,
    **filters: Any,
) -> None:
    """List datasets, or fetch them.

    Parameters
    ----------
    ids
        Datasets to fetch, instead of a search.
    workers
        Files that are fetched at a time.
    """
    from scfm.datasets.cellxgene import fetch

    filtered = any(value is not None for name, value in filters.items() if name != "primary")
    if ids is not None and (out is None or filtered):
        msg = "--ids names datasets to fetch: it goes with --out, and without filters."
        raise ValueError(msg)
    if filters["species"] is not None:  # transcriptformer download-data separates them by commas
        filters["species"] = [name.strip() for names in filters["species"] for name in names.split(",")]
    wanted: Any = ids
    if ids is None:
        wanted = verb(**filters)
        if out is None:
            print(wanted[["title", "species", "tissues", "assays", "cells", "bytes"]].to_string(max_colwidth=40))
            print(f"{len(wanted)} datasets, {wanted['cells'].sum():,} cells, {wanted['bytes'].sum():,} bytes")
            return
    assert out is not None
    for path in fetch(wanted, out, workers=workers):
        print(path)


def _check_table(table: Path, option: str, *, overwrite: bool) -> None:
    from scfm._paths import check_new

    if table.suffix not in (".csv", ".tsv"):
        msg = f"{option} {table} is no table that can be written; its name must end in .csv or .tsv."
        raise ValueError(msg)
    check_new(table, overwrite=overwrite, hint="pass --overwrite")


def _write_table(table: pd.DataFrame, path: Path) -> None:
    from scfm._paths import atomic

    with atomic(path) as work:
        table.to_csv(work, sep="\t" if path.suffix == ".tsv" else ",")

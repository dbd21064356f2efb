"""``scfm match``, ``scfm score`` and ``scfm cellxgene``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import SUPPRESS, ArgumentParser

from scfm.cli._common import log_progress
from scfm.cli.embed import family_options

__all__ = ["commands"]


def commands() -> dict[str, tuple[ArgumentParser, Any]]:
    """Parser and function of each command."""
    import scfm

    match = ArgumentParser(description="Report how the genes of a file match those of a model.")
    match.add_argument("source", type=Path, help="an .h5ad, .h5mu or .zarr file")
    match.add_argument("--model", type=str, required=True, help="id, alias, or folder; `scfm models` lists the ids")
    match.add_function_arguments(scfm.pp.match_genes, skip={"data", "model", "options"})
    score = ArgumentParser(description="Score how likely cells are under a model; writes a copy of the file.")
    score.add_argument("source", type=Path, help="an .h5ad, .h5mu or .zarr file; read block by block")
    score.add_argument("--model", type=str, required=True, help="id, alias, or folder; `scfm models` lists the ids")
    score.add_argument("--out", type=Path, required=True, help="file to write, with the suffix of the source")
    score.add_argument("--overwrite", action="store_true", help="replace OUT if it exists; it may be the source")
    score.add_argument("--device", type=str | None, default=None, help="cpu, cuda, cuda:1, mps; default: the fastest")
    score.add_argument("--dtype", type=str | None, default=None, help="float32, bfloat16 or float16")
    score.add_function_arguments(scfm.tl.score, skip={"data", "model", "device", "dtype", "copy", "options"})
    for name, (kind, text) in family_options(scored=True).items():
        score.add_argument(f"--{name}", type=kind, default=SUPPRESS, help=text)
    cellxgene = ArgumentParser(description="List datasets of CELLxGENE Discover, or fetch them into a folder.")
    cellxgene.add_function_arguments(scfm.datasets.cellxgene.list_datasets)
    cellxgene.add_argument("--ids", type=str, nargs="+", default=None, help="datasets to fetch, instead of a search")
    cellxgene.add_argument(
        "--out", type=Path | None, default=None, help="folder to fetch the files into; default: list"
    )
    cellxgene.add_argument("--workers", type=int, default=4, help="files that are fetched at a time")
    return {"match": (match, _match), "score": (score, _score), "cellxgene": (cellxgene, _cellxgene)}


def _match(source: Path, model: str, **arguments: Any) -> None:
    import scfm

    report = scfm.pp.match_genes(source, model, **arguments)
    print(report)
    if report.examples_unmatched:
        print(f"not matched: {', '.join(report.examples_unmatched)}")


def _score(source: Path, model: str, out: Path, *, overwrite: bool, key_added: str | None, **arguments: Any) -> None:
    import scfm
    from scfm._files import check_output, write_with_scores
    from scfm._keys import score_keys
    from scfm.model.arguments import Arguments
    from scfm.model.scores import scores_of

    log_progress()
    check_output(source, out, overwrite=overwrite)
    loaded = scfm.model.load(model)
    keys = score_keys(loaded.family, key_added)
    values, params = scores_of(loaded, source, Arguments.of(arguments))
    columns = dict(zip((keys.count_llh, keys.gene_llh), values.T, strict=True))
    write_with_scores(source, out, columns, keys.uns, params, arguments["modality"])
    print(f"wrote {out} with obs[{keys.count_llh!r}], obs[{keys.gene_llh!r}] and uns[{keys.uns!r}]")


def _cellxgene(ids: list[str] | None, out: Path | None, workers: int, **filters: Any) -> None:
    from scfm.datasets import cellxgene

    if ids is not None and (
        out is None or any(value is not None for name, value in filters.items() if name != "primary")
    ):
        msg = "--ids names datasets to fetch: it goes with --out, and without filters."
        raise ValueError(msg)
    if ids is None:
        found = cellxgene.list_datasets(**filters)
        if out is None:
            print(found[["title", "species", "tissues", "assays", "cells", "bytes"]].to_string(max_colwidth=40))
            print(f"{len(found)} datasets, {found['cells'].sum():,} cells, {found['bytes'].sum():,} bytes")
            return
    assert out is not None
    for path in cellxgene.fetch(found if ids is None else ids, out, workers=workers):
        print(path)

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
    match.add_function_arguments(scfm.pp.match_genes, skip={"data", "model"})
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
    return {"match": (match, _match), "score": (score, _score)}


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
    from scfm.tl._score import scores_of

    log_progress()
    check_output(source, out, overwrite=overwrite)
    loaded = scfm.model.load(model)
    keys = score_keys(loaded.family, key_added)
    values, params = scores_of(loaded, source, **arguments)
    columns = dict(zip((keys.count_llh, keys.gene_llh), values.T, strict=True))
    write_with_scores(source, out, columns, keys.uns, params, arguments["modality"])
    print(f"wrote {out} with obs[{keys.count_llh!r}], obs[{keys.gene_llh!r}] and uns[{keys.uns!r}]")

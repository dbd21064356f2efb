"""``scfm marker_genes`` and ``scfm metrics``, which write tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from scfm.cli._common import log_progress

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["commands"]


def commands() -> dict[str, tuple[ArgumentParser, Any]]:
    """Parser and function of each command."""
    import scfm

    markers = ArgumentParser(
        description="Rank the genes that matter for the embedding of each group of cells, by masking."
    )
    markers.add_argument("source", type=Path, help="an .h5ad, .h5mu or .zarr file")
    markers.add_argument(
        "--model", type=str, required=True, help="id, alias, or folder of a model trained with masked genes"
    )
    markers.add_argument("--groupby", type=str, required=True, help="column of obs")
    markers.add_argument("--out", type=Path, required=True, help="table to write, .csv or .tsv")
    markers.add_argument("--genes", type=str, nargs="+", default=None, help="names of the genes to mask; default: all")
    markers.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    skipped: set[str | int] = {"data", "model", "groupby", "genes", "device", "dtype", "key_added", "copy", "options"}
    markers.add_argument("--device", type=str | None, default=None, help="cpu, cuda, cuda:1, mps; default: the fastest")
    markers.add_argument("--dtype", type=str | None, default=None, help="float32, bfloat16 or float16")
    markers.add_function_arguments(scfm.tl.marker_genes, skip=skipped)
    metrics = ArgumentParser(description="Score embeddings in a file: are cell types kept apart, and batches mixed?")
    metrics.add_argument("source", type=Path, help="an .h5ad, .h5mu or .zarr file; its matrix is not read")
    metrics.add_argument("--use_rep", type=str, nargs="+", required=True, help="keys of obsm")
    metrics.add_argument(
        "--out", type=Path | None, default=None, help="table to write, .csv or .tsv, beside the screen"
    )
    metrics.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    metrics.add_argument("--modality", type=str | None, default=None, help="modality of a MuData file")
    metrics.add_function_arguments(scfm.metrics.score_embedding, skip={"adata", "use_rep"})
    return {"marker_genes": (markers, _marker_genes), "metrics": (metrics, _metrics)}


def _marker_genes(
    source: Path,
    model: str,
    groupby: str,
    out: Path,
    *,
    overwrite: bool,
    genes: list[str] | None,
    n_cells: int | None,
    seed: int,
    **arguments: Any,
) -> None:
    import scfm
    from scfm.get import table_of
    from scfm.model.arguments import Arguments
    from scfm.model.masking import score_markers

    log_progress()
    _check_table(out, overwrite=overwrite)
    *_, result = score_markers(
        scfm.model.load(model),
        source,
        Arguments.of(arguments),
        groupby=groupby,
        genes=genes,
        n_cells=n_cells,
        seed=seed,
    )
    table = table_of(result)
    _write_table(table.set_index("group"), out)
    print(f"wrote {out}: {table['names'].nunique():,} genes of {table['group'].nunique()} groups")


def _metrics(
    source: Path, use_rep: list[str], out: Path | None, modality: str | None, *, overwrite: bool, **arguments: Any
) -> None:
    import pandas as pd

    import scfm
    from scfm._files import read_frame

    if out is not None:
        _check_table(out, overwrite=overwrite)
    cells = {rep: read_frame(source, modality, obsm=rep, uns=()) for rep in use_rep}
    scores = {rep: scfm.metrics.score_embedding(part, rep, **arguments) for rep, part in cells.items()}
    table = pd.DataFrame(scores).rename_axis(index="score")
    if out is not None:
        _write_table(table, out)
    print(table.round(4).to_string())


def _check_table(out: Path, *, overwrite: bool) -> None:
    from scfm._paths import check_new

    if out.suffix not in (".csv", ".tsv"):
        msg = f"OUT must be a .csv or .tsv file, got {out}."
        raise ValueError(msg)
    check_new(out, overwrite=overwrite, hint="pass --overwrite")


def _write_table(table: pd.DataFrame, out: Path) -> None:
    from scfm._paths import atomic

    with atomic(out) as work:
        table.to_csv(work, sep="\t" if out.suffix == ".tsv" else ",")

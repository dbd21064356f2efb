"""``scfm annotate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from scfm.cli._common import log_progress

__all__ = ["commands"]


def commands() -> dict[str, tuple[ArgumentParser, Any]]:
    """Parser and function of the command."""
    from scfm.tl import annotate

    parser = ArgumentParser(description="Annotate cells from an embedding in the file; writes a copy of the file.")
    parser.add_argument(
        "source", type=Path, help="an .h5ad, .h5mu or .zarr file with the embedding; its matrix is not read"
    )
    parser.add_argument(
        "--reference",
        type=Path | None,
        default=None,
        help="a file of labelled cells with the same embedding; default: the cells of SOURCE that have a label",
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write, with the suffix of the source")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists; it may be the source")
    parser.add_argument(
        "--candidates", type=str, nargs="+", default=None, help="with --method ontology: types to choose from"
    )
    parser.add_argument(
        "--ontology", type=str | None, default=None, help="an .obo or .owl file of the Cell Ontology, or bundled"
    )
    parser.add_function_arguments(annotate, skip={"data", "reference", "candidates", "ontology", "copy"})
    return {"annotate": (parser, _annotate)}


def _annotate(
    source: Path,
    reference: Path | None,
    out: Path,
    *,
    overwrite: bool,
    labels_key: str,
    use_rep: str,
    modality: str | None,
    key_added: str,
    **arguments: Any,
) -> None:
    from scfm._files import check_output, read_frame, write_with_fields
    from scfm._keys import annotation_keys, colors_key, provenance_keys
    from scfm.tl import annotate

    log_progress()
    keys = annotation_keys(key_added)
    check_output(source, out, overwrite=overwrite)
    stored = (*provenance_keys(use_rep), colors_key(labels_key))
    mine = None if reference is not None and _is_mudata(reference) and not _is_mudata(source) else modality
    cells, known = read_frame(source, mine, obsm=use_rep, uns=stored), None
    if reference is not None:
        known = read_frame(reference, modality if _is_mudata(reference) else None, obsm=use_rep, uns=stored)
    annotate(cells, known, labels_key=labels_key, use_rep=use_rep, key_added=key_added, **arguments)
    columns = (keys.label, keys.score, keys.novelty, keys.term)
    obs = [name for name in columns if name in cells.obs]
    write_with_fields(source, out, cells, mine, obs=obs, obsm=keys.probabilities, uns=(keys.uns, keys.colors))
    print(cells.obs[keys.label].value_counts(dropna=False).to_string())
    print(f"wrote {out} with obs[{keys.label!r}] and obsm[{keys.probabilities!r}]")


def _is_mudata(path: Path) -> bool:
    return path.suffix == ".h5mu" or (path / "mod").is_dir()

"""The names under which results are stored, all in one place."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "AnnotationKeys",
    "Keys",
    "MARKER_GENES",
    "PARAMS",
    "PERTURB",
    "STATS",
    "ScoreKeys",
    "annotation_keys",
    "check_key",
    "colors_key",
    "provenance_keys",
    "result_keys",
    "score_keys",
]

PARAMS = "params"
MARKER_GENES = "marker_genes"
PERTURB = "perturb"
STATS = "stats"


class Keys(NamedTuple):
    """Where one result goes."""

    obsm: str
    """Key of the embeddings in ``obsm`` (and of gene embeddings in ``varm``)."""
    uns: str
    """Key of the provenance in ``uns``."""


def result_keys(family: str, key_added: str | None = None) -> Keys:
    """Name the slots as scanpy does: ``X_<family>`` and ``<family>``, or ``key_added`` for both.

    Raises
    ------
    ValueError
        If ``key_added`` is empty or holds a slash, which h5ad and zarr read as a nested group.
    """
    if key_added is None:
        return Keys(f"X_{family}", family)
    check_key(key_added)
    return Keys(key_added, key_added)


def provenance_keys(use_rep: str) -> tuple[str, str]:
    """Where in ``uns`` the provenance of ``obsm[use_rep]`` may be, by either way of :func:`result_keys`."""
    return use_rep, use_rep.removeprefix("X_")


def check_key(key_added: str) -> None:
    """Raise a ValueError for a name that cannot be stored."""
    if not key_added or "/" in key_added:
        msg = f"key_added={key_added!r} cannot be stored: give a name, and one without '/'."
        raise ValueError(msg)


class ScoreKeys(NamedTuple):
    """Where scores go."""

    count_llh: str
    """Column of ``obs`` with the log-likelihood of the counts."""
    gene_llh: str
    """Column of ``obs`` with the log-likelihood of the genes."""
    uns: str
    """Key of the provenance in ``uns``."""


def score_keys(family: str, key_added: str | None = None) -> ScoreKeys:
    """Name the columns ``<family>_count_llh`` and so on, with ``key_added`` in the place of the family.

    Raises
    ------
    ValueError
        As :func:`result_keys`.
    """
    name = family if key_added is None else result_keys(family, key_added).uns
    return ScoreKeys(f"{name}_count_llh", f"{name}_gene_llh", f"{name}_score")


class AnnotationKeys(NamedTuple):
    """Where an annotation goes."""

    label: str
    """Column of ``obs`` with the labels."""
    score: str
    """Column of ``obs`` with the probability of the label."""
    novelty: str
    """Column of ``obs`` with how unlike the reference a cell is."""
    term: str
    """Column of ``obs`` with the id of the label in an ontology."""
    probabilities: str
    """Key in ``obsm`` of the probabilities of all labels."""
    colors: str
    """Key in ``uns`` of the colours of the labels."""
    uns: str
    """Key of the provenance in ``uns``."""


def annotation_keys(key_added: str) -> AnnotationKeys:
    """Name the slots of an annotation after the column of its labels.

    Raises
    ------
    ValueError
        As :func:`result_keys`.
    """
    check_key(key_added)
    return AnnotationKeys(
        label=key_added,
        score=f"{key_added}_score",
        novelty=f"{key_added}_novelty",
        term=f"{key_added}_cl",
        probabilities=f"{key_added}_probabilities",
        colors=colors_key(key_added),
        uns=key_added,
    )


def colors_key(column: str) -> str:
    """Where in ``uns`` scanpy keeps the colours of a column of ``obs``."""
    return f"{column}_colors"

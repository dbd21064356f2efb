"""The names under which results are stored, all in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    "ATTENTION",
    "AnnotationKeys",
    "CONTROL",
    "GENE_CONTEXT",
    "GROUPS",
    "Keys",
    "MARKER_GENES",
    "ON_GENES",
    "PARAMS",
    "PERTURB",
    "PREDICTED",
    "PREDICT_GENES",
    "RANDOM_SHIFTS",
    "EMBEDDINGS",
    "STATES",
    "STATS",
    "STATS_PARAMS",
    "ScoreKeys",
    "annotation_keys",
    "check_key",
    "check_own",
    "colors_key",
    "made_by",
    "provenance_keys",
    "result_keys",
    "score_keys",
    "state_endings",
    "stored_under",
]

PARAMS = "params"
GENE_CONTEXT = "gene_context"
PREDICT_GENES, PREDICTED = "predict_genes", "predicted"
"""Default name of predictions, and the table of the most probable genes in ``uns``."""
ATTENTION, GROUPS = "attention", "groups"
"""Default name of attention, and the entry in ``uns`` with that of groups of cells."""
MARKER_GENES = "marker_genes"
PERTURB = "perturb"
STATS, STATS_PARAMS = "stats", "stats_params"
"""Entries of a perturbation in ``uns``: what the tests found, and how they were made."""
STATES, EMBEDDINGS, RANDOM_SHIFTS = "states", "embeddings", "random_shifts"
"""Entries of a perturbation in ``uns``: embeddings of the states, of cells and copies, and mean shifts towards random states."""
CONTROL = "control"
"""Name of cells as they are among those that are perturbed."""
FUNCTION = "function"
"""Entry of ``params`` that names the function whose result it describes."""
MAX_BYTES = 200
"""Of a name, which is that of a folder in a zarr store, some with an ending."""


ON_GENES = ("", "_sd", "_n")
"""Endings of the fields of effects on genes: means, standard deviations, numbers of cells."""


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
    TypeError, ValueError
        As :func:`check_key`.
    """
    if key_added is None:
        return Keys(f"X_{family}", family)
    check_key(key_added)
    return Keys(key_added, key_added)


def provenance_keys(use_rep: str) -> tuple[str, str]:
    """Where in ``uns`` the provenance of ``obsm[use_rep]`` may be, by either way of :func:`result_keys`."""
    return use_rep, use_rep.removeprefix("X_")


def check_key(key_added: object, called: str = "key_added") -> None:
    """Find out whether a name can be stored, by the same rule whether that is in memory, in h5ad or in zarr.

    Parameters
    ----------
    key_added
        The name.
    called
        The argument that it comes from, for messages.

    Raises
    ------
    TypeError
        If it is no string.
    ValueError
        If it is empty, longer than 200 bytes, starts with a dot or two underscores, has spaces around it, holds slashes,
        backslashes or characters that cannot be printed, or is a name that the formats keep for themselves.
    """
    if not isinstance(key_added, str):
        msg = f"{called} must be a string, got {key_added!r} ({type(key_added).__name__})."
        raise TypeError(msg)
    named = key_added.strip() == key_added != "" and not key_added.startswith((".", "__"))
    plain = key_added.isprintable() and not {"/", "\\"}.intersection(key_added)
    if not (named and plain and len(key_added.encode()) <= MAX_BYTES) or key_added in ("_index", "zarr.json"):
        msg = (
            f"{called}={key_added!r} cannot be stored: give a name of at most {MAX_BYTES} bytes without '/', backslashes, "
            "line breaks or spaces around it, that does not start with '.' or '__'."
        )
        raise ValueError(msg)


def made_by(function: str) -> dict[str, str]:
    """The entry of ``params`` by which a function of ``scfm.tl`` knows its own results again."""
    return {FUNCTION: f"scfm.tl.{function}"}


def stored_under(uns: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What a verb stored under a key of ``uns``; empty where there is nothing, or something of another kind."""
    found = uns.get(key)
    return found if isinstance(found, Mapping) else {}


def check_own(function: str, taken: Sequence[str], stored: object) -> None:
    """Find out whether what a function of ``scfm.tl`` would overwrite is an earlier result of its own.

    Parameters
    ----------
    function
        Name of the function.
    taken
        Places of its results that hold something, such as ``obsm['X_scfm_mini']``.
    stored
        What is in ``uns`` in the place of its provenance.

    Raises
    ------
    ValueError
        If something is there that it did not write.
    """
    params = stored.get(PARAMS) if isinstance(stored, Mapping) else None
    own = isinstance(params, Mapping) and params.get(FUNCTION) == made_by(function)[FUNCTION]
    if taken and not own:
        msg = (
            f"The result would overwrite {' and '.join(taken)}, which scfm.tl.{function} did not write. Choose another name "
            "by key_added=, or delete it first."
        )
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
    TypeError, ValueError
        As :func:`check_key`.
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
    TypeError, ValueError
        As :func:`check_key`.
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


def state_endings(n_states: int, effect: str = "embedding") -> list[str]:
    """Endings of the fields with the effects of a perturbation: a field for each state, or one without any."""
    if not n_states:
        return ["_llh" if effect == "likelihood" else ""]
    return ["_start", "_goal", *(f"_alternative_{i}" for i in range(1, n_states - 1))]


def colors_key(column: str) -> str:
    """Where in ``uns`` scanpy keeps the colours of a column of ``obs``."""
    return f"{column}_colors"

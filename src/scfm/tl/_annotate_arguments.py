"""Arguments of tl.annotate that do not go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["check_choices", "check_source", "checked_names"]


def checked_names(candidates: Sequence[str]) -> list[str]:
    """Candidates as a list; a ValueError for fewer than two, or one that is there twice."""
    names = [str(name) for name in candidates]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or len(names) < 2:
        msg = f"candidates must be different types, two at least; found {repeated or names}."
        raise ValueError(msg)
    return names


def check_choices(
    method: str,
    candidates: list[str] | None,
    ontology: object,
    reject: float | None,
    batch_key: str | None,
    metric: str | None,
) -> None:
    """A ValueError for arguments that another method has."""
    if method == "ontology" and (candidates is None or ontology is None):
        msg = (
            "method='ontology' needs candidates=, the types to choose from, and ontology=, such as 'bundled' or what "
            "scfm.ontology.read_ontology returns."
        )
        raise ValueError(msg)
    if method != "ontology" and candidates is not None:
        msg = f"candidates= is for method='ontology'; {method!r} chooses from the labels of the reference."
        raise ValueError(msg)
    if method != "knn" and metric is not None:
        msg = f"metric={metric!r} is for method='knn'; {method!r} has none to choose."
        raise ValueError(msg)
    if reject is not None and not 0 < reject < 1:
        msg = f"reject={reject} must lie between 0 and 1: the share of known cells that may be rejected."
        raise ValueError(msg)
    if batch_key is not None and reject is None:
        msg = f"batch_key={batch_key!r} says what is left out to find the limit of rejection; give reject=, too."
        raise ValueError(msg)


def check_source(method: str, use_rep: str | None, of_counts: Mapping[str, Any]) -> None:
    """A ValueError unless an embedding is named, or for a model that is trained the model."""
    given = [name for name, value in of_counts.items() if value is not None]
    if method == "finetune":
        if use_rep is not None:
            msg = f"use_rep={use_rep!r} names an embedding, and method='finetune' trains a model on counts: leave use_rep out."
            raise ValueError(msg)
        if of_counts["model"] is None:
            msg = "method='finetune' needs model=, the one that is trained on the reference."
            raise ValueError(msg)
    elif given:
        msg = f"{given[0]}= is for method='finetune'; {method!r} reads an embedding that is there: name it by use_rep=."
        raise ValueError(msg)
    elif use_rep is None:
        msg = f"method={method!r} needs use_rep=, the key in obsm of an embedding that scfm.tl.embed made."
        raise ValueError(msg)

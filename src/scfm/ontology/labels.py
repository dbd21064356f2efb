"""Map labels to terms."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfm._text import some

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["LabelIndex"]

MAX_REPORTED = 10
MAX_CLOSEST = 3


class LabelIndex:
    """Look up ids, ids of replaced terms, names and exact synonyms, in this order of precedence; case is ignored.

    Parameters
    ----------
    names
        Id of each term → its name.
    synonyms
        Id → exact synonyms.
    replaced
        Id of an obsolete or merged term → ids that replace it, which may be replaced themselves.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        synonyms: Mapping[str, Sequence[str]],
        replaced: Mapping[str, Sequence[str]],
    ) -> None:
        self._names, self._replaced = names, replaced
        pairs: tuple[Iterable[tuple[str, Iterable[str]]], ...] = (  # later kinds take precedence
            ((synonym, [id]) for id, texts in synonyms.items() for synonym in texts),
            ((name, [id]) for id, name in names.items()),
            ((old, self._replacements(old)) for old in replaced),
            ((id, [id]) for id in names),
        )
        self._candidates: dict[str, set[str]] = {}
        for kind in pairs:
            found: dict[str, set[str]] = {}
            for label, ids in kind:
                found.setdefault(_fold(label), set()).update(ids)
            self._candidates |= found

    def find(self, labels: Iterable[str]) -> NDArray[np.str_]:
        """Map labels to ids; see :meth:`CellOntology.resolve <scfm.ontology.CellOntology.resolve>`."""
        if isinstance(labels, str):
            msg = f"labels is one string; pass a list of labels: resolve([{labels!r}])."
            raise TypeError(msg)
        given = list(labels)
        n_missing = int(pd.isna(pd.Series(given, dtype=object)).sum())
        if n_missing:
            msg = f"{n_missing} of {len(given)} labels are missing (NaN or None); remove them."
            raise ValueError(msg)
        texts = [str(label) for label in given]
        candidates = {text: self._candidates.get(_fold(text)) for text in dict.fromkeys(texts)}
        ids = {text: next(iter(found)) for text, found in candidates.items() if found and len(found) == 1}
        if len(ids) < len(candidates):
            problems = [f"{text!r} {self._problem(text)}" for text in candidates if text not in ids]
            msg = (
                f"{len(problems)} of {len(candidates)} labels do not name one term of this ontology: "
                f"{some(problems, MAX_REPORTED, '; ')}. Give ids (CL:0000084), names or exact synonyms of terms."
            )
            raise ValueError(msg)
        return np.array([ids[text] for text in texts], dtype=np.str_)

    def _replacements(self, old: str) -> set[str]:
        """Follow replacements to terms of this ontology."""
        found, seen, queue = set(), {old}, [old]
        while queue:
            for id in self._replaced.get(queue.pop(), ()):
                if id in self._names:
                    found.add(id)
                elif id not in seen:
                    seen.add(id)
                    queue.append(id)
        return found

    def _problem(self, text: str) -> str:
        found = self._candidates.get(_fold(text))
        if found:
            return f"is ambiguous: {', '.join(self._show(id) for id in sorted(found))}"
        if found is not None:
            return "is obsolete, and no term of this ontology replaces it"
        close = get_close_matches(_fold(text), self._candidates, n=2 * MAX_CLOSEST)
        ids = list(dict.fromkeys(id for label in close for id in sorted(self._candidates[label])))[:MAX_CLOSEST]
        return f"is unknown (closest: {', '.join(map(self._show, ids))})" if ids else "is unknown"

    def _show(self, id: str) -> str:
        return f"{self._names[id]!r} {id}"


def _fold(label: str) -> str:
    return " ".join(label.split()).casefold()

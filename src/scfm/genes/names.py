"""From the names that a user gives to the columns of a data set."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfm.genes.align import token_finder
from scfm.genes.features import ids_of, name_columns
from scfm.genes.first import first_index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scfm.genes.vocabulary import Vocabulary

__all__ = ["columns_of", "find_columns"]


def columns_of(
    genes: str | Sequence[str] | None, var: pd.DataFrame, tokens: NDArray[np.int32], vocabulary: Vocabulary
) -> NDArray[np.intp]:
    """Find genes in a data set by any of their names.

    A name is looked for in ``var_names``, then in the other columns of ``var`` that usually hold ids or symbols, then
    among the ids, aliases and symbols that the model knows, of which the data may have another one.

    Parameters
    ----------
    genes
        Names; all genes of the data if ``None``.
    var
        Annotation of the genes of the data.
    tokens
        Token of each of them, −1 for none, shape ``(n_vars,)``.
    vocabulary
        The genes of the model.

    Returns
    -------
    Position of each gene in ``var``, of several the first.

    Raises
    ------
    KeyError
        If a name is not found; the message lists the names that are close to it.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from scfm.genes import Vocabulary, columns_of
    >>> vocabulary = Vocabulary(np.array(["ENSG00000167286"]), np.array([2], "i4"), symbols={"CD3D": "ENSG00000167286"})
    >>> var = pd.DataFrame(index=["ACTB", "ENSG00000167286"])
    >>> columns_of(["CD3D", "ACTB"], var, np.array([-1, 2], "i4"), vocabulary)
    array([1, 0])
    """
    if genes is None:
        return np.arange(len(var))
    wanted = [genes] if isinstance(genes, str) else list(genes)
    found = find_columns(wanted, var, tokens, vocabulary)
    if (found < 0).any():
        find = token_finder(vocabulary)
        raise KeyError(_not_found({str(wanted[at]): find(str(wanted[at])) for at in np.flatnonzero(found < 0)}, var))
    return found


def find_columns(
    genes: Sequence[str], var: pd.DataFrame, tokens: NDArray[np.int32], vocabulary: Vocabulary
) -> NDArray[np.intp]:
    """As :func:`columns_of`, but −1 for a name that is not found."""
    wanted = np.array(genes, dtype=object)
    found = np.full(len(wanted), -1, np.intp)
    for names in _names_of(var):
        missing = (found < 0) & (wanted != "")
        found[missing] = first_index(names, pd.Index(wanted[missing]))
    missing = found < 0
    if missing.any():
        find = token_finder(vocabulary)
        token_of = pd.Index([find(str(name)) for name in wanted[missing]])
        found[missing] = np.where(token_of >= 0, first_index(pd.Index(tokens), token_of), -1)
    return found


def _names_of(var: pd.DataFrame) -> list[pd.Index]:
    return [var.index, *(pd.Index(ids_of(var, key), dtype=object) for key in name_columns(var))]


def _not_found(lost: dict[str, int], var: pd.DataFrame) -> str:
    """Say which names were not found; with their tokens, −1 for one that the model does not know either."""
    name, token = next(iter(lost.items()))
    known = {str(one) for names in _names_of(var) for one in names}
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.7)
    what = " (which the model knows)" if token >= 0 else ""
    hint = f"; close to it: {', '.join(map(repr, close))}" if close else ""
    return (
        f"{len(lost)} genes are not in the data by any of their names, such as {name!r}{what}{hint}. "
        f"var_names look like {list(var.index[:3])}."
    )

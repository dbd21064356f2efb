"""The first of several genes of one name, which stands for the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["first_index", "first_of_each"]


def first_index(names: pd.Index, wanted: pd.Index) -> NDArray[np.intp]:
    """Where each of the wanted names stands first among all, −1 where it does not; ``names`` may repeat.

    Examples
    --------
    >>> import pandas as pd
    >>> from scfm.genes import first_index
    >>> first_index(pd.Index(["CD3D", "LYZ", "CD3D"]), pd.Index(["LYZ", "CD3D", "NKG7"])).tolist()
    [1, 0, -1]
    """
    first = np.flatnonzero(~names.duplicated())
    at = names[first].get_indexer(wanted)
    return np.where(at >= 0, first[at], -1) if len(first) else at


def first_of_each(tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Tokens of columns, with −2 for every column with a token but the first of it."""
    first = np.zeros(len(tokens), bool)
    first[np.unique(tokens, return_index=True)[1]] = True
    return np.where(first | (tokens < 0), tokens, np.int32(-2)).astype(np.int32)

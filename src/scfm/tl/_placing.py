"""Where the effects of perturbations go in an AnnData."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm._keys import ON_GENES, state_endings
from scfm._write import Results
from scfm.genes import first_index

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

    from scfm.tasks import Effect
    from scfm.tl._gene_effects import GeneEffects

    Table = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
    """Cell, tag and effects of each perturbation, as :meth:`scfm.tasks.effects.Effects.table` gives them."""

__all__ = ["Placing", "digest", "places"]


def places(key: str, n_states: int, effect: Effect = "embedding") -> list[tuple[str, str]]:
    """Slot and key of each field that the effects of a perturbation may have, but for ``uns``."""
    rows = [(slot, key + ending) for slot in ("layers", "obsm") for ending in state_endings(n_states, effect)]
    genes = [
        (slot, f"{key}{name}{ending}") for slot, name in (("varp", ""), ("varm", "_effects")) for ending in ON_GENES
    ]
    return [*rows, ("obs", f"{key}_n"), *genes]


def digest(names: pd.Index) -> str:
    """Hash of names, in their order."""
    return sha256("\n".join(names.astype(str)).encode()).hexdigest()


@dataclass(frozen=True)
class Placing:
    """Fields and names of effects: single genes of ``var`` in ``layers``, all others in tables in ``obsm``."""

    key: str
    n_states: int
    """States that effects are measured on; 0 for none."""
    effect: Effect
    tokens: NDArray[np.int32]
    """Token of each gene of ``var``, −1 for none."""
    tags: NDArray[np.int64]
    """Tags that there may be, sorted."""
    names: list[str]
    """What they are called."""
    single: NDArray[np.int64]
    """Token of the gene that is changed alone, −1 where several are."""
    grouped: bool
    """Whether tables have columns for all tags, computed in any cell or not."""

    @property
    def endings(self) -> list[str]:
        """Of the names of the fields, one for each effect."""
        return state_endings(self.n_states, self.effect)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Placing:
        """Make one of what :meth:`to_json` gives."""
        kinds = {"tokens": np.int32, "tags": np.int64, "single": np.int64}
        return cls(**values | {name: np.asarray(values[name], kind) for name, kind in kinds.items()})

    def to_json(self) -> dict[str, Any]:
        """The fields as lists."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: getattr(value, "tolist", lambda value=value: value)() for name, value in values.items()}

    def nothing(self) -> Table:
        """A table without entries."""
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, len(self.endings)), np.float32)

    @cached_property
    def columns(self) -> NDArray[np.intp]:
        """Column of ``var`` of each tag, −1 for those that have one of their own in a table."""
        found = first_index(pd.Index(self.tokens), pd.Index(self.single))
        return np.where(self.single >= 0, found, -1)

    def results(self, table: Table, obs_names: pd.Index) -> Results:
        """All effects of all cells."""
        rows, tags, _ = table
        n = np.bincount(rows, minlength=len(obs_names))
        layers, obsm = self.layers(table, len(obs_names)), self.tables(table, np.unique(tags), obs_names)
        return Results(obs={f"{self.key}_n": n}, obsm=obsm, layers=layers)

    def layers(self, table: Table, n_obs: int) -> dict[str, sparse.csr_matrix]:
        """Effects of single genes on the first ``n_obs`` cells."""
        from scipy import sparse

        if not (self.columns >= 0).any():
            return {}
        rows, tags, effects = table
        at = self.columns[np.searchsorted(self.tags, tags)]
        kept, shape = at >= 0, (n_obs, len(self.tokens))
        return {
            self.key + ending: sparse.csr_matrix((values[kept], (rows[kept], at[kept])), shape=shape)
            for ending, values in zip(self.endings, effects.T, strict=True)
        }

    def tables(self, table: Table, seen: NDArray[np.int64], obs_names: pd.Index) -> dict[str, pd.DataFrame]:
        """All other effects; ``seen`` are the tags that were computed."""
        named = self.named(seen)
        rows, tags, effects = table
        kept = np.isin(tags, self.tags[named])
        place = (rows[kept], np.searchsorted(self.tags[named], tags[kept]))
        found = {}
        for ending, values in zip(self.endings if len(named) else (), effects.T, strict=False):
            entries = np.full((len(obs_names), len(named)), np.nan, np.float32)
            entries[place] = values[kept]
            found[self.key + ending] = pd.DataFrame(entries, index=obs_names, columns=self._called(named))
        return found

    def named(self, seen: NDArray[np.int64]) -> NDArray[np.intp]:
        """Positions of the tags that have a column in a table."""
        return np.flatnonzero((self.columns < 0) & (self.grouped | np.isin(self.tags, seen)))

    def on_genes(
        self, gene_effects: GeneEffects, seen: NDArray[np.int64], var_names: pd.Index
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Effects of genes on genes for ``varp``, of all else on genes for ``varm``."""
        from scipy import sparse

        affected = first_index(pd.Index(self.tokens), pd.Index(gene_effects.tokens))
        n, named = len(var_names), self.named(seen)
        varm, varp = {}, {}
        for ending, matrix in gene_effects.matrices().items():
            entries = matrix.tocoo()
            row, column = self.columns[entries.row], affected[entries.col]
            kept = (row >= 0) & (column >= 0)
            if (self.columns >= 0).any():
                varp[self.key + ending] = sparse.csr_matrix(
                    (entries.data[kept], (row[kept], column[kept])), shape=(n, n)
                )
            if len(named):
                own = matrix[named].tocoo()
                kept = affected[own.col] >= 0
                table = np.full((n, len(named)), np.nan, np.float32)
                table[affected[own.col][kept], own.row[kept]] = own.data[kept]
                varm[f"{self.key}_effects{ending}"] = pd.DataFrame(table, index=var_names, columns=self._called(named))
        return varm, varp

    def _called(self, named: NDArray[np.intp]) -> list[str]:
        return [self.names[position] for position in named]

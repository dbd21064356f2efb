"""The genes a model knows: token, expression median and other names of each."""

from __future__ import annotations

import hashlib
import reprlib
from dataclasses import dataclass, field, fields
from functools import cached_property
from io import BytesIO
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm._paths import check_regular
from scfm.genes.species import ensembl_species, is_species

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["ALIASES_FILE", "MAX_TOKEN", "VOCABULARY_FILE", "Vocabulary", "gene_array", "vocabulary_files"]

VOCABULARY_FILE = "vocabulary.tsv"
ALIASES_FILE = "aliases.tsv"
MAX_NAME = 256
MAX_TOKEN = 2**31 - 2
_COLUMN_TYPES = {"int64": np.int64, "float64": np.float64, "str": str}
_TYPE_OF_KIND = {"i": "int64", "u": "int64", "f": "float64", "U": "str"}


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Genes, tokens and names of a model.

    Parameters
    ----------
    genes
        Gene ids (Ensembl), shape ``(n_genes,)``, in token order.
    tokens
        Token id of each gene, shape ``(n_genes,)``, int32, strictly increasing.
    medians
        Non-zero median expression of each gene over the pretraining corpus (counts per 10,000), shape
        ``(n_genes,)``, float64, finite and positive; ``None`` for a model that needs none.
    special_tokens
        Ids of the tokens that are no genes, such as ``{"<pad>": 0, "<mask>": 1}``.
    mapping
        Published table of other ids (retired Ensembl ids, upper-case symbols) to gene ids of this vocabulary.
    symbols
        Gene symbols to gene ids of this vocabulary; may repeat names of ``mapping``.
    species
        Species of the gene ids, as ``"human"``.
    columns
        What else the model knows of each gene, as its chromosome, its position or its mean expression: arrays of shape
        ``(n_genes,)`` by name, of integers, floats or text.

    Raises
    ------
    ValueError
        If lengths differ, tokens are not increasing and distinct from the special ones, a median is not positive, a
        column holds something else than numbers or text, or a name is longer than 256 characters or not printable.
    """

    genes: NDArray[np.str_]
    tokens: NDArray[np.int32]
    medians: NDArray[np.float64] | None = None
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    mapping: Mapping[str, str] = field(default_factory=dict)
    symbols: Mapping[str, str] = field(default_factory=dict)
    species: str = "human"
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("special_tokens", "mapping", "symbols"):
            _check_names(getattr(self, name))
        _check_names(self.genes.tolist(), least=1)
        n_medians = len(self.genes) if self.medians is None else len(self.medians)
        if not len(self.genes) == len(self.tokens) == n_medians > 0:
            msg = f"{len(self.genes)} genes, {len(self.tokens)} tokens and {n_medians} medians: need as many of each, and one at least."
            raise ValueError(msg)
        if len(set(self.special_tokens.values())) < len(self.special_tokens):
            msg = f"Two of the special tokens {dict(self.special_tokens)} have the same id."
            raise ValueError(msg)
        negative = [name for name, token in self.special_tokens.items() if token < 0]
        if negative:
            msg = f"The special token {negative[0]} has a negative id."
            raise ValueError(msg)
        if np.any(self.tokens[1:] <= self.tokens[:-1]) or self.tokens[0] < 0 or len(set(self.genes)) != len(self.genes):
            msg = "Gene ids must be unique and tokens must increase from gene to gene."
            raise ValueError(msg)
        clash = set(self.special_tokens.values()) & set(self.tokens.tolist())
        if clash:
            msg = f"Tokens {sorted(clash)[:5]} are used for a gene and for a special token."
            raise ValueError(msg)
        bad = np.zeros(0, bool) if self.medians is None else ~(np.isfinite(self.medians) & (self.medians > 0))
        if bad.any():
            msg = f"{int(bad.sum())} gene medians are not positive numbers, the first for {self.genes[bad][0]}."
            raise ValueError(msg)
        columns = {name: self._checked_column(name, values) for name, values in self.columns.items()}
        object.__setattr__(self, "columns", MappingProxyType(columns))
        for name in ("special_tokens", "mapping", "symbols"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self) -> tuple[Any, ...]:
        values = (getattr(self, one.name) for one in fields(self))
        # the views of the tables cannot be pickled
        return type(self), tuple(dict(value) if isinstance(value, MappingProxyType) else value for value in values)

    def _checked_column(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        _check_names([name], least=1)
        values = np.asarray(values)
        if ":" in name or values.shape != self.genes.shape or values.dtype.kind not in _TYPE_OF_KIND:
            msg = (
                f"The column {name!r} has the shape {values.shape} and the dtype {values.dtype}; it must hold a number or a "
                f"text for each of the {len(self.genes)} genes, and its name no colon."
            )
            raise ValueError(msg)
        if values.dtype.kind == "U":
            _check_names(values.tolist())
        return values.astype(_COLUMN_TYPES[_TYPE_OF_KIND[values.dtype.kind]])

    @property
    def size(self) -> int:
        """Rows that the word embedding of a fitting model has: the largest token + 1."""
        return int(max(self.tokens[-1], *self.special_tokens.values(), 0)) + 1

    @cached_property
    def token_of(self) -> dict[str, int]:
        """Token of each gene id."""
        return dict(zip(self.genes.tolist(), self.tokens.tolist(), strict=True))

    @cached_property
    def sha256(self) -> str:
        """Hash of the gene ids in the order of their tokens, which tells vocabularies apart."""
        return hashlib.sha256("\n".join(self.genes.tolist()).encode()).hexdigest()

    @cached_property
    def _species_of_ids(self) -> frozenset[str]:
        return frozenset(map(ensembl_species, self.genes.tolist()))

    def knows(self, species: str) -> bool:
        """Whether genes of a species are among those of the model, by their ids or by :attr:`species`."""
        return species in self._species_of_ids or is_species(species, self.species)

    @cached_property
    def median_of_token(self) -> NDArray[np.float64]:
        """Median by token id, NaN for special tokens and without medians, shape ``(size,)``."""
        by_token = np.full(self.size, np.nan)
        if self.medians is not None:
            by_token[self.tokens] = self.medians
        return by_token

    @cached_property
    def symbol_of(self) -> dict[str, str]:
        """Main symbol of each gene id, where one is known (the first listed)."""
        symbols: dict[str, str] = {}
        for symbol, gene in self.symbols.items():
            symbols.setdefault(gene, symbol)
        return symbols

    @cached_property
    def token_names(self) -> dict[int, str]:
        """What each token is called: a special token by its name, a gene by its symbol, or else its id."""
        names = {token: name for name, token in self.special_tokens.items()}
        genes = zip(self.tokens.tolist(), self.genes.tolist(), strict=True)
        return names | {token: self.symbol_of.get(gene, gene) for token, gene in genes}

    @cached_property
    def upper_symbols(self) -> dict[str, str]:
        """Gene id of each symbol in upper case (of the first listed)."""
        genes: dict[str, str] = {}
        for symbol, gene in self.symbols.items():
            genes.setdefault(symbol.upper(), gene)
        return genes

    @classmethod
    def of_names(cls, names: Sequence[str], specials: Iterable[str], *, species: str = "human") -> Vocabulary:
        """Number special tokens and then genes from 0 on, in the order given."""
        special_tokens = {name: token for token, name in enumerate(specials)}
        tokens = np.arange(len(names), dtype=np.int32) + np.int32(len(special_tokens))
        return cls(gene_array(names), tokens, None, special_tokens, {}, {}, species)

    def save(self, folder: Path) -> None:
        """Write ``vocabulary.tsv`` and ``aliases.tsv`` into ``folder`` (tab separated text, no pickle).

        The special tokens and the species belong to the card of the model.
        """
        symbol = [self.symbol_of.get(gene, "") for gene in self.genes.tolist()]
        medians = {} if self.medians is None else {"median": self.medians}
        columns = {f"{name}:{_TYPE_OF_KIND[values.dtype.kind]}": values for name, values in self.columns.items()}
        genes = {"gene": self.genes, "token": self.tokens, **medians, **columns, "symbol": symbol}
        pd.DataFrame(genes).to_csv(folder / VOCABULARY_FILE, sep="\t", index=False, na_rep="nan")
        rows = [(alias, gene, "mapping") for alias, gene in self.mapping.items() if alias != gene]
        rows += [(alias, gene, "symbol") for alias, gene in self.symbols.items() if self.symbol_of[gene] != alias]
        table = pd.DataFrame(rows, columns=["alias", "gene", "table"])
        table.to_csv(folder / ALIASES_FILE, sep="\t", index=False)

    @classmethod
    def read(cls, folder: Path, *, special_tokens: Mapping[str, int], species: str = "human") -> Vocabulary:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ValueError
            If a file lacks a column or holds something that is no vocabulary.
        """
        table = _read_table(folder / VOCABULARY_FILE, ("gene", "token", "symbol"))
        genes = table["gene"].tolist()
        known = set(genes)
        mapping = {gene: gene for gene in genes}
        symbols = {symbol: gene for symbol, gene in zip(table["symbol"], genes, strict=True) if symbol}
        path = folder / ALIASES_FILE
        if path.exists():
            aliases = _read_table(path, ("alias", "gene"))
            kinds = aliases["table"] if "table" in aliases else ["symbol"] * len(aliases)
            for alias, gene, kind in zip(aliases["alias"], aliases["gene"], kinds, strict=True):
                if gene in known:
                    (mapping if kind == "mapping" else symbols).setdefault(alias, gene)
        tokens = table["token"].to_numpy()
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() <= MAX_TOKEN:
            msg = f"{folder / VOCABULARY_FILE} is no vocabulary: a token is negative or above {MAX_TOKEN:,}."
            raise ValueError(msg)
        medians = table["median"].to_numpy(np.float64) if "median" in table else None
        typed = [name.split(":") for name in map(str, table) if ":" in name]
        columns = {name: table[f"{name}:{kind}"].to_numpy(_COLUMN_TYPES[kind]) for name, kind in typed}
        try:
            return cls(
                gene_array(genes), tokens.astype(np.int32), medians, special_tokens, mapping, symbols, species, columns
            )
        except ValueError as error:
            msg = f"{folder / VOCABULARY_FILE} is no vocabulary: {error}"
            raise ValueError(msg) from error


def gene_array(names: Sequence[str]) -> NDArray[np.str_]:
    """Gene ids as an array, in which each takes as much memory as the longest.

    Raises
    ------
    ValueError
        If one is empty, longer than 256 characters or not printable.
    """
    _check_names(names, least=1)
    return np.asarray(names, dtype=str)


def _check_names(names: Iterable[str], least: int = 0) -> None:
    for name in names:
        if not (least <= len(name) <= MAX_NAME and name.isprintable()):
            msg = f"{reprlib.repr(name)} is no name of a gene; it must have {least} to {MAX_NAME} printable characters."
            raise ValueError(msg)


def vocabulary_files(folder: Path) -> list[Path]:
    """The files of a vocabulary, in a fixed order; aliases may be missing."""
    aliases = folder / ALIASES_FILE
    return [folder / VOCABULARY_FILE, *([aliases] if aliases.exists() else [])]


def _read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    check_regular(path)
    content = path.read_bytes()
    if b"\0" in content:  # which pandas takes for the end of a field
        msg = f"{path} is no table of genes (it holds a null byte): it is cut off or damaged; convert the model again."
        raise ValueError(msg)
    header = content.partition(b"\n")[0].decode(errors="replace").strip().split("\t")
    types: dict[str, Any] = {name: _COLUMN_TYPES.get(name.partition(":")[2]) for name in header if ":" in name}
    if None in types.values():
        msg = f"{path} has the columns {header}; the types of genes' columns are {', '.join(_COLUMN_TYPES)}."
        raise ValueError(msg)
    may_lack = [name for name, kind in types.items() if kind is np.float64]
    types |= dict.fromkeys(("gene", "symbol", "alias", "table"), str)
    types |= {"token": np.int64, "median": np.float64}  # pandas reads int32 without a look at its bounds
    try:
        table = pd.read_csv(
            BytesIO(content),
            sep="\t",
            dtype=types,
            keep_default_na=False,
            na_values=dict.fromkeys(may_lack, ["nan"]),
            float_precision="round_trip",
        )
    except (ValueError, OverflowError) as error:  # pandas' own errors are ValueErrors, too
        msg = f"{path} is no table of genes ({error}): it is cut off or damaged; convert the model again."
        raise ValueError(msg) from error
    missing = [name for name in columns if name not in table]
    if missing:
        msg = f"{path} lacks the column(s) {missing}; found {list(table.columns)}."
        raise ValueError(msg)
    short = np.flatnonzero(table.drop(columns=may_lack).isna().to_numpy().any(axis=1))
    if short.size:
        msg = f"{path} is no table of genes (row {short[0] + 1} lacks an entry): it is cut off or damaged; convert the model again."
        raise ValueError(msg)
    return table

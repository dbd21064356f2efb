"""Match the genes of a data set to the tokens of a model, once, before anything is computed."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scfm._warn import warn
from scfm.genes.species import describe_ids, is_ensembl, looks_like_rodent_symbols, strip_version

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scfm.genes.vocabulary import Vocabulary

__all__ = ["GeneMap", "Match", "MatchReport", "align", "ids_of", "report_of"]

logger = logging.getLogger(__name__)

INDEX = "index"
ID_COLUMNS = ("ensembl_id", "ensembl_ids", "gene_ids", "gene_id", "feature_id", "ensembl", "ensembl_gene_id", "ensg")
SYMBOL_COLUMNS = ("feature_name", "gene_symbols", "gene_symbol", "gene_names", "gene_name", "symbol", "hgnc_symbol")
LOW_SHARE = 0.2
"""Share of the genes of the data below which a match is doubtful, unless"""
HIGH_SHARE = 0.5
"""this share of the genes of the model is there."""


@dataclass(frozen=True)
class MatchReport:
    """How the genes of a data set met a vocabulary.

    Returned by :func:`scfm.pp.match_genes`; its numbers end in ``uns[key]["params"]["genes"]``.
    """

    gene_key: str
    """Where the gene ids were found: ``"index"`` or a column of ``var``."""
    n_genes: int
    """Genes of the data."""
    n_vocabulary: int
    """Genes of the model."""
    matched: int
    """Genes of the data that have a token."""
    unmatched: int
    """Genes of the data that have none; the model does not see them."""
    merged: int
    """Genes of the data beyond the first that meet in one token; their counts are added (kept apart upstream)."""
    by_id: int
    """Matched by an id as it stands in the vocabulary."""
    by_version: int
    """Matched after the version was taken off."""
    by_alias: int
    """Matched through the model's table of other ids."""
    by_symbol: int
    """Matched as a gene symbol."""
    examples_unmatched: tuple[str, ...] = ()
    """The first few unmatched ids."""

    @property
    def n_tokens(self) -> int:
        """Different tokens that occur."""
        return self.matched - self.merged

    def as_dict(self) -> dict[str, Any]:
        """The numbers, as plain values that every AnnData file format can store."""
        values = asdict(self)
        del values["examples_unmatched"]
        return values

    def __str__(self) -> str:
        routes = ", ".join(
            f"{n:,} by {name}"
            for name, n in (
                ("id", self.by_id),
                ("id without version", self.by_version),
                ("alias", self.by_alias),
                ("symbol", self.by_symbol),
            )
            if n
        )
        where = "var_names" if self.gene_key == INDEX else f"var[{self.gene_key!r}]"
        merged = f", {self.merged:,} of them share the token of another" if self.merged else ""
        return (
            f"{self.matched:,} of {self.n_genes:,} genes in {where} match the model ({routes or 'none'}{merged}); "
            f"the model knows {self.n_vocabulary:,}"
        )


@dataclass(frozen=True)
class GeneMap:
    """Token of every column of a data set (``genes`` → ``encode``)."""

    tokens: NDArray[np.int32]
    """Token of each column, −1 where the model has none, −2 where another column stands for it; ``(n_vars,)``."""
    report: MatchReport
    """The numbers."""
    sums: bool = True
    """Whether counts of columns with the same token are added (otherwise each keeps its own token)."""


class Match(NamedTuple):
    """What a rule found for the ids in one place."""

    key: str
    """``"index"`` or a column of ``var``."""
    ids: Sequence[str]
    """The ids there."""
    tokens: NDArray[np.int32]
    """Token of each, negative where there is none."""
    routes: Sequence[str]
    """What each token was found by: ``"id"``, ``"version"``, ``"alias"`` or ``"symbol"``."""


def align(var: pd.DataFrame, vocabulary: Vocabulary, *, gene_key: str | None = None) -> GeneMap:
    """Give every gene of ``var`` the token of the model, by id, alias or symbol.

    Parameters
    ----------
    var
        Annotation of the genes: ids are looked for in its index and in the usual columns.
    vocabulary
        The genes of the model.
    gene_key
        Column of ``var`` that holds the ids, ``"index"`` for the index. By default the place where most genes match.

    Raises
    ------
    KeyError
        If ``gene_key`` is not a column of ``var``.
    ValueError
        If no gene matches; the message says what the ids look like and what the model expects.
    """
    if gene_key is not None and gene_key != INDEX and gene_key not in var:
        msg = f"gene_key={gene_key!r} is not a column of var; found {list(var.columns)}, or use 'index' for var_names."
        raise KeyError(msg)
    keys = [gene_key] if gene_key is not None else _candidates(var)
    look_up = _look_up(vocabulary)
    ids_in = {key: ids_of(var, key) for key in keys}
    matches = [Match(key, ids, *look_up(ids)) for key, ids in ids_in.items()]
    best = max(matches, key=lambda match: np.count_nonzero(match.tokens >= 0))
    report = report_of(best, keys, var, vocabulary)
    if report.matched < LOW_SHARE * report.n_genes and report.n_tokens < HIGH_SHARE * report.n_vocabulary:
        warn(
            f"Only {report}. Unmatched ids look like {', '.join(report.examples_unmatched)}. "
            "Check the species and `gene_key=`."
        )
    logger.info("%s", report)
    return GeneMap(best.tokens, report)


def _candidates(var: pd.DataFrame) -> list[str]:
    ids, symbols = _columns(var, ID_COLUMNS), _columns(var, SYMBOL_COLUMNS)
    return [*ids, INDEX, *symbols]


def name_columns(var: pd.DataFrame) -> list[str]:
    """Columns of ``var`` that usually hold ids or symbols."""
    return _columns(var, ID_COLUMNS + SYMBOL_COLUMNS)


def _columns(var: pd.DataFrame, usual: Sequence[str]) -> list[str]:
    present = {str(column).lower(): str(column) for column in var.columns}
    return [present[name] for name in usual if name in present]


def token_finder(vocabulary: Vocabulary) -> Callable[[str], int]:
    """Make what finds the token of a gene by its id, with or without version, by an alias or a symbol; −1 for none."""
    find = _finder(vocabulary)
    return lambda name: vocabulary.token_of[name] if name in vocabulary.token_of else find(name, True)[0]


def ids_of(var: pd.DataFrame, key: str) -> list[str]:
    """Ids in a column of ``var`` or its index, empty where there is none."""
    values = var.index if key == INDEX else var[key]
    names = values.to_numpy(dtype=object)
    return np.where(pd.isna(names), "", names).astype(str).tolist()


def _look_up(vocabulary: Vocabulary) -> Callable[[list[str]], tuple[NDArray[np.int32], list[str]]]:
    """Token and route of each id of a list; most are found as they stand, the rest goes the long way."""
    find, has_names = _finder(vocabulary), bool(vocabulary.symbols or vocabulary.mapping)

    def look_up(ids: list[str]) -> tuple[NDArray[np.int32], list[str]]:
        tokens = np.asarray(list(map(vocabulary.token_of.get, ids, repeat(-1))), dtype=np.int32)
        routes = np.where(tokens >= 0, "id", "").tolist()
        use_names = has_names and (vocabulary.species != "human" or not looks_like_rodent_symbols(ids))
        for at in np.flatnonzero(tokens < 0).tolist():
            gene = ids[at]
            if use_names or (has_names or "." in gene or gene != gene.upper()) and is_ensembl(gene):
                tokens[at], routes[at] = find(gene, use_names)
        return tokens, routes

    return look_up


def _finder(vocabulary: Vocabulary) -> Callable[[str, bool], tuple[int, str]]:
    token_of, mapping, symbols = vocabulary.token_of, vocabulary.mapping, vocabulary.symbols
    upper_symbols: dict[str, str] = {}
    for symbol, gene in symbols.items():
        upper_symbols.setdefault(symbol.upper(), gene)

    def find(gene: str, symbols_usable: bool) -> tuple[int, str]:
        if is_ensembl(gene):
            plain = (strip_version(gene) if "." in gene else gene).upper()
            if plain in token_of:
                return token_of[plain], "id" if plain == gene.upper() else "version"
            return (token_of[mapping[plain]], "alias") if plain in mapping else (-1, "")
        if symbols_usable:
            upper = gene.upper()
            target = symbols.get(gene) or mapping.get(upper) or upper_symbols.get(upper)
            if target is not None:
                return token_of[target], "symbol"
        return -1, ""

    return find


def report_of(match: Match, keys: Sequence[str], var: pd.DataFrame, vocabulary: Vocabulary) -> MatchReport:
    """Count what was found, by route; a ValueError about all ``keys`` that were tried if nothing was."""
    tokens = match.tokens.tolist()
    unmatched = [gene for gene, token in zip(match.ids, tokens, strict=True) if token < 0]
    if len(unmatched) == len(tokens):
        raise ValueError(_no_match_message(keys, var, vocabulary))
    routes = [route for route, token in zip(match.routes, tokens, strict=True) if token >= 0]
    return MatchReport(
        gene_key=match.key,
        n_genes=len(tokens),
        n_vocabulary=len(vocabulary.genes),
        matched=len(routes),
        unmatched=len(unmatched),
        merged=len(routes) - len(np.unique(match.tokens[match.tokens >= 0])),
        by_id=routes.count("id"),
        by_version=routes.count("version"),
        by_alias=routes.count("alias"),
        by_symbol=routes.count("symbol"),
        examples_unmatched=tuple(unmatched[:5]),
    )


def _no_match_message(keys: Sequence[str], var: pd.DataFrame, vocabulary: Vocabulary) -> str:
    """Say what the ids look like and what the model expects."""
    if not len(var):
        msg = "No gene of the data is known to the model: the data has no genes."
        return msg
    looks = "; ".join(
        f"{'var_names' if key == INDEX else f'var[{key!r}]'} holds {describe_ids(ids)} such as {ids[:3]}"
        for key, ids in ((key, ids_of(var, key)) for key in keys)
    )
    kind = describe_ids(vocabulary.genes[:1000].tolist())
    expected = f"{kind} such as {vocabulary.genes[:2].tolist()}, and knows no symbols"
    if vocabulary.symbols or vocabulary.mapping:
        species = vocabulary.species
        expected = f"{species} Ensembl ids such as {vocabulary.genes[:2].tolist()}, or {species} gene symbols"
    return (
        f"No gene of the data is known to the model: {looks}. The model expects {expected}. Name the column "
        "with gene_key=, or translate the ids (orthologs, for another species) first."
    )

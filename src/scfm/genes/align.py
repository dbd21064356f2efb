"""Match the genes of a data set to the tokens of a model, once, before anything is computed."""

from __future__ import annotations

import logging
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scfm._text import some
from scfm._warn import warn
from scfm.genes.features import INDEX, Features, any_of, ids_of, place
from scfm.genes.panel import pack
from scfm.genes.report import GeneMap, MatchReport
from scfm.genes.species import (
    OtherSpeciesError,
    describe_ids,
    is_ensembl,
    is_rodent_symbol,
    looks_like_rodent_symbols,
    strip_version,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from scfm.genes.vocabulary import Vocabulary

    LookUp = Callable[[list[str]], tuple[NDArray[np.int32], list[str]]]

__all__ = ["Match", "align", "no_match", "report_of", "token_finder"]

logger = logging.getLogger(__name__)

LOW_SHARE = 0.2
"""Share of the genes of the data below which a match is doubtful, unless"""
HIGH_SHARE = 0.5
"""this share of the genes of the model is there."""
MIXED = 0.1
"""Share of genes from another species above which the data are not from one species."""


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

    Features that are not genes, and genes of species that the model does not know, are left out.

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
        If no gene matches, no feature is a gene, the genes are from another species or a mixture of species, or the
        columns of ``var`` contradict each other; the message says what was found and what the model expects.
    """
    if gene_key is not None and gene_key != INDEX and gene_key not in var:
        msg = f"gene_key={gene_key!r} is not a column of var; found {list(var.columns)}, or use 'index' for var_names."
        raise KeyError(msg)
    features = Features.of(var, gene_key)
    genes = _genes(features)
    own = _of_the_model(features, genes, vocabulary)
    look_up = _look_up(vocabulary)
    matches = []
    for key, names in features.names.items():
        tokens, routes = look_up([name if used else "" for name, used in zip(names, own, strict=True)])
        matches.append(Match(key, names, np.where(own, tokens, np.int32(-2)).astype(np.int32), routes))
    best = max(matches, key=lambda match: np.count_nonzero(match.tokens >= 0))
    if not (best.tokens >= 0).any():
        raise no_match(features, vocabulary, elsewhere=_elsewhere(var, features, best, look_up))
    _check_symbols(best, vocabulary)
    report = report_of(best, vocabulary, own, not_genes=int((~genes).sum()))
    if any((look_up([names[at] for at in np.flatnonzero(~genes)])[0] >= 0).any() for names in features.names.values()):
        warn(
            f"{report.not_genes:,} of {len(var):,} features are not genes and are left out: {some(features.not_genes)}."
        )
    if report.matched < LOW_SHARE * report.n_genes and report.n_tokens < HIGH_SHARE * report.n_vocabulary:
        warn(
            f"Only {report}. Unmatched ids look like {', '.join(report.examples_unmatched)}. "
            f"Check the species and `gene_key=`{_elsewhere(var, features, best, look_up)}."
        )
    logger.info("%s", report)
    return GeneMap(best.tokens, report)


def _genes(features: Features) -> NDArray[np.bool_]:
    """Features that are genes, one at least."""
    genes = ~any_of(features.not_genes.values(), features.n_vars)
    if len(genes) and not genes.any():
        counts = "; ".join(f"{what} for {int(mask.sum()):,} features" for what, mask in features.not_genes.items())
        msg = f"No feature of the data is a gene: {counts}. Pass the modality, or the columns, with gene expression."
        raise ValueError(msg)
    return genes


def _of_the_model(features: Features, genes: NDArray[np.bool_], vocabulary: Vocabulary) -> NDArray[np.bool_]:
    """Genes that can be from a species of the model; warns if many are not.

    If more than a few are from another species, genes without a known species are left out, too.
    """
    home, others = np.zeros_like(genes), dict[str, Any]()
    for (_, species), mask in features.species.items():
        if vocabulary.knows(species):
            home |= mask & genes
        else:
            others[species] = others.get(species, np.zeros_like(genes)) | (mask & genes)
    foreign, few = any_of(others.values(), len(genes)), MIXED * genes.sum()
    if not others or (foreign.sum() <= few and foreign.sum() < genes.sum()):
        return genes & ~foreign
    own, names = home & ~foreign, sorted(others, key=lambda species: -others[species].sum())
    if (home & foreign).sum() > few:
        msg = f"The columns of var contradict each other about the species: {_looks(features)}. Name the right one with gene_key=."
        raise OtherSpeciesError(msg, names[0])
    if not own.any():
        raise no_match(features, vocabulary, species=names[0])
    warn(
        f"{(genes & ~own).sum():,} of {genes.sum():,} genes are left out: they are from {some(names)}, which the model does not "
        "know, or from an unknown species. Remove the cells of other species, too."
    )
    return own


def _check_symbols(match: Match, vocabulary: Vocabulary) -> None:
    """Refuse human and mouse symbols that only capitalisation distinguishes."""
    by_symbol = [name for name, route in zip(match.ids, match.routes, strict=True) if route == "symbol"]
    if vocabulary.species != "human" or not by_symbol:
        return
    unmatched = (name for name, token in zip(match.ids, match.tokens.tolist(), strict=True) if token == -1)
    rodent = [name for name in unmatched if is_rodent_symbol(name) and name.upper() in vocabulary.upper_symbols]
    if len(rodent) > MIXED * (len(rodent) + len(by_symbol)):
        msg = (
            f"{place(match.key)} mixes human symbols ({len(by_symbol):,} such as {some(by_symbol[:3])}) and mouse or rat symbols "
            f"({len(rodent):,} such as {some(rodent[:3])}). Keep the cells and genes of one species, or give the genome of each "
            "gene in var['genome'] or as a prefix, such as GRCh38_TP53."
        )
        raise ValueError(msg)


def _elsewhere(var: pd.DataFrame, features: Features, best: Match, look_up: LookUp) -> str:
    """Other columns that hold more genes of the model, as the end of a sentence."""
    texts = var.loc[:, ~var.columns.duplicated(keep=False)].select_dtypes(exclude="number")
    others = [name for name in (INDEX, *texts) if isinstance(name, str) and name not in features.names]
    found = {name: np.count_nonzero(look_up(ids_of(var, name))[0] >= 0) for name in others}
    more = {name: n for name, n in found.items() if n > np.count_nonzero(best.tokens >= 0)}
    return "".join(f"; {place(name)} holds {n:,} genes of the model: gene_key={name!r}" for name, n in more.items())


def token_finder(vocabulary: Vocabulary) -> Callable[[str], int]:
    """Make what finds the token of a gene by its id, with or without version, by an alias or a symbol; −1 for none."""
    find = _finder(vocabulary)
    return lambda name: vocabulary.token_of[name] if name in vocabulary.token_of else find(name, True)[0]


def _look_up(vocabulary: Vocabulary) -> LookUp:
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
    is_human = vocabulary.species == "human"
    upper_symbols = vocabulary.upper_symbols

    def find(gene: str, symbols_usable: bool) -> tuple[int, str]:
        if is_ensembl(gene):
            plain = (strip_version(gene) if "." in gene else gene).upper()
            if plain in token_of:
                return token_of[plain], "id" if plain == gene.upper() else "version"
            return (token_of[mapping[plain]], "alias") if plain in mapping else (-1, "")
        if symbols_usable:
            upper, target = gene.upper(), symbols.get(gene)
            if target is None and not (is_human and is_rodent_symbol(gene)):
                target = mapping.get(upper) or upper_symbols.get(upper)
            if target is not None:
                return token_of[target], "symbol"
        return -1, ""

    return find


def report_of(
    match: Match, vocabulary: Vocabulary, genes: NDArray[np.bool_] | None = None, not_genes: int = 0
) -> MatchReport:
    """Count matches by route, among the columns that are ``genes`` from a species of the model; by default all."""
    found = match.tokens >= 0
    missed = np.flatnonzero(~found if genes is None else genes & ~found)
    routes = [match.routes[at] for at in np.flatnonzero(found).tolist()]
    return MatchReport(
        gene_key=match.key,
        n_genes=len(routes) + len(missed),
        n_vocabulary=len(vocabulary.genes),
        matched=len(routes),
        unmatched=len(missed),
        merged=len(routes) - len(np.unique(match.tokens[found])),
        by_id=routes.count("id"),
        by_version=routes.count("version"),
        by_alias=routes.count("alias"),
        by_symbol=routes.count("symbol"),
        not_genes=not_genes,
        other_species=len(found) - len(routes) - len(missed) - not_genes,
        vocabulary_sha256=vocabulary.sha256,
        panel=pack(match.tokens, vocabulary),
        examples_unmatched=tuple(match.ids[at] for at in missed[:5].tolist()),
    )


def no_match(features: Features, vocabulary: Vocabulary, *, species: str = "", elsewhere: str = "") -> ValueError:
    """Say what the ids look like and what the model expects."""
    if not features.n_vars:
        return ValueError("No gene of the data is known to the model: the data has no genes.")
    rodent = any(map(looks_like_rodent_symbols, features.names.values()))
    species = species or ("mouse" if rodent and not vocabulary.knows("mouse") else "")
    kind = describe_ids(vocabulary.genes[:1000].tolist())
    expected = f"{kind} such as {vocabulary.genes[:2].tolist()}, and knows no symbols"
    if vocabulary.symbols or vocabulary.mapping:
        expected = f"{vocabulary.species} Ensembl ids such as {vocabulary.genes[:2].tolist()}, or {vocabulary.species} gene symbols"
    msg = (
        f"No gene of the data is known to the model: {_looks(features)}. The model expects {expected}. Name the column "
        f"with gene_key={elsewhere or ', or translate the ids first'}."
    )
    return OtherSpeciesError(msg, species) if species else ValueError(msg)


def _looks(features: Features) -> str:
    names = [f"{place(key)} holds {describe_ids(ids)} such as {ids[:3]}" for key, ids in features.names.items()]
    genomes = [f"{place(key)} says {species}" for key, species in features.species if key not in features.names]
    return "; ".join([*names, *genomes])

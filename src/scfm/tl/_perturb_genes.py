"""From the genes that a user names to the tokens that are changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scfm._keys import CONTROL, check_key
from scfm.genes.align import token_finder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scfm.model.session import CountSession, Session

__all__ = ["ALL", "Chosen", "chosen_genes"]

ALL = "all"


@dataclass(frozen=True)
class Chosen:
    """Genes or groups of genes that are changed."""

    names: list[str]
    """Name of each."""
    genes: list[tuple[str, ...]]
    """Genes of each, as they were called."""
    groups: list[tuple[int, ...]]
    """Tokens of each."""


def chosen_genes(genes: str | Sequence[str | Sequence[str]] | Mapping[str, Sequence[str]], session: Session) -> Chosen:
    """Find the genes that a user names, each in the first file that tells it.

    Raises
    ------
    KeyError
        If neither the data nor the model know a name, or the model does not know a gene of the data.
    ValueError
        If there is nothing to change, a group is empty or names a gene twice, two names are one gene, or the name of a group
        cannot be stored or is that of one gene.
    """
    if isinstance(genes, Mapping):
        named = {str(name): (group,) if isinstance(group, str) else tuple(group) for name, group in genes.items()}
    else:
        listed = [
            (one,) if isinstance(one, str) else tuple(one) for one in ([genes] if isinstance(genes, str) else genes)
        ]
        named = {"+".join(group): group for group in listed}
    if not named or not all(named.values()):
        msg = "genes is empty or holds an empty group, so there is nothing to perturb; leave it out to perturb every gene."
        raise ValueError(msg)
    for name, called in named.items():
        if called != (name,):
            check_key(name, "name of a group of genes")
    if CONTROL in named:
        msg = f"A group of genes cannot be called {CONTROL!r}, which are the cells as they are; choose another name."
        raise ValueError(msg)
    genes_of_data = {str(gene) for file in session.files() for gene in file.source.var_names}
    like_a_gene = [name for name, called in named.items() if len(called) > 1 and name in genes_of_data]
    if like_a_gene:
        msg = f"The group {like_a_gene[0]!r} of {len(named[like_a_gene[0]])} genes is called like one gene; choose another name."
        raise ValueError(msg)
    wanted = list(dict.fromkeys(gene for group in named.values() for gene in group))
    tokens = _found(wanted, session)
    groups = [tuple(tokens[gene] for gene in group) for group in named.values()]
    for name, group in zip(named, groups, strict=True):
        if len(set(group)) < len(group):
            msg = f"The group {name!r} holds a gene twice: {named[name]}."
            raise ValueError(msg)
    single: dict[int, str] = {}
    for name, group in zip(named, groups, strict=True):
        if len(group) == 1 and (first := single.setdefault(group[0], name)) != name:
            msg = f"{first!r} and {name!r} are one gene, or share a token of the model; leave one of them out."
            raise ValueError(msg)
    return Chosen(list(named), list(named.values()), groups)


def _found(names: list[str], session: Session) -> dict[str, int]:
    found: dict[str, int] = {}
    errors: dict[str, KeyError] = {}
    for file in session.files():
        errors = {}
        missing = [name for name in names if name not in found]
        try:
            found |= zip(missing, _tokens_of(missing, file), strict=True)
        except KeyError:
            for name in missing:
                try:
                    (found[name],) = _tokens_of([name], file)
                except KeyError as error:
                    errors[name] = error
        if not errors:
            return found
    raise next(iter(errors.values()))


def _tokens_of(names: list[str], session: CountSession) -> list[int]:
    try:
        tokens: list[int] = session.genes.tokens[session.columns_of(names)].tolist()
    except KeyError:
        if len(names) > 1:
            raise
        tokens = [token_finder(session.model.vocabulary)(names[0])]  # a gene that the data lack
        if tokens[0] < 0:
            raise
    unknown = [name for name, token in zip(names, tokens, strict=True) if token < 0]
    if unknown:
        msg = (
            f"{session.model.card.id} does not know {len(unknown)} of the genes, such as {unknown[0]!r}, so it cannot "
            "perturb them."
        )
        raise KeyError(msg)
    return tokens

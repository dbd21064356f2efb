"""One pass of a model over several files, each of which has its own genes and annotation."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scfm._text import masked
from scfm.model.session import CountSession, Session, counting_fractional
from scfm.read.errors import of_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scfm._types import CountBlock, TokenBlock
    from scfm.genes import GeneMap
    from scfm.read import CountSource, JoinedSource

__all__ = ["FileFacts", "GeneMaps", "JoinedSession"]


@dataclass(frozen=True)
class FileFacts:
    """What is known of one of the files."""

    genes: GeneMap
    description: dict[str, Any]


class GeneMaps:
    """Matches the genes of files; files with the same ``var`` are matched once.

    Parameters
    ----------
    match
        Matches one ``var``.
    """

    def __init__(self, match: Callable[[Any], GeneMap]) -> None:
        self._match = match
        self._last: tuple[Any, GeneMap] | None = None

    def of(self, source: CountSource) -> GeneMap:
        """The genes of a file."""
        if self._last is None or not self._last[0].equals(source.var):
            self._last = source.var, self._match(source.var)
        return self._last[1]


@dataclass(frozen=True)
class JoinedSession(Session):
    """A model, several files, and what is to be done."""

    source: JoinedSource[FileFacts]

    def files(self) -> Iterator[CountSession]:
        """A session for each of the files, open until the next one comes."""
        for number, fact in enumerate(self.source.facts):
            part = self.source.part(number)
            yield CountSession(self.model, part, self.options, self.devices, self.dtype, fact.genes)

    def encoder(self) -> Callable[[CountBlock], TokenBlock]:
        """The step from counts to tokens: of each file as if it were alone."""
        current: tuple[int, Callable[[CountBlock], TokenBlock]] | None = None

        def encode(block: CountBlock) -> TokenBlock:
            nonlocal current
            number, first = self.source.place(block.row0)
            if current is None or current[0] != number:
                # the reader is ahead, perhaps in the next file
                with self.source.opened(number) as source:
                    genes = self.source.facts[number].genes
                    current = number, self.model.encoder(source, genes, self.options)
            with of_file(self.source.paths[number]):
                tokens = current[1](replace(block, row0=block.row0 - first))
            return replace(tokens, row0=block.row0)

        return counting_fractional(encode)

    def description(self) -> dict[str, Any]:
        """As of one file; what differs between the files is a list with one entry a file."""
        facts = self.source.facts
        files = {"path": [masked(path) for path in self.source.paths], "n_obs": self.source.sizes}
        return _merged([fact.description for fact in facts]) | {"files": files}


def _merged(values: list[Any]) -> Any:
    """One value for all files, in types that every AnnData file format can store."""
    if all(value == values[0] for value in values):
        return values[0]
    if all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        return {name: _merged([value[name] for value in values]) for name in values[0]}
    if len({type(value) for value in values}) == 1 and isinstance(values[0], bool | int | float | str):
        return values
    return [json.dumps(value, default=str) for value in values]

"""Counts in, blocks of rows out: every container that holds a cell by gene matrix becomes a :class:`CountSource`."""

from __future__ import annotations

from scfm.read._arrow import arrow
from scfm.read._containers import is_anndata_file, open_container
from scfm.read._door import check_links, entry, inside, open_store
from scfm.read._open import open_counts
from scfm.read.counts import CountSource
from scfm.read.joined import JoinedSource
from scfm.read.paths import expand, paths_of
from scfm.read.source import Source, SourceFile
from scfm.read.tokenized import TokenizedSource, is_tokenized, open_tokenized

__all__ = [
    "CountSource",
    "JoinedSource",
    "Source",
    "SourceFile",
    "TokenizedSource",
    "arrow",
    "check_links",
    "entry",
    "expand",
    "inside",
    "is_anndata_file",
    "is_tokenized",
    "open_container",
    "open_counts",
    "open_store",
    "open_tokenized",
    "paths_of",
]

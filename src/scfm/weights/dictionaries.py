"""Find the published gene dictionaries of a Geneformer-like model and read them as a vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfm.genes.vocabulary import MAX_TOKEN, Vocabulary, gene_array
from scfm.weights.pickles import read_dictionary

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DictionaryFiles", "find_dictionaries", "read_vocabulary"]

PATTERNS = {
    "tokens": "token_dictionary*.pkl",
    "medians": "gene_median_dictionary*.pkl",
    "mapping": "ensembl_mapping_dict*.pkl",
    "symbols": "gene_name_id_dict*.pkl",
}
NAMES = "vocab_id2name*.csv"
MAX_NAMES_BYTES = 20_000_000


@dataclass(frozen=True)
class DictionaryFiles:
    """Files of one published vocabulary."""

    tokens: Path
    """Gene id → token."""
    medians: Path
    """Gene id → non-zero median."""
    mapping: Path | None = None
    """Other id → gene id."""
    symbols: Path | None = None
    """Symbol → gene id."""
    names: Path | None = None
    """Table of gene ids and symbols (scCello), which takes precedence over ``symbols``."""

    @property
    def paths(self) -> list[Path]:
        """All files of the vocabulary."""
        paths = (self.tokens, self.medians, self.mapping, self.symbols, self.names)
        return [path for path in paths if path is not None]


def find_dictionaries(
    folder: Path | None, dictionaries: str | Path | Sequence[str | Path] | None, vocab_size: int | None
) -> DictionaryFiles:
    """Find the dictionaries of a published model.

    Parameters
    ----------
    folder
        Folder of the weights. Without ``dictionaries`` it, its parent, and ``<parent>/geneformer`` with
        ``gene_dictionaries_30m`` below are searched.
    dictionaries
        Files, or folders that hold them.
    vocab_size
        Rows of the word embeddings, which select among several sets.

    Raises
    ------
    FileNotFoundError
        If no token dictionary or no median dictionary is found.
    ValueError
        If there are dictionaries, but none with ``vocab_size`` tokens.
    """
    places = _places(folder, dictionaries)
    groups = [sorted(place.iterdir()) if place.is_dir() else [place] for place in places if place.exists()]
    if dictionaries is not None and not any(place.is_dir() for place in places):
        groups = [[path for group in groups for path in group]]
    candidates: list[tuple[Path, dict[str, list[Path]]]] = []
    names: list[Path] = []
    for group in groups:
        found = {kind: [path for path in group if path.match(pattern)] for kind, pattern in PATTERNS.items()}
        candidates += [(token, found) for token in found["tokens"]]
        names += [path for path in group if path.match(NAMES) or (path in places and path.suffix == ".csv")]
    sizes = {}
    for token, found in candidates:
        sizes[token] = max(read_dictionary(token, int).values(), default=-1) + 1
        if (vocab_size is None or sizes[token] == vocab_size) and found["medians"]:
            partners = {kind: _partner(token, found[kind]) for kind in ("mapping", "symbols")}
            medians = _partner(token, found["medians"]) or found["medians"][0]
            return DictionaryFiles(token, medians, **partners, names=next(iter(names), None))
    if sizes and vocab_size not in {None, *sizes.values()}:
        listed = ", ".join(f"{path.name} has {size:,} tokens" for path, size in sizes.items())
        msg = (
            f"The weights have {vocab_size:,} tokens, but {listed}: these dictionaries belong to another model. "
            "Geneformer V1 models and scCello need the gc30M files, V2 models the gc104M files; pass them as dictionaries= of "
            "scfm.model.load."
        )
        raise ValueError(msg)
    msg = (
        f"Found no {PATTERNS['tokens']} and {PATTERNS['medians']} in {', '.join(map(str, places))}. Pass the folder or "
        f"the files as dictionaries= of scfm.model.load: {', '.join(PATTERNS.values())} (the last two are optional)."
    )
    raise FileNotFoundError(msg)


def read_vocabulary(files: DictionaryFiles, appended: Sequence[str] = ()) -> Vocabulary:
    """Read dictionaries with the restricted unpickler, in token order.

    Parameters
    ----------
    files
        The files.
    appended
        Special tokens that the files lack, with the ids after all others.

    Raises
    ------
    ValueError
        If a file has unexpected content, or a gene has no median.
    """
    tokens = read_dictionary(files.tokens, int)
    medians = read_dictionary(files.medians, float)
    tokens |= {name: max(tokens.values(), default=-1) + 1 + i for i, name in enumerate(appended)}
    special = {name: token for name, token in tokens.items() if name.startswith("<")}
    genes = sorted((gene for gene in tokens if gene not in special), key=tokens.__getitem__)
    without = [gene for gene in genes if gene not in medians]
    if without or not genes:
        msg = f"{files.medians.name} has no median for {len(without)} genes of {files.tokens.name}, such as {without[:3]}."
        raise ValueError(msg)
    known = set(genes)
    mapping = {gene: gene for gene in genes} if files.mapping is None else read_dictionary(files.mapping, str)
    symbols = {} if files.symbols is None else read_dictionary(files.symbols, str)
    if files.names is not None:
        for symbol, gene in symbols.items():
            mapping.setdefault(symbol.upper(), gene)
        symbols = _read_names(files.names)
    if not all(0 <= token <= MAX_TOKEN for token in tokens.values()):
        msg = f"{files.tokens} holds a token that is negative or above {MAX_TOKEN:,}. Is it another dictionary?"
        raise ValueError(msg)
    try:
        return Vocabulary(
            gene_array(genes),
            np.asarray([tokens[gene] for gene in genes], dtype=np.int32),
            np.asarray([medians[gene] for gene in genes], dtype=np.float64),
            special,
            {alias: gene for alias, gene in mapping.items() if gene in known},
            {symbol: gene for symbol, gene in symbols.items() if gene in known and symbol != gene},
        )
    except ValueError as error:
        msg = f"{', '.join(map(str, files.paths))} make no vocabulary: {error}"
        raise ValueError(msg) from error


def _read_names(path: Path) -> dict[str, str]:
    """Symbol → id from a table with the columns id and name; the last row of a symbol wins, as upstream."""
    try:
        if path.stat().st_size > MAX_NAMES_BYTES:
            msg = f"it has more than {MAX_NAMES_BYTES:,} bytes"
            raise ValueError(msg)
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return dict(zip(table["name"], table["id"], strict=True))
    except (ValueError, KeyError) as error:  # pandas' own errors are ValueErrors, too
        msg = f"{path} is not a table with the columns id and name ({error})."
        raise ValueError(msg) from error


def _places(folder: Path | None, dictionaries: str | Path | Sequence[str | Path] | None) -> list[Path]:
    if dictionaries is not None:
        given = [dictionaries] if isinstance(dictionaries, str | Path) else list(dictionaries)
        places = [Path(place).expanduser() for place in given]
        missing = [str(place) for place in places if not place.exists()]
        if missing:
            msg = f"dictionaries= names {', '.join(missing)}, which does not exist."
            raise FileNotFoundError(msg)
        below = [place / "gene_dictionaries_30m" for place in places]
        return [*places, *(place for place in below if place.is_dir())]
    if folder is None:
        return []
    parent = folder.resolve().parent
    shared = parent / "geneformer"
    return [folder, parent, shared, shared / "gene_dictionaries_30m"]


def _partner(token_file: Path, candidates: list[Path]) -> Path | None:
    """The file that belongs to a token dictionary: the one with the same suffix, such as ``gc104M``."""
    ending = token_file.stem.removeprefix("token_dictionary")
    same = [path for path in candidates if path.stem.endswith(ending)]
    return next(iter(same or candidates), None)

"""Gene files of TranscriptFormer, and the genes of other species in the place of those of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scfm.genes import Vocabulary
from scfm.weights.gene_vectors import read_gene_names, read_gene_vectors, vector_size

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from scfm.model.published import Dictionaries
    from scfm.weights import ModelCard

__all__ = ["GeneFiles", "files_of", "fingerprints", "replaced_genes"]

UPSTREAM_ORDER = ("unknown", "[START]", "[END]", "[RD]", "[CELL]", "[PAD]", "[MASK]")
"""Order in which upstream puts the special tokens when it replaces the genes, whatever that of the checkpoint is."""


@dataclass(frozen=True)
class GeneFiles:
    """Files of gene vectors, read as one; of a gene that occurs twice, the first."""

    paths: tuple[Path, ...]

    def names(self) -> list[str]:
        """Gene ids, each once."""
        return list(dict.fromkeys(name for path in self.paths for name in read_gene_names(path)))

    @property
    def species(self) -> str:
        """Species by the names of the files, which are as ``mus_musculus_gene.h5``."""
        names = [path.stem.removesuffix("_gene").replace("_", " ") for path in self.paths]
        return ", ".join("human" if name == "homo sapiens" else name for name in names)

    def vector_size(self) -> int:
        """Length of the vectors, the same in all files; no vector is read."""
        sizes = {path.name: vector_size(path) for path in self.paths}
        if len(set(sizes.values())) > 1:
            msg = f"The gene vectors of the files differ in length: {sizes}."
            raise ValueError(msg)
        return sizes[self.paths[0].name]

    def vectors(self) -> tuple[list[str], NDArray[np.float32]]:
        """Gene ids, each once, and their vectors, shape ``(n_genes, n_features)``."""
        self.vector_size()
        parts = [read_gene_vectors(path) for path in self.paths]
        names = [name for part in parts for name in part[0]]
        first = {name: at for at, name in reversed(list(enumerate(names)))}
        rows = sorted(first.values())
        return [names[row] for row in rows], np.concatenate([part[1] for part in parts])[rows]


def files_of(folder: Path | None, listed: Sequence[str] | None, given: Dictionaries) -> GeneFiles:
    """Find gene files: those given (files, or folders of them), else those of ``folder`` or its ``vocabs``.

    Raises
    ------
    FileNotFoundError
        If there are none.
    """
    if given is None:
        places = [] if folder is None else [folder / "vocabs", folder]
    else:
        places = [Path(path).expanduser() for path in ([given] if isinstance(given, str | Path) else given)]
    files = [place for place in places if place.is_file() and place.suffix == ".h5"]
    if not files:
        for place in (inner for outer in places for inner in (outer, outer / "vocabs") if inner.is_dir()):
            here = [place / Path(name).name for name in listed] if listed else sorted(place.glob("*_gene.h5"))
            if here and all(path.is_file() for path in here):
                files = here
                break
    if not files:
        wanted = ", ".join(listed) if listed else "files named *_gene.h5"
        msg = f"Found no {wanted} in {', '.join(map(str, places)) or 'any folder'}. Pass the folder or the files as dictionaries= of scfm.model.load."
        raise FileNotFoundError(msg)
    return GeneFiles(tuple(files))


def fingerprints(paths: Sequence[str]) -> list[tuple[int, int]]:
    """Size and time of the last change of files, so far as they exist."""
    found = [Path(path).expanduser() for path in paths]
    return [(path.stat().st_size, path.stat().st_mtime_ns) for path in found if path.exists()]


def replaced_genes(
    card: ModelCard, tensors: Mapping[str, Tensor], files: GeneFiles, *, upstream: bool
) -> tuple[ModelCard, Vocabulary, Mapping[str, Tensor]]:
    """A model with the genes of other files; special tokens keep their ids and rows, but not in compat mode.

    Upstream puts the special tokens in an order of its own while the network goes by the old ids: nothing counts as
    padding any more, and every cell starts with the row of another token. No tensor of the model is read before it is
    looked up.

    Raises
    ------
    ValueError
        If the vectors are not as long as those of the checkpoint.
    """
    specials = dict(card.special_tokens)
    order = UPSTREAM_ORDER if upstream else tuple(sorted(specials, key=specials.__getitem__))
    missing = [name for name in order if name not in specials]
    if missing or sorted(specials.values()) != list(range(len(specials))):
        msg = f"{card.id} has the special tokens {specials}; genes can be replaced where they are the first rows."
        raise ValueError(msg)
    (names, vectors), wanted = files.vectors(), card.architecture.get("gene_vector_size")
    if wanted not in (None, vectors.shape[1]):
        msg = (
            f"{', '.join(map(str, files.paths))} holds vectors of {vectors.shape[1]} features, but {card.id} was made for "
            f"{wanted}: make them with the same protein model."
        )
        raise ValueError(msg)
    vocabulary = Vocabulary.of_names(names, order, species=files.species)
    card = card.with_(architecture={**card.architecture, "vocab_size": vocabulary.size})
    return card, vocabulary, _WithGenes(tensors, vectors, [specials[name] for name in order])


class _WithGenes(Mapping[str, "Tensor"]):
    """Tensors of a model, with the vectors of other genes behind those of the special tokens."""

    def __init__(self, tensors: Mapping[str, Tensor], vectors: NDArray[np.float32], special_rows: list[int]) -> None:
        self._tensors, self._genes, self._special_rows = tensors, vectors, special_rows

    def __getitem__(self, name: str) -> Tensor:
        from scfm.nn.gene_rows import GENE_VECTORS

        return self._vectors if name == GENE_VECTORS else self._tensors[name]

    @cached_property
    def _vectors(self) -> Tensor:
        import torch

        from scfm.nn.gene_rows import GENE_VECTORS

        special = self._tensors[GENE_VECTORS][self._special_rows].float()
        return torch.cat([special, torch.from_numpy(self._genes)])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

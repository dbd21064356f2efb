"""The model from which training starts: new weights, or those of another model, perhaps with further genes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from scfm._paths import atomic
from scfm._text import some
from scfm.genes import Vocabulary
from scfm.model import load, load_recipe
from scfm.model.recipe import NO_WEIGHTS
from scfm.model.registry import families_with, family_class
from scfm.read import paths_of
from scfm.train.corpus import corpus_vocabulary
from scfm.weights.card import ModelCard
from scfm.weights.gene_vectors import read_gene_vectors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from scfm.model import FoundationModel
    from scfm.train.config import Pretraining

    Vectors = tuple[Sequence[str], NDArray[np.floating[Any]]]
    """Ids of genes, and a vector of each."""

__all__ = ["checked_vectors", "read_vectors", "set_gene_vectors", "starting_model"]


def starting_model(run: Pretraining, folder: Path, name: str, vectors: Vectors | None = None) -> FoundationModel:
    """The model with its vocabulary and the weights that training starts from, if any.

    Parameters
    ----------
    run
        What is asked for.
    folder
        Keeps the vocabulary of the run, which is made of the corpus once.
    name
        Name of the model.
    vectors
        Genes and their vectors, whose length is a size of some networks.

    Raises
    ------
    TypeError
        If the family cannot be trained.
    ValueError
        If sizes, vocabulary and weights do not fit.
    """
    base = None if run.base is None else load(run.base)
    family = run.family or ("geneformer" if base is None else base.family)
    cls = family_class(family)
    if not cls.implements("published_tensors"):
        msg = f"The family {family!r} cannot be trained; these can: {', '.join(families_with('published_tensors'))}."
        raise TypeError(msg)
    if base is not None and base.family != family:
        msg = f"base={run.base!r} is of the family {base.family!r}, not {family!r}; leave family= out."
        raise ValueError(msg)
    if not folder.exists():
        vocabulary = _vocabulary(run, cls, base)
        with atomic(folder) as work:
            work.mkdir()
            vocabulary.save(work)
            ModelCard(
                id=name,
                family=family,
                pooling="",
                special_tokens=dict(vocabulary.special_tokens),
                species=vocabulary.species,
            ).write(work)
    kept = ModelCard.read(folder)
    vocabulary = Vocabulary.read(folder, special_tokens=kept.special_tokens, species=kept.species)
    if base is None:
        sizes = {**cls.initial_architecture, **run.architecture}
        if "gene_vector_size" in sizes and vectors is not None:
            sizes["gene_vector_size"] = vectors[1].shape[1]
        card = cls.new_card(name, sizes, vocabulary)
        model = cls(card, vocabulary, NO_WEIGHTS)
        known = {one.name for one in fields(model.config_class)}
    else:
        sizes = {**base.card.architecture, **run.architecture, "vocab_size": vocabulary.size}
        card = _derived(base.card, name).with_(architecture=sizes)
        model = cls(card, vocabulary, _Grown(base.tensors, base.vocabulary.size, vocabulary.size, run.seed))
        known = {"dropout"}
    unknown = sorted(set(run.architecture) - known | set(run.architecture) & {"vocab_size"})
    if unknown:
        kept_sizes = "a base keeps its sizes; " if base is not None else ""
        msg = f"architecture.{unknown[0]} is no size that can be set; {kept_sizes}there are {', '.join(sorted(known - {'vocab_size'}))}."
        raise ValueError(msg)
    model.validate_weights() if base is not None else model.config
    return model


def _derived(card: ModelCard, name: str) -> ModelCard:
    """The card of a model that is trained further: what belongs to the published files is left out."""
    fresh: dict[str, Any] = {
        "source": "",
        "source_file": "",
        "revision": None,
        "source_sha256": None,
        "dictionaries": {},
    }
    return card.with_(id=name, aliases=(), head="", labels={}, description="", **fresh)


def _vocabulary(run: Pretraining, cls: type[FoundationModel], base: FoundationModel | None) -> Vocabulary:
    if run.genes.append and base is None:
        msg = "genes.append adds genes to those of a base; name one by base=."
        raise ValueError(msg)
    if run.genes.source is not None:
        if run.genes.append:
            msg = "genes.source names all genes, and genes.append adds those of the corpus; leave one of them out."
            raise ValueError(msg)
        given = load_recipe(run.genes.source).vocabulary
        if base is not None:
            _check_fits(base.vocabulary, given, run)
        return _with_medians(given, run) if run.genes.medians else given
    if run.genes.medians:
        msg = "genes.medians takes the genes of a model and the medians of the corpus; name the model by genes.source."
        raise ValueError(msg)
    if base is None:
        return _of_corpus(run, cls.initial_tokens)
    return _appended(base.vocabulary, _of_corpus(run, (), base.vocabulary)) if run.genes.append else base.vocabulary


def _of_corpus(run: Pretraining, tokens: Sequence[str], names: Vocabulary | None = None) -> Vocabulary:
    """Genes of the files that are trained on."""
    paths = [path for path in paths_of(run.files) if Path(path).stem not in run.validation.files]
    if run.genes.names is not None:
        names = load_recipe(run.genes.names).vocabulary
    genes = run.genes
    try:
        vocabulary, _ = corpus_vocabulary(
            paths,
            tokens,
            names=names,
            layer=run.layer,
            gene_key=run.gene_key,
            species=genes.species,
            min_cells=genes.min_cells,
            min_share=genes.min_share,
            power=run.sampling.power,
        )
    except ValueError as error:  # which speaks of the arguments there
        raise ValueError(str(error).replace("names=", "genes.names in the config")) from error
    return vocabulary


def _with_medians(given: Vocabulary, run: Pretraining) -> Vocabulary:
    """A vocabulary with the medians of the corpus, so far as it has them."""
    everything = replace(run, genes=replace(run.genes, names=run.genes.source, min_cells=1, min_share=0.0))
    found = _of_corpus(everything, ())
    new = dict(zip(found.genes.tolist(), cast("NDArray[np.float64]", found.medians).tolist(), strict=True))
    own = np.ones(len(given.genes)) if given.medians is None else given.medians
    medians = [new.get(gene, old) for gene, old in zip(given.genes.tolist(), own.tolist(), strict=True)]
    return replace(given, medians=np.array(medians))


def _check_fits(own: Vocabulary, given: Vocabulary, run: Pretraining) -> None:
    """A ValueError unless a vocabulary is that of the weights, perhaps with more genes behind."""
    n = len(own.genes)
    if (
        not np.array_equal(given.genes[:n], own.genes)
        or not np.array_equal(given.tokens[:n], own.tokens)
        or dict(given.special_tokens) != dict(own.special_tokens)
    ):
        differ = [gene for gene in own.genes.tolist() if given.token_of.get(gene) != own.token_of[gene]]
        msg = (
            f"The vocabulary of genes.source={run.genes.source!r} does not fit the weights of base={run.base!r}: "
            f"{len(differ):,} of {n:,} genes have another token or none, such as {some(differ[:3]) or 'special ones'}. Leave "
            "genes.source out, and set genes.append to add genes."
        )
        raise ValueError(msg)


def _appended(own: Vocabulary, other: Vocabulary) -> Vocabulary:
    """A vocabulary with the further genes of another behind its own."""
    new = np.array([gene not in own.token_of for gene in other.genes.tolist()], bool)
    tokens = own.size + np.arange(int(new.sum()), dtype=np.int32)
    medians = None
    if own.medians is not None and other.medians is not None:
        medians = np.concatenate([own.medians, other.medians[new]])
    if own.columns:
        msg = f"The vocabulary of the base has further columns ({some(list(own.columns))}), which new genes lack; genes.append is not for it."
        raise ValueError(msg)
    added = set(other.genes[new].tolist())
    symbols = {name: gene for name, gene in other.symbols.items() if gene in added}
    return Vocabulary(
        np.concatenate([own.genes, other.genes[new]]),
        np.concatenate([own.tokens, tokens]),
        medians,
        own.special_tokens,
        own.mapping,
        {**symbols, **own.symbols},
        own.species,
    )


class _Grown(Mapping[str, "torch.Tensor"]):
    """Weights with new rows behind those of the tokens, wherever a tensor has a row for each."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], n_old: int, n_new: int, seed: int) -> None:
        self._tensors, self._n_old, self._n_new, self._seed = tensors, n_old, n_new, seed

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        tensor = self._tensors[name]
        added = self._n_new - self._n_old
        if not added or not tensor.ndim or tensor.shape[0] != self._n_old:
            return tensor
        # by the seed alone, so that tied weights stay equal
        generator = torch.Generator().manual_seed(self._seed)
        rows = torch.empty(added, *tensor.shape[1:])
        rows = (
            rows.normal_(0, 0.02, generator=generator) if tensor.ndim > 1 else rows.fill_(float(tensor.float().min()))
        )
        return torch.cat([tensor, rows.to(tensor.dtype)])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def read_vectors(path: Path) -> tuple[Sequence[str], NDArray[np.floating[Any]]]:
    """Read vectors of genes: an ``.npz`` with ``genes`` and ``vectors``, or HDF5 as TranscriptFormer's files.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds something else.
    """
    if path.suffix != ".npz":
        return read_gene_vectors(path)
    if not path.is_file():
        msg = f"There is no file {path}; gene_vectors= takes an .npz or HDF5 file."
        raise FileNotFoundError(msg)
    with np.load(path, allow_pickle=False) as file:
        missing = {"genes", "vectors"} - set(file.files)
        genes, vectors = (np.empty(0), np.empty((0, 0))) if missing else (file["genes"], file["vectors"])
    if missing:
        msg = f"{path} must hold 'genes' and as many finite 'vectors', one a row; found {sorted(file.files)}."
        raise ValueError(msg)
    return checked_vectors(genes, vectors, str(path))


def checked_vectors(genes: NDArray[Any], vectors: NDArray[Any], where: str) -> Vectors:
    """Genes and their vectors, if there is a finite one for each; else a ValueError."""
    if vectors.ndim != 2 or vectors.shape[:1] != genes.shape or not np.isfinite(vectors).all():
        msg = f"{where} must hold a finite vector for each gene, one a row; found {genes.shape} genes and vectors of the shape {vectors.shape}."
        raise ValueError(msg)
    return genes.astype(str).tolist(), vectors


def set_gene_vectors(
    network: torch.nn.Module, vocabulary: Vocabulary, genes: Sequence[str], vectors: NDArray[np.floating[Any]]
) -> int:
    """Let the vectors of genes start from given ones; those of other genes stay as they were drawn.

    Returns
    -------
    Number of genes that were found.

    Raises
    ------
    TypeError
        If the network has no table of vectors.
    ValueError
        If the vectors have another length, or no gene is known.
    """
    import torch

    table = getattr(network, "gene_vectors", None)
    table = getattr(getattr(network, "word_embeddings", None), "weight", table)
    if table is None:
        msg = f"gene_vectors: a {type(network).__name__} has no vectors of genes."
        raise TypeError(msg)
    if vectors.shape[1] != table.shape[1]:
        msg = f"gene_vectors has {vectors.shape[1]} features, the model {table.shape[1]}: make both the same."
        raise ValueError(msg)
    tokens = np.array([vocabulary.token_of.get(gene, -1) for gene in genes])
    if not (tokens >= 0).any():
        msg = f"gene_vectors: none of its {len(genes):,} genes, such as {some(list(genes[:3]))}, is in the vocabulary."
        raise ValueError(msg)
    known = torch.from_numpy(tokens[tokens >= 0])
    with torch.no_grad():
        table[known] = torch.from_numpy(vectors[tokens >= 0]).to(table.dtype)
    return len(known)

"""What every model is: a vocabulary, an encoder, a network and a pooling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from scfm._checks import is_int
from scfm._settings import settings
from scfm.genes import first_index
from scfm.model._citations import cite
from scfm.model._joined import FileFacts, GeneMaps, JoinedSession
from scfm.model._session import Compat, RunOptions, Session
from scfm.model._tokenized import tokenized_session
from scfm.read import JoinedSource, expand, is_tokenized, open_counts, open_tokenized
from scfm.run import ArraySink, GeneMeansSink
from scfm.run.device import resolve_devices, resolve_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    import torch
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scfm._types import CountBlock, TokenBatch, TokenBlock
    from scfm.genes import GeneMap, Vocabulary
    from scfm.read import CountSource
    from scfm.run.device import Device
    from scfm.weights import ModelCard

__all__ = ["Compat", "Embedding", "FoundationModel", "NoOptions", "RunOptions"]


@dataclass(frozen=True)
class NoOptions:
    """Options of a family that has none."""


class Scorer(Protocol):
    """Computes log-likelihoods of the cells of a batch."""

    names: tuple[str, ...]
    """What the columns of the result are."""

    def __call__(self, network: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
        """Scores, shape ``(n_cells, len(names))``."""


@dataclass(frozen=True)
class Embedding:
    """Result of one run."""

    values: NDArray[np.float32]
    """``(n_obs, n_features)``, or for ``axis="var"`` ``(n_vars, n_features)`` or ``(n_vars, n_groups, n_features)``."""
    axis: Literal["obs", "var"]
    """Whether rows are cells or genes."""
    names: pd.Index
    """Names of the rows."""
    params: dict[str, Any]
    """Everything needed to repeat the run, in types that every AnnData file format can store."""

    def in_order_of(self, names: pd.Index) -> NDArray[np.float32]:
        """Rows for ``names``: those of ``raw`` may be more, or in another order; NaN for a name that is not there."""
        if self.names.equals(names):
            return self.values
        at = first_index(self.names, names)
        values = np.full((len(names), *self.values.shape[1:]), np.nan, dtype=np.float32)
        values[at >= 0] = self.values[at[at >= 0]]
        return values


class FoundationModel(ABC):
    """A model with its weights at hand; made by :func:`scfm.model.load`.

    Parameters
    ----------
    card
        Description and defaults.
    vocabulary
        Genes and tokens.
    tensors
        Weights by published name; read when the network is built.
    """

    family: ClassVar[str]
    """Name of the family, from which the keys of results are made."""
    poolings: ClassVar[tuple[str, ...]]
    """Poolings that the family knows."""
    options_class: ClassVar[type] = NoOptions
    """Dataclass of the options that only this family takes."""

    upstream_prefers_raw: ClassVar[bool] = False
    """Whether the family's own code takes ``raw`` where there is one (``compat="upstream"``)."""
    weights_family: ClassVar[str | None] = None
    """Family whose converted weights this one takes, where it has none of its own."""
    pads: ClassVar[bool] = True
    """Whether the network pads batches on an accelerator."""
    dropping_options: ClassVar[tuple[str, ...]] = ()
    """Options of the family that leave cells out."""
    reads_ranks: ClassVar[bool] = False
    """Whether the network reads ranked genes, and nothing else of a cell."""
    has_scores: ClassVar[bool] = False
    """Whether the family has log-likelihoods."""
    warns_truncated: ClassVar[str] = ""
    """What a cell with too many genes loses, where that deserves a warning."""

    def __init__(self, card: ModelCard, vocabulary: Vocabulary, tensors: Mapping[str, torch.Tensor]) -> None:
        self.card = card
        self.vocabulary = vocabulary
        self.tensors = tensors
        """Weights by published name; read when they are looked up."""
        self._built: tuple[tuple[Any, ...], list[torch.nn.Module]] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.card.id!r}: {self.n_layers} layers × {self.n_features} features)"

    @classmethod
    def local_folder(cls, card: ModelCard) -> Path:
        """Folder where the converted weights of a registered model are kept on this machine."""
        return settings.cache_dir / "models" / cls.weights_id(card)

    @classmethod
    def weights_id(cls, card: ModelCard) -> str:
        """Id of the model whose weights are used."""
        return card.id

    @classmethod
    @abstractmethod
    def recognizes(cls, config: Mapping[str, Any]) -> bool:
        """Whether a published ``config.json`` is one of this family."""

    @classmethod
    @abstractmethod
    def read_published(
        cls, folder: Path, config: Mapping[str, Any], dictionaries: str | Path | Sequence[str | Path] | None
    ) -> tuple[ModelCard, Vocabulary]:
        """Read architecture and vocabulary of a published folder; the card has neither id nor hashes yet."""

    @classmethod
    @abstractmethod
    def read_vocabulary(
        cls, card: ModelCard, folder: Path | None, dictionaries: str | Path | Sequence[str | Path] | None
    ) -> Vocabulary:
        """Read the published vocabulary of a registered model, without any weights."""

    @classmethod
    @abstractmethod
    def match_genes(
        cls, var: pd.DataFrame, vocabulary: Vocabulary, *, gene_key: str | None, compat: Compat | None
    ) -> GeneMap:
        """Give every gene of a data set a token."""

    @property
    @abstractmethod
    def n_layers(self) -> int:
        """Layers of the network."""

    @property
    @abstractmethod
    def n_features(self) -> int:
        """Width of an embedding."""

    @abstractmethod
    def build_encoder(
        self, source: CountSource, genes: GeneMap, options: RunOptions
    ) -> Callable[[CountBlock], TokenBlock]:
        """Make the step from counts to tokens."""

    @abstractmethod
    def build_network(self, n_layers: int) -> torch.nn.Module:
        """Make the network with its first ``n_layers`` layers and load their weights, float32 on the CPU."""

    @abstractmethod
    def forward(self, network: torch.nn.Module, batch: TokenBatch, options: RunOptions) -> torch.Tensor:
        """Compute one batch: a vector per cell, or per token for ``pooling="gene"``."""

    @abstractmethod
    def check(self) -> None:
        """Raise a ValueError if names or vocabulary size of the weights do not fit the card; reads no tensor."""

    def adapted(self, options: RunOptions) -> FoundationModel:
        """The model that the options ask for: this one, unless an option changes its vocabulary or weights."""
        return self

    def scorer(self, session: Session) -> Scorer:
        """Make the step that computes log-likelihoods, for a family that has them."""
        msg = f"{self.card.id} has no likelihood."
        raise TypeError(msg)

    def match(self, var: pd.DataFrame, gene_key: str | None, options: RunOptions) -> GeneMap:
        """Match genes under the options of a run."""
        return self.match_genes(var, self.vocabulary, gene_key=gene_key, compat=options.compat)

    def facts(self, source: CountSource, options: RunOptions) -> dict[str, Any]:
        """What else belongs to ``params``."""
        return {}

    def max_genes(self, options: RunOptions) -> int:
        """Genes of a cell that fit into ``max_tokens``."""
        return options.max_tokens

    def embed(self, data: AnnData | MuData | str | Path, **arguments: Any) -> NDArray[np.float32]:
        """Embed cells (or genes) and return the array; nothing is written.

        Parameters
        ----------
        data
            As for :func:`scfm.tl.embed`, or the path of an ``.h5ad``, ``.h5mu`` or ``.zarr`` file, which is read block
            by block, or of a tokenised dataset (``.arrow``, ``.parquet``, a folder of ``datasets``).
        arguments
            The keyword arguments of :func:`scfm.tl.embed`, except ``key_added`` and ``copy``.

        Returns
        -------
        float32, shape ``(n_obs, n_features)`` in the order of the cells; for ``pooling="gene"``
        ``(n_vars, n_features)`` in the order of the genes, NaN where a gene has no token or was never seen.

        Examples
        --------
        >>> import scfm
        >>> adata = scfm.datasets.pbmc68k()
        >>> scfm.model.load("scfm-mini").embed(adata[:10]).shape
        (10, 128)
        """
        return self.run(data, **arguments).values

    def run(self, data: AnnData | MuData | str | Path, *, groupby: str | None = None, **arguments: Any) -> Embedding:
        """As :meth:`embed`, with names and provenance beside the array."""
        with self.session(data, **arguments) as session:
            if session.choices.pooling != "gene" and groupby is not None:
                msg = f"groupby={groupby!r} averages genes over groups of cells, which takes pooling='gene'."
                raise ValueError(msg)
            if session.choices.pooling == "gene":
                return _gene_means(session, groupby)
            sink = ArraySink(session.source.n_obs, session.model.n_features)
            stats = session.into(sink)
            return Embedding(sink.values, "obs", session.source.obs_names, session.params(stats))

    @contextmanager
    def session(
        self,
        data: AnnData | MuData | str | Path,
        *,
        modality: str | None = None,
        layer: str | None = None,
        use_raw: bool | None = None,
        gene_key: str | None = None,
        pooling: str | None = None,
        hidden_layer: int | None = None,
        max_tokens: int | None = None,
        device: Device | Sequence[Device] | None = None,
        dtype: str | torch.dtype | None = None,
        compat: Compat | None = None,
        **options: Any,
    ) -> Iterator[Session]:
        """Check all arguments, open the counts and match the genes; arguments as for :meth:`embed`."""
        choices = self._choose(pooling, hidden_layer, max_tokens, compat, options)
        where = resolve_devices(device)
        precision = resolve_dtype(dtype, where[0])
        if len(where) > 1 and choices.pooling == "gene":
            msg = f"pooling='gene' takes one device, got {[str(one) for one in where]}."
            raise ValueError(msg)
        model = self.adapted(choices)
        if is_tokenized(data):
            chosen = {"modality": modality, "layer": layer, "use_raw": use_raw, "gene_key": gene_key}
            with open_tokenized(data, vocab_size=model.vocabulary.size) as tokenized:
                yield tokenized_session(model, tokenized, choices, where, precision, chosen)
            return
        matrix: dict[str, Any] = {
            "modality": modality,
            "layer": layer,
            "use_raw": self._use_raw(use_raw, layer, compat),
            "prefer_raw": compat is not None and self.upstream_prefers_raw,
        }
        data = expand(data)
        if not isinstance(data, list):
            with open_counts(data, **matrix) as source:
                genes = model.match(source.var, gene_key, choices)
                yield Session(model, source, genes, choices, where, precision)
            return
        if choices.pooling == "gene":
            msg = f"pooling='gene' takes one file, whose genes the result has; {len(data)} files were given."
            raise ValueError(msg)
        maps = GeneMaps(lambda var: model.match(var, gene_key, choices))

        def learn(source: CountSource) -> FileFacts:
            session = Session(model, source, maps.of(source), choices, where, precision)
            return FileFacts(session.genes, session.description())

        with JoinedSource(data, learn, matrix) as joined:
            yield JoinedSession(model, joined, joined.facts[0].genes, choices, where, precision)

    @property
    def has_cls(self) -> bool:
        """Whether every cell, even one without genes, has special tokens."""
        return "<cls>" in self.vocabulary.special_tokens

    @property
    def embeds_empty(self) -> bool:
        """Whether a cell without genes has an embedding."""
        return self.has_cls

    def cite(self) -> str:
        """What to cite for embeddings of this model, as BibTeX: scfm, and the paper of the model.

        Examples
        --------
        >>> import scfm
        >>> print(scfm.model.load("scfm-mini").cite().splitlines()[0])
        @software{scfm,
        """
        return cite(self.card.paper)

    def _use_raw(self, use_raw: bool | None, layer: str | None, compat: Compat | None) -> bool | None:
        upstream_x = compat is not None and not self.upstream_prefers_raw
        return False if use_raw is None and layer is None and upstream_x else use_raw

    def _choose(
        self,
        pooling: str | None,
        hidden_layer: int | None,
        max_tokens: int | None,
        compat: Compat | None,
        options: dict[str, Any],
    ) -> RunOptions:
        if compat not in (None, "upstream"):
            msg = f"compat={compat!r} is not known; use 'upstream' to do as the model's own code does, or None."
            raise ValueError(msg)
        pooling = self.card.pooling if pooling is None else pooling
        usable = [name for name in self.poolings if name != "cls" or self.has_cls]
        if pooling not in usable:
            msg = f"pooling={pooling!r} is not known to {self.card.id}; use one of {', '.join(map(repr, usable))}."
            raise ValueError(msg)
        layer = self.card.hidden_layer if hidden_layer is None else hidden_layer
        if not is_int(layer) or not -self.n_layers <= layer <= 0:
            msg = (
                f"hidden_layer={layer!r} does not exist: 0 is the last of {self.n_layers} layers, -1 the one before it, "
                f"down to {-self.n_layers} for the input of the first."
            )
            raise ValueError(msg)
        tokens = self.card.max_tokens if max_tokens is None else max_tokens
        if not is_int(tokens) or not 3 <= tokens <= self.card.max_tokens:
            msg = f"max_tokens={tokens!r} is out of range: {self.card.id} takes 3 to {self.card.max_tokens} tokens a cell."
            raise ValueError(msg)
        family = self._family_options(options)
        return RunOptions(pooling, layer, self.n_layers + layer, tokens, compat, family)

    def _family_options(self, options: dict[str, Any]) -> Any:
        valid = [f.name for f in fields(self.options_class)]
        unknown = [name for name in options if name not in valid]
        if unknown:
            takes = f"the options {', '.join(valid)}" if valid else "no options of its own"
            msg = f"{unknown[0]!r} is no option of tl.embed, and the family {self.family!r} takes {takes}."
            raise TypeError(msg)
        return self.options_class(**options)

    def networks(self, n_layers: int, devices: Sequence[torch.device], dtype: torch.dtype) -> list[torch.nn.Module]:
        """The network with its first ``n_layers`` layers on each of the devices; the last ones made are kept."""
        key = (n_layers, tuple(map(str, devices)), dtype)
        if self._built is None or self._built[0] != key:
            self._built = None  # frees the old ones before the new ones are built
            made = [self.build_network(n_layers).to(device=device, dtype=dtype).eval() for device in devices]
            self._built = key, made
        return self._built[1]


def _gene_means(session: Session, groupby: str | None) -> Embedding:
    """Mean of each gene over all cells, or over those of each group."""
    source, n_features = session.source, session.model.n_features
    if groupby is None:
        sink = GeneMeansSink(session.genes.tokens, n_features)
        stats = session.into(sink)
        return Embedding(sink.values()[:, 0], "var", source.var.index, session.params(stats))
    labels = session.groups(groupby)
    if not len(labels.categories):
        msg = f"groupby={groupby!r}: that column of obs holds no value but missing ones, so there is no group to average over."
        raise ValueError(msg)
    sink = GeneMeansSink(session.genes.tokens, n_features, np.asarray(labels.codes, np.int64), len(labels.categories))
    stats = session.into(sink)
    groups = {"groupby": groupby, "groups": [str(label) for label in labels.categories]}
    return Embedding(sink.values(), "var", source.var.index, session.params(stats) | groups)

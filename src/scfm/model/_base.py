"""What a user holds: a model with its weights at hand."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm.model._citations import cite
from scfm.model._joined import FileFacts, GeneMaps, JoinedSession
from scfm.model._matching import Matching
from scfm.model._tokenized import tokenized_session
from scfm.model.arguments import Arguments
from scfm.model.recipe import Recipe
from scfm.model.session import CellAttention, CountSession, Session
from scfm.read import JoinedSource, expand, is_tokenized, open_tokenized
from scfm.run import ArraySink
from scfm.run.device import resolve_devices, resolve_dtype
from scfm.run.quantize import check_quantization
from scfm.tasks import Embed, GeneMeans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    import torch
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scfm._types import Compat, Quantization
    from scfm.genes import MatchReport
    from scfm.model.arguments import SharedWith
    from scfm.read import CountSource
    from scfm.run.device import Device

    Data: TypeAlias = AnnData | MuData | str | Path | Sequence[str | Path]

__all__ = ["Embedding", "FoundationModel"]

DEFAULTS = Arguments()


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
    columns_for: Callable[[pd.Index], NDArray[np.intp]] | None = None
    """Finds genes by any of their names, −1 for one that is not there; for ``axis="var"``."""

    def in_order_of(self, names: pd.Index) -> NDArray[np.float32]:
        """Rows for genes of which ``raw`` may have more, or other names; NaN, with a warning, for those it lacks."""
        assert self.columns_for is not None
        at = self.columns_for(names)
        values = np.full((len(names), *self.values.shape[1:]), np.nan, dtype=np.float32)
        values[at >= 0] = self.values[at[at >= 0]]
        return values


class FoundationModel(Recipe):
    """A model with its weights at hand; made by :func:`scfm.model.load`."""

    def __dir__(self) -> list[str]:
        """What a user asks of a model; authors of families find the rest in :class:`scfm.model.recipe.Recipe`."""
        return [
            "attention",
            "card",
            "cite",
            "config",
            "embed",
            "family",
            "n_features",
            "n_layers",
            "network",
            "poolings",
            "vocabulary",
        ]

    @typed
    @with_parameters
    def embed(
        self,
        data: AnnData | MuData | str | Path | Sequence[str | Path],
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
        quantize: Quantization | None = None,
        shared_with: SharedWith = None,
        groupby: str | None = None,
        **options: Any,
    ) -> NDArray[np.float32]:
        """Embed cells (or genes) and return the array; nothing is written.

        Parameters
        ----------
        data
            As for :func:`scfm.tl.embed`, or the path of an ``.h5ad``, ``.h5mu`` or ``.zarr`` file, which is read block
            by block, or of a tokenised dataset (``.arrow``, ``.parquet``, a folder of ``datasets``). Several files are
            given as a list or by a pattern such as ``"atlas/*.h5ad"``.
        %(matrix)s
        %(pooling)s
        %(hidden_layer)s
        %(max_tokens)s
        %(device)s
        %(dtype)s
        %(compat)s
        %(quantize)s
        %(shared_with)s
        %(groupby_genes)s
        %(options)s

        Returns
        -------
        float32, shape ``(n_obs, n_features)`` in the order of the cells; for ``pooling="gene"``
        ``(n_vars, n_features)`` in the order of the genes, NaN where a gene has no token or was never seen.

        Raises
        ------
        %(errors)s
        ImportError
            If the package that ``quantize`` takes is not installed.

        Examples
        --------
        >>> import scfm
        >>> adata = scfm.datasets.pbmc68k()
        >>> scfm.model.load("scfm-mini").embed(adata[:10]).shape
        (10, 128)
        """
        arguments = Arguments(
            modality=modality,
            layer=layer,
            use_raw=use_raw,
            gene_key=gene_key,
            pooling=pooling,
            hidden_layer=hidden_layer,
            max_tokens=max_tokens,
            device=device,
            dtype=dtype,
            compat=compat,
            quantize=quantize,
            shared_with=shared_with,
            options=options,
        )
        return self.run(data, arguments, groupby=groupby).values

    @typed
    @with_parameters
    def attention(
        self,
        data: AnnData | MuData | str | Path,
        *,
        modality: str | None = None,
        layer: str | None = None,
        use_raw: bool | None = None,
        gene_key: str | None = None,
        hidden_layer: int = 0,
        max_tokens: int | None = None,
        device: Device | Sequence[Device] | None = None,
        dtype: str | torch.dtype | None = None,
        compat: Compat | None = None,
        **options: Any,
    ) -> list[CellAttention]:
        """Attention weights of each cell; all are kept in memory, so choose cells.

        :func:`scfm.tl.attention` averages them over cells.

        Parameters
        ----------
        data
            A few cells, as for :func:`scfm.tl.embed`.
        %(matrix)s
        hidden_layer
            Layer whose attention is read: 0 is the last, −1 the one before it.
        %(max_tokens)s
        %(device)s
        %(dtype)s
        %(compat)s
        %(options)s

        Returns
        -------
        For each cell the names of its tokens, in the order in which the model reads them, and the weights.

        Raises
        ------
        %(errors)s

        Examples
        --------
        >>> import scfm
        >>> first = scfm.model.load("scfm-mini").attention(scfm.datasets.pbmc68k()[:5])[0]
        >>> first.weights.shape[1:] == (len(first.names), len(first.names))
        True
        """
        arguments = Arguments(
            modality=modality,
            layer=layer,
            use_raw=use_raw,
            gene_key=gene_key,
            pooling="gene",
            hidden_layer=hidden_layer,
            max_tokens=max_tokens,
            device=device,
            dtype=dtype,
            compat=compat,
            options=options,
        )
        arguments.check_attention(self)
        with self.count_session(data, arguments) as session:
            return list(session.attention())

    def run(self, data: Data, arguments: Arguments = DEFAULTS, *, groupby: str | None = None) -> Embedding:
        """As :meth:`embed`, with names and provenance beside the array."""
        with self.session(data, arguments) as session:
            if session.options.pooling != "gene" and groupby is not None:
                msg = f"groupby={groupby!r} averages genes over groups of cells, which takes pooling='gene'."
                raise ValueError(msg)
            if isinstance(session, CountSession) and session.options.pooling == "gene":
                return _gene_means(session, groupby)
            sink = ArraySink(session.source.n_obs, session.model.n_features)
            stats = session.run(Embed(session.model, session.options, sink))
            return Embedding(sink.values, "obs", session.source.obs_names, session.params(stats))

    @contextmanager
    def session(self, data: Data, arguments: Arguments = DEFAULTS) -> Iterator[Session]:
        """Check all arguments, open the counts and match the genes."""
        options = arguments.resolved(self)
        devices = resolve_devices(arguments.device)
        dtype = resolve_dtype(arguments.dtype, devices[0])
        check_quantization(options.quantize, devices)
        model = self.with_options(options)
        if is_tokenized(data):
            with open_tokenized(data, vocab_size=model.vocabulary.size) as tokenized:
                yield tokenized_session(model, tokenized, arguments, options, devices, dtype)
            return
        data = expand(data)
        match = Matching.of(model, arguments, options)
        if not isinstance(data, list):
            with arguments.open(model, data) as source:
                yield CountSession(model, source, options, devices, dtype, match(source.var))
            return
        if options.pooling == "gene":
            msg = f"pooling='gene' takes one file, whose genes the result has; {len(data)} files were given."
            raise ValueError(msg)
        maps = GeneMaps(match)

        def learn(source: CountSource) -> FileFacts:
            session = CountSession(model, source, options, devices, dtype, maps.of(source))
            return FileFacts(session.genes, session.description())

        with JoinedSource(data, learn, partial(arguments.open, model), arguments.modality) as joined:
            yield JoinedSession(model, joined, options, devices, dtype)

    @contextmanager
    def count_session(self, data: Data, arguments: Arguments) -> Iterator[CountSession]:
        """As :meth:`session`, for what takes the genes of the data: a TypeError where there are none, or several files."""
        with self.session(data, arguments) as session:
            if not isinstance(session, CountSession):
                msg = (
                    f"Counts of one object or file are needed, got {session.source}: tokenised cells, or several files."
                )
                raise TypeError(msg)
            yield session

    def match_report(self, data: Data, arguments: Arguments) -> MatchReport:
        """How the genes of a data set match, as :meth:`session` matches them; takes no weights."""
        options = arguments.resolved(self)
        model = self.with_options(options)
        with arguments.open(model, data) as source:
            return Matching.of(model, arguments, options)(source.var).report

    def cite(self) -> str:
        """What to cite for embeddings of this model, as BibTeX: scfm, and the paper of the model.

        Examples
        --------
        >>> import scfm
        >>> print(scfm.model.load("scfm-mini").cite().splitlines()[0])
        @software{scfm,
        """
        return cite(self.card.paper)


def _gene_means(session: CountSession, groupby: str | None) -> Embedding:
    """Mean of each gene over all cells, or over those of each group."""
    labels = None if groupby is None else session.groups(groupby)
    if labels is not None and not len(labels.categories):
        msg = f"groupby={groupby!r}: that column of obs holds no value but missing ones, so there is no group to average over."
        raise ValueError(msg)
    task = GeneMeans(session.model, session.options, session.genes.tokens, session.model.n_features, labels)
    params = session.params(session.run(task))
    if labels is not None:
        params |= {"groupby": groupby, "groups": [str(label) for label in labels.categories]}
    return Embedding(task.values(), "var", session.source.var.index, params, session.columns_for)

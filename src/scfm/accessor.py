"""``adata.scfm`` and ``mdata.scfm``: the tools as methods."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast

import anndata
import mudata
from anndata import AnnData
from mudata import MuData

from scfm._keys import PARAMS

if TYPE_CHECKING:
    from collections.abc import Callable

    from scfm import pp, tl
else:

    class _Lazy:
        """A module that is imported when something of it is looked up, so that ``import scfm`` stays light."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            return getattr(import_module(self._name), name)

    pp, tl = _Lazy("scfm.pp"), _Lazy("scfm.tl")

__all__ = ["ScfmAnnData", "ScfmMuData"]

P = ParamSpec("P")
R = TypeVar("R")


class _Verb(Generic[P, R]):
    """A verb as a method, with the signature and documentation of the verb."""

    def __init__(self, look_up: Callable[[], Callable[Concatenate[Any, P], R]]) -> None:
        self._look_up = look_up

    def __get__(self, accessor: _Accessor | None, owner: type) -> Callable[P, R]:
        verb = self._look_up()
        return cast("Callable[P, R]", verb if accessor is None else MethodType(verb, accessor._data))


class _Accessor:
    _data: AnnData | MuData

    annotate = _Verb(lambda: tl.annotate)
    # to mypy, the options of a family could hold the name of the first parameter
    embed = _Verb(lambda: tl.embed)  # type: ignore[arg-type,return-value]
    gene_embeddings = _Verb(lambda: tl.gene_embeddings)  # type: ignore[arg-type,return-value]
    marker_genes = _Verb(lambda: tl.marker_genes)  # type: ignore[arg-type,return-value]
    match_genes = _Verb(lambda: pp.match_genes)  # type: ignore[arg-type,return-value]
    score = _Verb(lambda: tl.score)  # type: ignore[arg-type,return-value]

    def __repr__(self) -> str:
        """The verbs, and what they have stored by now."""
        verbs = ", ".join(name for name, value in vars(_Accessor).items() if isinstance(value, _Verb))
        parts = self._data.mod if isinstance(self._data, MuData) else {"": self._data}
        stored = [
            f"  {f'{part}: ' if part else ''}uns[{name!r}], made with {params.get('model', params.get('use_rep'))}"
            for part, adata in parts.items()
            for name, entry in adata.uns.items()
            if isinstance(entry, Mapping) and isinstance(params := entry.get(PARAMS), Mapping)
            if "scfm" in params.get("versions", {})
        ]
        return "\n".join(
            [f"{type(self).__name__} with the methods {verbs}", *(["and the results", *stored] if stored else [])]
        )


@anndata.register_anndata_namespace("scfm")
class ScfmAnnData(_Accessor):
    """scfm on an AnnData object, as ``adata.scfm.embed("scfm-mini")``."""

    def __init__(self, adata: AnnData) -> None:
        self._data = adata


@mudata.register_mudata_namespace("scfm")
class ScfmMuData(_Accessor):
    """scfm on a MuData object, as ``mdata.scfm.embed("scfm-mini", modality="rna")``."""

    def __init__(self, mdata: MuData) -> None:
        self._data = mdata

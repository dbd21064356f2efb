"""Which columns and which matrix a model is trained on, registered as scvi-tools does."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

from anndata import AnnData
from mudata import MuData
from scvi.data import AnnDataManager
from scvi.data.fields import NumericalObsField, ObsmField

from scfm._checks import entry_of
from scfm._package import version_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Data = AnnData | MuData | str | Path | Sequence[str | Path]

__all__ = ["Setup", "file_key", "manager_of", "registry_of"]

ARGUMENTS = "setup_args"


class ObsColumn(NumericalObsField):
    """A column of ``obs`` as it is, also with missing values; codes are made when a model reads it."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Arguments of ``setup_anndata``."""

    columns: tuple[str, ...] = ()
    """Columns of ``obs`` that are predicted."""
    use_rep: str | None = None
    """Key of the embedding in ``obsm``, of a model that reads one; ``"X"`` for ``X``."""
    layer: str | None = None
    use_raw: bool | None = None
    gene_key: str | None = None
    modality: str | None = None
    donors_key: str | None = None
    unlabeled_category: str | None = None

    @classmethod
    def read(cls, registry: Mapping[str, Any]) -> Self:
        """The setup of a registry, as scvi-tools keeps it."""
        given = dict(registry[ARGUMENTS])
        return cls(**{**given, "columns": tuple(given["columns"])})

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Columns of ``obs`` that are read."""
        return (*self.columns, *(() if self.donors_key is None else (self.donors_key,)))


def registry_of(setup: Setup, name: str, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A registry as of an AnnDataManager, in types that JSON holds, for data that are no AnnData."""
    return {
        "scvi_version": version_of("scvi-tools"),
        "model_name": name,
        "setup_method_name": "setup_anndata",
        ARGUMENTS: json.loads(json.dumps(asdict(setup))),
        "field_registries": dict(fields or {}),
    }


def manager_of(adata: AnnData, setup: Setup, name: str) -> AnnDataManager:
    """Register the columns (and the embedding) of an AnnData.

    Raises
    ------
    KeyError
        If one is not there.
    """
    for column in setup.all_columns:
        entry_of(adata.obs, column, "obs")
    fields: list[Any] = [ObsColumn(f"labels_{at}", column) for at, column in enumerate(setup.columns)]
    if setup.donors_key is not None:
        fields.append(ObsColumn("donors", setup.donors_key))
    if setup.use_rep not in (None, "X"):
        entry_of(adata.obsm, str(setup.use_rep), "obsm")
        fields.append(ObsmField("embedding", setup.use_rep))
    registry = registry_of(setup, name)
    method = {key: registry[key] for key in ("model_name", "setup_method_name", ARGUMENTS)}
    manager = AnnDataManager(fields=fields, setup_method_args=method)
    logger = logging.getLogger("scvi")
    level = logger.level
    logger.setLevel(logging.WARNING)  # it tells that features of an embedding have no names
    try:
        manager.register_fields(adata)
    finally:
        logger.setLevel(level)
    return manager


def file_key(data: object) -> str | None:
    """What stands for files in the registries of a class; ``None`` for an object."""
    if isinstance(data, AnnData | MuData):
        return None
    paths = [data] if isinstance(data, str | PathLike) else list(data)  # type: ignore[call-overload]
    return json.dumps([str(path) for path in paths])

"""Where the tools store their results: in an object, or in a copy of a file."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData
from mudata import MuData

from scfm._keys import PARAMS, check_own, made_by
from scfm._paths import check_room, size_of
from scfm._write import check_output, has_entry, read_entry, read_frame, write_results
from scfm.read import open_container

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from scfm._write import Results

__all__ = ["Target", "adata_of", "check_paths", "target_of"]

logger = logging.getLogger("scfm")


class Target(ABC):
    """Takes the results of a verb."""

    data: AnnData | MuData | Path
    """What the verb reads."""
    verb: str
    """Its name in ``scfm.tl``, by which it knows its earlier results."""
    _places: tuple[tuple[str, str], ...] = ()
    """Where an earlier run may have left results that this one does not have."""

    @property
    @abstractmethod
    def var_names(self) -> pd.Index:
        """Names of the genes."""

    @abstractmethod
    def frame(self, obsm: Sequence[str], uns: Sequence[str]) -> AnnData:
        """The annotation of the cells with some of ``obsm``, which must be there, and of ``uns``; perhaps without a matrix."""

    @abstractmethod
    def has(self, slot: str, name: str) -> bool:
        """Whether there is an entry of this name already."""

    @abstractmethod
    def uns(self, name: str) -> Any:
        """An entry of ``uns``, ``None`` where there is none."""

    @abstractmethod
    def _put(self, results: Results, stale: Sequence[tuple[str, str]]) -> AnnData | MuData | Path | None:
        """Put the results into their place, and remove what is in the stale ones."""

    @abstractmethod
    def check_room(self, row_bytes: int) -> None:
        """Raise an OSError if the disk has no room for results of ``row_bytes`` a cell."""

    def check_free(self, uns: str, *places: tuple[str, str]) -> None:
        """Find out before the long work whether results can be stored without anything being lost.

        Parameters
        ----------
        uns
            Key of the provenance.
        places
            Slot and key of the other results. Those of an earlier run that this one does not have are removed with its
            provenance, by :meth:`store`.

        Raises
        ------
        ValueError
            If there is something in one of the places that is no earlier result of the same verb.
        """
        stored = self.uns(uns)
        taken = [f"{slot}[{name!r}]" for slot, name in places if self.has(slot, name)]
        taken += [f"uns[{uns!r}]"] if stored is not None else []
        check_own(self.verb, taken, stored)
        self._places = places

    def store(self, results: Results) -> AnnData | MuData | Path | None:
        """Put the results into their place, with the name of the verb in ``params``; what the verb returns."""
        for entry in results.uns.values():
            if isinstance(entry, dict) and PARAMS in entry:
                entry[PARAMS] = made_by(self.verb) | entry[PARAMS]
        return self._put(results, [place for place in self._places if place[1] not in getattr(results, place[0])])


class ObjectTarget(Target):
    """An AnnData, or a modality of a MuData."""

    def __init__(self, data: AnnData | MuData, modality: str | None, verb: str, *, copy: bool) -> None:
        self.data: AnnData | MuData = data
        self.verb = verb
        self._modality, self._copy = modality, copy
        found = self._adata(data)
        if found is not None and found.isbacked and (copy or found.is_view):
            what = "copy" if copy else "view"
            msg = (
                f"A {what} of backed data cannot take results. Call .to_memory() on it first, embed the whole backed object, "
                "or get the array with scfm.model.load(model).embed(data)."
            )
            raise ValueError(msg)

    def _adata(self, data: AnnData | MuData) -> AnnData | None:
        """The AnnData that takes the results; ``None`` without such a modality, which is told by what reads it."""
        return data.mod.get(self._modality) if isinstance(data, MuData) else data

    @property
    def var_names(self) -> pd.Index:
        return self.frame((), ()).var_names

    def frame(self, obsm: Sequence[str], uns: Sequence[str]) -> AnnData:
        """The whole object: what is not asked for costs nothing here."""
        return adata_of(self.data, self._modality, "data")

    def has(self, slot: str, name: str) -> bool:
        """Whether there is an entry of this name already."""
        found = self._adata(self.data)
        return found is not None and name in getattr(found, slot)

    def uns(self, name: str) -> Any:
        """An entry of ``uns``, ``None`` where there is none."""
        found = self._adata(self.data)
        return None if found is None else found.uns.get(name)

    def check_room(self, row_bytes: int) -> None:
        """Nothing goes to a disk."""

    def _put(self, results: Results, stale: Sequence[tuple[str, str]]) -> AnnData | MuData | None:
        """Set the results; returns the copy if there is to be one."""
        data = self.data.copy() if self._copy else self.data
        adata = adata_of(data, self._modality, "data")
        for slot, name, value in results.items():
            if slot != "uns" and name in getattr(adata, slot):
                logger.info("overwriting .%s[%r]", slot, name)
            getattr(adata, slot)[name] = value
        for slot, name in stale:
            if name in getattr(adata, slot):
                del getattr(adata, slot)[name]
        logger.info("added %s", results)
        return data if self._copy else None


class FileTarget(Target):
    """A copy of a file."""

    def __init__(self, data: Path, out: Path, modality: str | None, verb: str) -> None:
        self.data: Path = data
        self.verb = verb
        self._out, self._modality = out, modality

    @property
    def var_names(self) -> pd.Index:
        with open_container(self.data, self._modality) as found:
            return found.var.index

    def frame(self, obsm: Sequence[str], uns: Sequence[str]) -> AnnData:
        """Only what is asked for, without a matrix."""
        return read_frame(self.data, self._modality, obsm=obsm, uns=uns)

    def has(self, slot: str, name: str) -> bool:
        """Whether there is an entry of this name already."""
        return has_entry(self.data, self._modality, f"{slot}/{name}")

    def uns(self, name: str) -> Any:
        """An entry of ``uns``, ``None`` where there is none."""
        return read_entry(self.data, self._modality, f"uns/{name}")

    def check_room(self, row_bytes: int) -> None:
        """Raise an OSError if the disk has no room for the copy with results of ``row_bytes`` a cell."""
        with open_container(self.data, self._modality) as found:
            check_room(self._out.absolute().parent, size_of(self.data) + found.n_obs * row_bytes)

    def _put(self, results: Results, stale: Sequence[tuple[str, str]]) -> Path:
        """Write the copy; returns its path."""
        write_results(self.data, self._out, results, self._modality, stale)
        logger.info("added %s to %s", results, self._out)
        return self._out


def target_of(
    data: object,
    verb: str,
    *,
    modality: str | None = None,
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
    copy: bool = False,
) -> Target:
    """Find out before the long work whether results can be stored, and where.

    Raises
    ------
    TypeError
        If ``data`` is neither an object nor a path.
    ValueError
        If ``out`` is missing for a path, or given for an object, or the results cannot be stored there.
    FileExistsError, FileNotFoundError, OSError
        As :func:`scfm._write.check_output`.
    """
    if isinstance(data, AnnData | MuData):
        if out is not None or overwrite:
            given = "out" if out is not None else "overwrite"
            msg = f"{given}= is for the path of a file. tl.{verb} stores its results in the {type(data).__name__}: leave {given}= out, and write the object to a file after it."
            raise ValueError(msg)
        return ObjectTarget(data, modality, verb, copy=copy)
    source, target = check_paths(data, verb, out=out, copy=copy)
    check_output(source, target, modality, overwrite=overwrite)
    return FileTarget(source, target, modality, verb)


def adata_of(data: object, modality: str | None, what: str) -> AnnData:
    """The AnnData in question.

    Raises
    ------
    TypeError
        If it is neither AnnData nor MuData.
    ValueError
        If ``modality`` is missing, or unknown.
    """
    if isinstance(data, AnnData):
        return data
    if not isinstance(data, MuData):
        msg = f"{what} must be an AnnData or MuData object, or the path of one, got {type(data).__name__}."
        raise TypeError(msg)
    if modality is None or modality not in data.mod:
        found = "needs modality=" if modality is None else f"has no modality {modality!r}"
        msg = f"{what} is a MuData and {found}. Its modalities: {', '.join(map(repr, data.mod))}."
        raise ValueError(msg)
    return data[modality]


def check_paths(data: object, verb: str, *, out: str | PathLike[str] | None, copy: bool) -> tuple[Path, Path]:
    """The paths of a file and of the copy that takes the results."""
    if not isinstance(data, str | PathLike):
        msg = f"tl.{verb} takes an AnnData, a MuData, or the path of a file together with out=; got {type(data).__name__}."
        raise TypeError(msg)
    if out is None:
        msg = f"tl.{verb} does not change the file {data}. Give out=, the file to write: a copy with the results."
        raise ValueError(msg)
    if copy:
        msg = "copy=True is for an AnnData or MuData; of a file, out= is the copy already. Leave copy= out."
        raise ValueError(msg)
    return Path(data).expanduser(), Path(out).expanduser()

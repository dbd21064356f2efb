"""The catalogue of CELLxGENE Discover, which is foreign data: every value is looked at before it is used."""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from time import sleep
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import requests

from scfm._checks import is_int
from scfm._settings import settings
from scfm.weights.transport import TRANSIENT, RemoteFile, RetryableError, cause, send

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["COLUMNS", "HOSTS", "SPECIES", "UUID", "Entry", "catalogue", "check_online", "table_of", "wanted_keys"]

PATH = "/curation/v1/datasets"
HOSTS = (".cziscience.com",)
MAX_JSON_BYTES = 500_000_000
READ_SECONDS = (60, 120, 240)  # the catalogue is put together when it is asked for, which may take long
LARGEST = 2**53
UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
FIELDS = {"species": "organism", "tissue": "tissue", "assay": "assay", "disease": "disease"}
COLUMNS = "title collection doi species tissues assays diseases cells bytes url version schema_version".split()
SPECIES = {
    "human": "Homo sapiens",
    "mouse": "Mus musculus",
    "rat": "Rattus norvegicus",
    "marmoset": "Callithrix jacchus",
    "rhesus macaque": "Macaca mulatta",
    "chimpanzee": "Pan troglodytes",
    "zebrafish": "Danio rerio",
    "pig": "Sus scrofa",
    "cow": "Bos taurus",
    "chicken": "Gallus gallus",
    "dog": "Canis lupus familiaris",
    "rabbit": "Oryctolagus cuniculus",
    "western clawed frog": "Xenopus tropicalis",
    "fruit fly": "Drosophila melanogaster",
    "c. elegans": "Caenorhabditis elegans",
}


class Entry(NamedTuple):
    id: str
    row: dict[str, Any]
    terms: dict[str, dict[str, str]]
    """Ontology ids by labels, by the names of filters."""
    primary: bool

    def keys(self, name: str) -> set[str]:
        return {key.casefold() for pair in self.terms[name].items() for key in pair if key}


def catalogue() -> tuple[list[Entry], int]:
    """All entries that have what is needed, and how many have not."""
    check_online("The catalogue of CELLxGENE")
    url = settings.cellxgene_endpoint.rstrip("/") + PATH
    body = _get(url)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        msg = f"{url} gave no JSON ({error}): log in to the network if it asks for that, or check SCFM_CELLXGENE_ENDPOINT."
        raise ValueError(msg) from error
    if not isinstance(found, list):
        msg = f"{url} gave a {type(found).__name__}, expected a list of datasets: check SCFM_CELLXGENE_ENDPOINT."
        raise ValueError(msg)
    entries = {entry.id: entry for raw in reversed(found) if (entry := _parsed(raw))}
    if found and not entries:
        msg = f"None of the {len(found)} entries of {url} has the known form: update scfm, or report this."
        raise ValueError(msg)
    return list(entries.values())[::-1], len(found) - len(entries)


def check_online(what: str) -> None:
    if settings.offline:
        msg = f"{what} is on the network, and scfm.settings.offline is set: set it to False (unset SCFM_OFFLINE)."
        raise ConnectionError(msg)


def _get(url: str) -> bytes:
    """What an address gives, up to a bound; asked three times, without credentials or redirects."""
    RemoteFile(url)  # which refuses what is no address, or has a login in it
    reason = ""
    for attempt, seconds in enumerate(READ_SECONDS):
        sleep(attempt)
        try:
            headers = {"Accept-Encoding": "gzip", "User-Agent": "scfm"}
            with requests.Session() as session, send(session, url, headers, seconds) as response:
                if response.status_code == 200:
                    return _body(response)
                reason = f"it answered {response.status_code}, expected 200"
                if response.status_code not in TRANSIENT:
                    break
        except RetryableError as problem:
            reason = str(problem)
        except requests.RequestException as error:
            reason = cause(error)
    msg = f"{url} cannot be read ({reason}): try again later, or check the network, its proxy settings and SCFM_CELLXGENE_ENDPOINT."
    raise ConnectionError(msg)


def _body(response: requests.Response) -> bytes:
    body = bytearray()
    for piece in response.iter_content(2**16):
        body += piece
        if len(body) > MAX_JSON_BYTES:
            msg = f"{response.url} gives more than {MAX_JSON_BYTES:,} bytes, which is no catalogue: check SCFM_CELLXGENE_ENDPOINT."
            raise ValueError(msg)
    return bytes(body)


def _parsed(raw: Any) -> Entry | None:
    """An entry of the catalogue; ``None`` if it lacks what is needed or has another form."""
    try:
        asset = next(asset for asset in _list(raw["assets"]) if asset["filetype"].upper() == "H5AD")
        terms = {
            name: {_text(term["label"]): _text(term.get("ontology_term_id") or "") for term in _list(raw.get(field))}
            for name, field in FIELDS.items()
        }
        terms["suspension_type"] = {_text(kind): "" for kind in _list(raw.get("suspension_type"))}
        found: dict[str, Any] = {
            "title": _text(raw.get("title") or ""),
            "collection": _text(raw.get("collection_name") or ""),
            "doi": _text(raw.get("collection_doi") or ""),
            **{column: ", ".join(terms[name]) for column, name in zip(COLUMNS[3:7], FIELDS, strict=True)},
            "cells": _number(raw.get("cell_count")),
            "bytes": _number(asset.get("filesize")) or None,
            "url": _text(asset["url"]),
            "version": _text(raw["dataset_version_id"]),
            "schema_version": _text(raw.get("schema_version") or ""),
        }
        name, primary = _text(raw["dataset_id"]), any(value is True for value in _list(raw.get("is_primary_data")))
        valid = UUID.fullmatch(name) and UUID.fullmatch(found["version"])
        return Entry(name, found, terms, primary) if valid else None
    except (AttributeError, KeyError, StopIteration, TypeError):
        return None


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | None):
        raise TypeError
    return value or []


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value if value.isprintable() else " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _number(value: Any) -> int | None:
    """A count; the catalogue has −1 and null for what is not known."""
    if value is None:
        return None
    if not is_int(value) or value > LARGEST:
        raise TypeError
    return value if value >= 0 else None


def wanted_keys(name: str, values: str | Sequence[str], entries: Sequence[Entry]) -> set[str]:
    """What a filter asks for, in lower case; each must occur in the catalogue."""
    asked = [values] if isinstance(values, str) else list(values)
    if not asked or not all(isinstance(value, str) for value in asked):
        msg = f"{name}={values!r}: expected a label, an ontology id, a list of these, or None for all."
        raise ValueError(msg)
    known = {key.casefold(): key for entry in entries for pair in entry.terms[name].items() for key in pair if key}
    names = {value: value.casefold() for value in asked}
    if name == "species":
        names = {value: SPECIES.get(key, key).casefold().replace("_", " ") for value, key in names.items()}
    unknown = [value for value, key in names.items() if key not in known]
    if unknown:
        common = {key: key for key, latin in SPECIES.items() if name == "species" and latin.casefold() in known}
        close = {value: _close(names[value], {**common, **known}) for value in unknown}
        hints = "; ".join(f"{value!r} (close to it: {hint or 'nothing'})" for value, hint in close.items())
        few = ", ".join(map(repr, list(known.values())[:4]))
        msg = f"{name}: the catalogue of CELLxGENE has no {hints}. Expected a label or an ontology id, as {few}."
        raise ValueError(msg)
    return set(names.values())


def _close(key: str, known: dict[str, str]) -> str:
    """Names that contain another or are contained in it, and those that are spelt alike."""
    inside = sorted((name for name in known if key and (key in name or name in key)), key=len)[:5]
    return ", ".join(repr(known[name]) for name in dict.fromkeys([*inside, *get_close_matches(key, known, n=5)]))


def table_of(entries: Iterable[Entry]) -> pd.DataFrame:
    rows = {entry.id: entry.row for entry in entries}
    index = pd.Index(list(rows), name="dataset_id", dtype=object)
    table = pd.DataFrame(list(rows.values()), index=index, columns=COLUMNS)
    return table.astype({"cells": "Int64", "bytes": "Int64"})

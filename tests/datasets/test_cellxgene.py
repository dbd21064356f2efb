"""The catalogue is searched, whatever is in it, and files arrive whole, several at a time, and only from where they may."""

from __future__ import annotations

import _thread
import gzip
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scfm
from scfm.datasets import _cellxgene_catalogue, _cellxgene_files, cellxgene
from scfm.genes.species import SPECIES

from ..weights.server import Fault, FileServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CATALOGUE = "/curation/v1/datasets"
LUNG, BLOOD, BRAIN, MIXED = (f"{i}0000000-0000-4000-8000-000000000000" for i in range(1, 5))
BODIES = {name: random.Random(name).randbytes(50_000 + i) for i, name in enumerate([LUNG, BLOOD, BRAIN, MIXED])}
TERMS = {
    "Homo sapiens": "NCBITaxon:9606",
    "Mus musculus": "NCBITaxon:10090",
    "lung": "UBERON:0002048",
    "left lung": "UBERON:0002168",
    "blood": "UBERON:0000178",
    "brain": "UBERON:0000955",
    "10x 3' v2": "EFO:0009899",
    "10x 3' v3": "EFO:0009922",
    "Smart-seq2": "EFO:0008931",
    "normal": "PATO:0000461",
    "COVID-19": "MONDO:0100096",
}


def version(name: str, number: int = 0) -> str:
    return name[:-4] + f"{number:04x}"


def terms(*labels: str) -> list[dict[str, str]]:
    return [{"label": label, "ontology_term_id": TERMS[label]} for label in labels]


def entry(server: FileServer, name: str, organism: str, tissue: str, assay: str, disease: str, **fields: Any) -> Any:
    """An entry as the catalogue has it, and its file on the server."""
    path = f"/{version(name)}.h5ad"
    server.files[path] = BODIES[name]
    asset = {"filetype": "H5AD", "filesize": len(BODIES[name]), "url": server.url(path)}
    return {
        "dataset_id": name,
        "dataset_version_id": version(name),
        "title": f"Cells of {tissue}",
        "collection_id": BRAIN,
        "collection_name": "An atlas",
        "collection_doi": "10.1000/1",
        "organism": terms(*organism.split("|")),
        "tissue": terms(*tissue.split("|")),
        "assay": terms(*assay.split("|")),
        "disease": terms(*disease.split("|")),
        "cell_count": 1234,
        "is_primary_data": [True],
        "suspension_type": ["cell"],
        "assets": [{"filetype": "RDS", "filesize": 5, "url": server.url("/x.rds")}, asset],
        "schema_version": "5.2.0",
        "donor_id": ["a", "b"],
        **fields,
    }


def published(server: FileServer) -> list[Any]:
    return [
        entry(server, LUNG, "Homo sapiens", "lung|left lung", "10x 3' v2|10x 3' v3", "normal|COVID-19"),
        entry(server, BLOOD, "Homo sapiens", "blood", "10x 3' v3", "normal", is_primary_data=[False]),
        entry(server, BRAIN, "Mus musculus", "brain", "Smart-seq2", "normal", suspension_type=["nucleus"]),
        entry(
            server, MIXED, "Homo sapiens|Mus musculus", "blood", "10x 3' v2", "normal", is_primary_data=[True, False]
        ),
    ]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server with the layout of CELLxGENE; waiting takes no time, and no proxy of the machine is asked."""
    monkeypatch.setattr("scfm.weights.download.sleep", lambda _: None)
    monkeypatch.setattr(_cellxgene_catalogue, "sleep", lambda _: None)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with FileServer() as server:
        scfm.settings.offline = False
        scfm.settings.cellxgene_endpoint = server.url("/")
        publish(server, published(server))
        yield server
        scfm.settings.reset()


def publish(server: FileServer, content: Any) -> None:
    server.files[CATALOGUE] = json.dumps(content).encode()


def revise(server: FileServer, name: str, body: bytes) -> None:
    """Publish a new version of a dataset."""
    content = json.loads(server.files[CATALOGUE])
    changed = next(raw for raw in content if raw["dataset_id"] == name)
    changed["dataset_version_id"] = version(name, 1)
    changed["assets"][1].update(filesize=len(body), url=server.url(f"/{version(name, 1)}.h5ad"))
    server.files[f"/{version(name, 1)}.h5ad"] = body
    publish(server, content)


def table() -> pd.DataFrame:
    return cellxgene.list_datasets(primary=False)


def asked(server: FileServer) -> list[str]:
    """Paths of the files that were asked for since the last call."""
    paths = [seen.path for seen in server.seen]
    server.seen.clear()
    return [path for path in paths if path != CATALOGUE]


def marker(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def names(folder: Path) -> set[str]:
    """Files in a folder, locks aside."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


# --- the catalogue


def test_the_table(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login = tmp_path / "netrc"
    login.write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(login))
    found = table()
    assert found.index.name == "dataset_id"
    assert found.index.tolist() == [LUNG, BLOOD, BRAIN, MIXED]
    assert found.loc[LUNG].to_dict() == {
        "title": "Cells of lung|left lung",
        "collection": "An atlas",
        "doi": "10.1000/1",
        "species": "Homo sapiens",
        "tissues": "lung, left lung",
        "assays": "10x 3' v2, 10x 3' v3",
        "diseases": "normal, COVID-19",
        "cells": 1234,
        "bytes": len(BODIES[LUNG]),
        "url": server.url(f"/{version(LUNG)}.h5ad"),
        "version": version(LUNG),
        "schema_version": "5.2.0",
    }
    assert (found["cells"].dtype, found["bytes"].dtype) == (pd.Int64Dtype(), pd.Int64Dtype())
    assert [seen.path for seen in server.seen] == [CATALOGUE]
    assert not {"authorization", "cookie"} & set(server.seen[0].headers)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [LUNG, BRAIN, MIXED]),
        ({"primary": False}, [LUNG, BLOOD, BRAIN, MIXED]),
        ({"species": "human"}, [LUNG, MIXED]),
        ({"species": "Mouse"}, [BRAIN, MIXED]),
        ({"species": "homo sapiens"}, [LUNG, MIXED]),
        ({"species": "homo_sapiens"}, [LUNG, MIXED]),
        ({"species": "ncbitaxon:10090"}, [BRAIN, MIXED]),
        ({"species": ["human", "mouse"]}, [LUNG, BRAIN, MIXED]),
        ({"tissue": "LUNG"}, [LUNG]),
        ({"tissue": "UBERON:0002168"}, [LUNG]),
        ({"tissue": ["lung", "UBERON:0000178"]}, [LUNG, MIXED]),
        ({"tissue": pd.Index(["brain"])}, [BRAIN]),
        ({"assay": "10x 3' v2", "tissue": "blood"}, [MIXED]),
        ({"assay": "Smart-seq2", "tissue": "blood"}, []),
        ({"disease": "covid-19"}, [LUNG]),
        ({"suspension_type": "nucleus"}, [BRAIN]),
        ({"suspension_type": ["nucleus", "Cell"], "species": "human", "primary": False}, [LUNG, BLOOD, MIXED]),
    ],
)
def test_filters(server: FileServer, filters: dict[str, Any], expected: list[str]) -> None:
    found = cellxgene.list_datasets(**filters)
    assert found.index.tolist() == expected
    assert list(found.columns) == _cellxgene_catalogue.COLUMNS


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"species": "humna"}, r"species: .* has no 'humna' \(close to it: 'human'\)"),
        ({"species": "rat"}, r"no 'rat' \(close to it: nothing\).*'Homo sapiens', 'NCBITaxon:9606', 'Mus musculus'"),
        ({"species": "sapiens"}, "close to it: 'Homo sapiens'"),
        ({"tissue": "lungs"}, r"tissue: .* 'lungs' \(close to it: 'lung'"),
        ({"tissue": ["lung", "bran"]}, r"no 'bran' \(close to it: 'brain'\)"),
        ({"tissue": "human"}, "no 'human'"),
        ({"assay": "10x"}, r"close to it: \"10x 3' v[23]\", \"10x 3' v[23]\""),
        ({"assay": "Smart_seq2"}, "close to it: 'Smart-seq2'"),
        ({"disease": "covid"}, "close to it: 'COVID-19'"),
        ({"suspension_type": "nuclei"}, "close to it: 'nucleus'"),
        ({"suspension_type": ""}, "no ''"),
        ({"tissue": []}, r"tissue=\[\]: expected a label, an ontology id, a list of these"),
    ],
)
def test_a_filter_that_matches_nothing(server: FileServer, filters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cellxgene.list_datasets(**filters)


def test_common_names_are_those_of_scfm() -> None:
    assert {one.name.casefold() for one in SPECIES} <= set(_cellxgene_catalogue.SPECIES)


DAMAGE: list[Callable[[Any], object]] = [
    lambda raw: raw.pop("dataset_id"),
    lambda raw: raw.update(dataset_id="../x"),
    lambda raw: raw.update(dataset_id=7),
    lambda raw: raw.update(dataset_id=LUNG),
    lambda raw: raw.pop("dataset_version_id"),
    lambda raw: raw.update(dataset_version_id="../../etc/passwd"),
    lambda raw: raw.pop("assets"),
    lambda raw: raw.update(assets={}),
    lambda raw: raw.update(assets=[]),
    lambda raw: raw["assets"].pop(),
    lambda raw: raw["assets"][1].pop("url"),
    lambda raw: raw["assets"][1].update(url=None),
    lambda raw: raw["assets"][1].update(filesize="12"),
    lambda raw: raw["assets"][1].update(filesize=2**80),
    lambda raw: raw["assets"].insert(0, 5),
    lambda raw: raw.update(title=["a"]),
    lambda raw: raw.update(cell_count=True),
    lambda raw: raw.update(organism="Homo sapiens"),
    lambda raw: raw.update(tissue={"label": "lung"}),
    lambda raw: raw.update(assay=["10x"]),
    lambda raw: raw.update(disease=[{"ontology_term_id": "a"}]),
    lambda raw: raw.update(disease=[{"label": 1, "ontology_term_id": "a"}]),
    lambda raw: raw.update(suspension_type="cell"),
    lambda raw: raw.update(is_primary_data=True),
]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_entries_that_lack_something_are_left_out(server: FileServer, damage: Callable[[Any], object]) -> None:
    content = published(server)
    damage(content[1])
    publish(server, [None, content[0], content[1], [], "x", *content[2:]])
    with pytest.warns(UserWarning, match="^4 of 7 entries of the catalogue of CELLxGENE lack") as caught:
        found = table()
    assert [warning.filename for warning in caught] == [__file__]
    assert found.index.tolist() == [LUNG, BRAIN, MIXED]


def test_what_need_not_be_known(server: FileServer) -> None:
    content = published(server)
    for field in ("title", "collection_name", "collection_doi", "cell_count", "organism", "schema_version", "assay"):
        content[0][field] = None
    content[0]["assets"][1].update(filesize=-1, filetype="h5ad")
    for field in ("tissue", "disease", "suspension_type", "is_primary_data"):
        del content[0][field]
    content[1]["title"] = "red\x1b[31m\nline \ud800"
    publish(server, content)
    found = table()
    assert found.loc[LUNG, ["title", "species", "tissues", "schema_version"]].tolist() == [""] * 4
    assert found.loc[LUNG, ["cells", "bytes"]].isna().all()
    assert found.loc[BLOOD, "title"] == "red [31m line"
    assert LUNG not in cellxgene.list_datasets().index


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["label", "url", "filetype"]), inner),
    max_leaves=5,
)


@given(
    entry=NESTED
    | st.fixed_dictionaries(
        {
            "dataset_id": NESTED | st.just(LUNG),
            "dataset_version_id": NESTED | st.just(LUNG),
            "assets": NESTED | st.just([{"filetype": "H5AD", "url": "u"}]),
            "tissue": NESTED,
            "cell_count": NESTED,
            "is_primary_data": NESTED,
        }
    )
)
def test_no_entry_is_an_error(entry: Any) -> None:
    found = _cellxgene_catalogue._parsed(entry)
    assert found is None or found.id == LUNG


def test_an_empty_catalogue(server: FileServer) -> None:
    publish(server, [])
    assert table().shape == (0, 12)
    with pytest.raises(ValueError, match="has no 'human'"):
        cellxgene.list_datasets(species="human")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>log in</html>", "gave no JSON .*log in to the network"),
        (b"[" * 100_000, "gave no JSON"),
        (b"\xff", "gave no JSON"),
        (b'{"message": "no"}', "gave a dict, expected a list of datasets: check SCFM_CELLXGENE_ENDPOINT"),
        (b'[{"id": 1}, 2]', "None of the 2 entries of .* has the known form: update scfm"),
        (b"[" + b" " * 2000 + b"]", "gives more than 1,000 bytes"),
        (gzip.compress(b"[" + b" " * 2000 + b"]", mtime=0), "gives more than 1,000 bytes"),
    ],
)
def test_something_else_than_a_catalogue(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.setattr(_cellxgene_catalogue, "MAX_JSON_BYTES", 10**6 if content.startswith(b"[[") else 1000)
    server.files[CATALOGUE] = content
    packed = content.startswith(b"\x1f\x8b")
    server.always = Fault(headers={"Content-Encoding": "gzip"} if packed else {})
    with pytest.raises(ValueError, match=message):
        table()


def test_a_packed_catalogue(server: FileServer) -> None:
    server.files[CATALOGUE] = gzip.compress(server.files[CATALOGUE])
    server.always = Fault(headers={"Content-Encoding": "gzip"})
    assert len(table()) == 4
    assert server.seen[0].headers["accept-encoding"] == "gzip"


def test_a_catalogue_that_comes_late(server: FileServer) -> None:
    server.script.extend([Fault(status=504), Fault(stop_after=100)])
    assert len(table()) == 4
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("fault", "tries", "message"),
    [
        (Fault(status=503), 3, "answered 503, expected 200.*SCFM_CELLXGENE_ENDPOINT"),
        (Fault(status=404), 1, "answered 404"),
        (Fault(status=302, headers={"Location": "https://elsewhere.invalid/"}), 1, "answered 302"),
        (Fault(stop_after=10, reset=True), 3, "cannot be read"),
        (Fault(headers={"Content-Encoding": "gzip"}), 3, "cannot be read"),
    ],
)
def test_a_catalogue_that_does_not_come(server: FileServer, fault: Fault, tries: int, message: str) -> None:
    server.always = fault
    with pytest.raises(ConnectionError, match=message):
        table()
    assert len(server.seen) == tries


def ask(address: str) -> None:
    scfm.settings.cellxgene_endpoint = address
    table()


@pytest.mark.parametrize("address", ["ftp://a.org", "a.org", "https://me:secret@a.org"])
def test_an_endpoint_that_is_no_address(server: FileServer, address: str) -> None:
    with pytest.raises(ValueError, match=r"address of a file|should begin with https://"):
        ask(address)


# --- files


@pytest.mark.parametrize("form", ["table", "rows", "list", "index", "one", "csv"])
@pytest.mark.parametrize("workers", [1, 4])
def test_files_are_fetched(server: FileServer, tmp_path: Path, form: str, workers: int) -> None:
    found = table()
    found.to_csv(tmp_path / "saved.csv")
    forms: dict[str, Any] = {
        "table": found,
        "rows": found.assign(mine=np.nan).loc[[BRAIN, LUNG, BRAIN]],
        "list": [MIXED, BLOOD],
        "index": found.index,
        "one": BLOOD,
        "csv": pd.read_csv(tmp_path / "saved.csv", index_col=0),
    }
    expected = {"table": [*BODIES], "rows": [BRAIN, LUNG], "list": [MIXED, BLOOD], "one": [BLOOD]}.get(form, [*BODIES])
    folder = tmp_path / "new" / "folder"
    paths = cellxgene.fetch(forms[form], folder, workers=workers)
    assert paths == [folder / f"{name}.h5ad" for name in expected]
    for name, path in zip(expected, paths, strict=True):
        assert path.read_bytes() == BODIES[name]
        assert (
            marker(folder, name).items()
            >= {
                "dataset_id": name,
                "version": version(name),
                "sha256": hashlib.sha256(BODIES[name]).hexdigest(),
                "bytes": len(BODIES[name]),
                "species": found.loc[name, "species"],
            }.items()
        )
    assert names(folder) == {f"{name}{suffix}" for name in expected for suffix in (".h5ad", ".json")}
    assert sorted(asked(server)) == sorted(f"/{version(name)}.h5ad" for name in expected)


def test_nothing_to_fetch(server: FileServer, tmp_path: Path) -> None:
    assert cellxgene.fetch([], tmp_path / "x") == cellxgene.fetch(table().iloc[:0], tmp_path / "x") == []
    assert not (tmp_path / "x").exists()


def test_several_at_a_time(server: FileServer, tmp_path: Path) -> None:
    found, together, release = table(), threading.Event(), threading.Event()
    server.seen.clear()
    server.always = Fault(stop_after=1000, hold=release)

    def watch() -> None:
        until = time.monotonic() + 5
        while len(server.seen) < 3 and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(0.05)  # for a fourth, which must not come yet
        if len(server.seen) == 3:
            together.set()
        release.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    cellxgene.fetch(found, tmp_path, workers=3)
    watcher.join()
    assert together.is_set()


def test_a_dropped_connection(server: FileServer, tmp_path: Path) -> None:
    found = table()
    server.script.append(Fault(stop_after=20_000, reset=True))
    (path,) = cellxgene.fetch(found.loc[[LUNG]], tmp_path)
    assert path.read_bytes() == BODIES[LUNG]
    assert server.ranges[0:2] == [None, None]
    assert re.fullmatch(r"bytes=\d+-", server.ranges[2] or "")


def test_the_next_call_goes_on(server: FileServer, tmp_path: Path) -> None:
    found = table()
    server.seen.clear()
    server.script.extend([Fault(stop_after=20_000), *[Fault(status=503)] * 5])
    with pytest.raises(
        OSError,
        match=rf"1 of 1 datasets could not be fetched.*fetch\(\['{LUNG}'\], '{tmp_path}'\)\.\n{LUNG}: .* 20,000 of 50,000",
    ):
        cellxgene.fetch(found.loc[[LUNG]], tmp_path)
    assert not list(tmp_path.glob("[!.]*"))
    server.seen.clear()
    cellxgene.fetch(LUNG, tmp_path)
    assert [seen.sent for seen in server.seen[1:]] == [30_000]
    assert (tmp_path / f"{LUNG}.h5ad").read_bytes() == BODIES[LUNG]
    assert names(tmp_path) == {f"{LUNG}.h5ad", f"{LUNG}.json"}


def test_what_is_there_is_not_fetched(server: FileServer, tmp_path: Path) -> None:
    found = table()
    cellxgene.fetch(found.iloc[:2], tmp_path)
    server.seen.clear()
    cellxgene.fetch(found.iloc[:2], tmp_path)
    assert not server.seen
    cellxgene.fetch(found.iloc[:3], tmp_path)
    assert asked(server) == [f"/{version(BRAIN)}.h5ad"]
    (tmp_path / f"{LUNG}.h5ad").unlink()
    cellxgene.fetch(found.iloc[:3], tmp_path)
    assert asked(server) == [f"/{version(LUNG)}.h5ad"]


def test_results_that_were_written_into_a_file_stay(server: FileServer, tmp_path: Path) -> None:
    (path,) = cellxgene.fetch(LUNG, tmp_path)
    path.write_bytes(b"with embeddings")
    asked(server)
    cellxgene.fetch(LUNG, tmp_path)
    revise(server, LUNG, b"new")
    with pytest.raises(OSError, match=rf"{path} is not as scfm has fetched it.*move it away"):
        cellxgene.fetch(LUNG, tmp_path)
    assert asked(server) == []
    assert path.read_bytes() == b"with embeddings"


def test_a_file_of_somebody_else_stays(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / f"{LUNG}.h5ad"
    path.write_bytes(b"mine")
    with pytest.raises(OSError, match="is not as scfm has fetched it"):
        cellxgene.fetch(LUNG, tmp_path)
    assert path.read_bytes() == b"mine"


def test_a_new_version(server: FileServer, tmp_path: Path) -> None:
    old, new = table(), BODIES[LUNG][::-1][:30_000]
    cellxgene.fetch(old, tmp_path)
    revise(server, LUNG, new)
    asked(server)
    server.script.extend([Fault(), Fault(stop_after=10_000), *[Fault(status=503)] * 5])
    with pytest.raises(OSError, match="1 of 4 datasets"):
        cellxgene.fetch(list(BODIES), tmp_path)
    assert (tmp_path / f"{LUNG}.h5ad").read_bytes() == BODIES[LUNG]
    assert marker(tmp_path, LUNG)["version"] == version(LUNG)
    asked(server)
    cellxgene.fetch(list(BODIES), tmp_path)
    assert (server.ranges, asked(server)) == ([None, "bytes=10000-"], [f"/{version(LUNG, 1)}.h5ad"])
    assert (tmp_path / f"{LUNG}.h5ad").read_bytes() == new
    assert marker(tmp_path, LUNG)["version"] == version(LUNG, 1)
    assert names(tmp_path) == {f"{name}{suffix}" for name in BODIES for suffix in (".h5ad", ".json")}


def test_parts_of_versions_do_not_mix(server: FileServer, tmp_path: Path) -> None:
    server.script.extend([Fault(), Fault(stop_after=20_000), *[Fault(status=503)] * 5])
    with pytest.raises(OSError, match="1 of 1 datasets"):
        cellxgene.fetch(LUNG, tmp_path)
    revise(server, LUNG, BODIES[BRAIN])
    (path,) = cellxgene.fetch(LUNG, tmp_path)
    assert path.read_bytes() == BODIES[BRAIN]
    assert names(tmp_path) == {f"{LUNG}.h5ad", f"{LUNG}.json"}


@pytest.mark.parametrize("updated", [False, True])
def test_a_stop_between_the_file_and_its_marker(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updated: bool
) -> None:
    if updated:
        cellxgene.fetch(LUNG, tmp_path)
        revise(server, LUNG, b"new")
    found = table()

    def stop(self: Path, target: Path) -> Path:
        if target.suffix == ".json":
            raise SystemExit
        return replace(self, target)

    replace = type(tmp_path).replace
    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "replace", stop)
        with pytest.raises(SystemExit):
            _cellxgene_files._fetch_one(tmp_path, LUNG, found.loc[LUNG].to_dict())
    asked(server)
    cellxgene.fetch(found.loc[[LUNG]], tmp_path)
    assert asked(server) == []
    assert marker(tmp_path, LUNG)["version"] == found.loc[LUNG, "version"]
    assert names(tmp_path) == {f"{LUNG}.h5ad", f"{LUNG}.json"}


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"version": 3}'])
def test_a_marker_that_is_none(server: FileServer, tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{LUNG}.json").write_bytes(content)
    cellxgene.fetch(LUNG, tmp_path)
    assert marker(tmp_path, LUNG)["version"] == version(LUNG)


def test_two_calls_at_once(server: FileServer, tmp_path: Path) -> None:
    found = table()
    server.always = Fault(drip=0.01)
    threads = [threading.Thread(target=cellxgene.fetch, args=(found, tmp_path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked(server)) == sorted(f"/{version(name)}.h5ad" for name in BODIES)
    assert names(tmp_path) == {f"{name}{suffix}" for name in BODIES for suffix in (".h5ad", ".json")}


# --- what is refused


@pytest.mark.parametrize(
    "url",
    [
        "https://cziscience.com.example.org/a.h5ad",
        "https://evilcziscience.com/a.h5ad",
        "http://datasets.cellxgene.cziscience.com/a.h5ad",
        "https://datasets.cellxgene.cziscience.com:8443/a.h5ad",
        "https://example.org/datasets.cellxgene.cziscience.com",
        "https://me@datasets.cellxgene.cziscience.com/a.h5ad",
        "http://127.0.0.1:1/a.h5ad",
        "https://127.0.0.1/a.h5ad",
        "file:///etc/passwd",
        "",
    ],
)
@pytest.mark.parametrize("given", ["table", "id"])
def test_other_hosts(server: FileServer, tmp_path: Path, url: str, given: str) -> None:
    content = published(server)
    content[2]["assets"][1]["url"] = url
    publish(server, content)
    with pytest.raises(
        ValueError, match=r"not asked; expected https on cziscience.com, or http://127|address of a file|of a file has"
    ):
        cellxgene.fetch(table() if given == "table" else [LUNG, BRAIN], tmp_path / "x")
    assert asked(server) == []
    assert not (tmp_path / "x").exists()


def test_the_official_host(server: FileServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(remote: Any, target: Path, **_: Any) -> str:
        target.write_bytes(BODIES[LUNG])
        calls.append((remote.url, remote.hosts))
        return "hash"

    calls: list[Any] = []
    monkeypatch.setattr(_cellxgene_files, "download", download)
    url = "https://datasets.cellxgene.cziscience.com/a.h5ad"
    cellxgene.fetch(table().iloc[:1].assign(url=url), tmp_path)
    assert calls == [(url, (".cziscience.com",))]


def test_a_password_of_the_endpoint_is_not_repeated(server: FileServer, tmp_path: Path) -> None:
    found = table()
    scfm.settings.cellxgene_endpoint = "https://me:secret@mirror.invalid"
    for call in (table, lambda: cellxgene.fetch(found, tmp_path)):
        with pytest.raises(ValueError, match="has a user name or a password in it") as caught:
            call()
        assert "secret" not in str(caught.value)


def test_a_redirect_to_another_host(server: FileServer, tmp_path: Path) -> None:
    found = table()
    server.always = Fault(status=302, headers={"Location": "https://elsewhere.invalid/file"})
    with pytest.raises(OSError, match="redirects to elsewhere.invalid.*not allowed"):
        cellxgene.fetch(found.iloc[:1], tmp_path)


@pytest.mark.parametrize(
    "name", ["../x", "", f"{LUNG}\n", f"{LUNG}/../../x", f"../{LUNG}", LUNG.upper().replace("1", "A"), 3, None]
)
def test_ids_that_are_none(server: FileServer, tmp_path: Path, name: Any) -> None:
    found = table()
    server.seen.clear()
    for datasets in ([LUNG, name], found.rename(index={LUNG: name})):
        words = "is no dataset id; expected one of the index of list_datasets|datasets must be .* a list of str"
        with pytest.raises((ValueError, TypeError), match=words):
            cellxgene.fetch(datasets, tmp_path)
    assert not server.seen
    assert not list(tmp_path.iterdir())


def test_an_id_that_is_not_in_the_catalogue(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"has no dataset {version(LUNG, 9)}: it is withdrawn.*primary=False"):
        cellxgene.fetch([LUNG, version(LUNG, 9)], tmp_path)
    assert asked(server) == []


@pytest.mark.parametrize(
    "change",
    [{"version": "../x"}, {"version": 3}, {"version": None}, {"url": None}, {"url": 3}, {"bytes": "many"}],
)
def test_a_table_that_was_changed(server: FileServer, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{LUNG}: url=.*expected what list_datasets gives"):
        cellxgene.fetch(table().assign(**change), tmp_path)


def test_a_table_without_what_is_needed(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks the columns \['url', 'version'\]; pass rows of list_datasets"):
        cellxgene.fetch(table().drop(columns=["url", "version"]), tmp_path)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        cellxgene.fetch(LUNG, tmp_path, workers=0)


# --- what fails


def test_one_failure_does_not_stop_the_others(server: FileServer, tmp_path: Path) -> None:
    found = table()
    kept = server.files.pop(f"/{version(BLOOD)}.h5ad")
    server.files[f"/{version(BRAIN)}.h5ad"] = b"shorter"
    with pytest.raises(OSError, match="2 of 4 datasets could not be fetched; the others are in") as caught:
        cellxgene.fetch(found, tmp_path)
    text = str(caught.value)
    assert f"go on with scfm.datasets.cellxgene.fetch(['{BLOOD}', '{BRAIN}'], '{tmp_path}')" in text
    assert re.search(rf"\n{BLOOD}: .* is not there .*404", text)
    assert re.search(rf"\n{BRAIN}: .* has 7 bytes, and 50,002 in the catalogue: call list_datasets", text)
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert [type(error) for error in caught.value.__cause__.exceptions] == [FileNotFoundError, ValueError]
    assert {name for name in names(tmp_path) if not name.startswith(".")} == {
        f"{name}{suffix}" for name in (LUNG, MIXED) for suffix in (".h5ad", ".json")
    }
    server.files.update({f"/{version(BLOOD)}.h5ad": kept, f"/{version(BRAIN)}.h5ad": BODIES[BRAIN]})
    asked(server)
    cellxgene.fetch(found, tmp_path)
    assert sorted(asked(server)) == [f"/{version(BLOOD)}.h5ad", f"/{version(BRAIN)}.h5ad"]


def test_a_defect_is_reported_too(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: Any, **__: Any) -> str:
        raise KeyError("defect")  # noqa: EM101

    monkeypatch.setattr(_cellxgene_files, "download", defect)
    with pytest.raises(OSError, match="4 of 4 datasets"):
        cellxgene.fetch(table(), tmp_path, workers=2)


def test_a_size_that_is_not_known(server: FileServer, tmp_path: Path) -> None:
    cellxgene.fetch(table().assign(bytes=pd.NA), tmp_path, progress=True)
    assert marker(tmp_path, LUNG)["bytes"] == 50_000


def test_no_room(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cellxgene_files.shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    with pytest.raises(OSError, match=rf"{tmp_path} has 100,000 bytes free, and 200,006 more are needed: fetch fewer"):
        cellxgene.fetch(table(), tmp_path)
    assert asked(server) == []
    cellxgene.fetch(LUNG, tmp_path)


def test_a_folder_that_is_a_file(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file cannot be made .*choose another folder"):
        cellxgene.fetch(LUNG, tmp_path / "file")


def test_offline(server: FileServer, tmp_path: Path) -> None:
    found = table()
    cellxgene.fetch(found.iloc[:2], tmp_path)
    scfm.settings.offline = True
    server.seen.clear()
    assert len(cellxgene.fetch(found.iloc[:2], tmp_path)) == 2
    assert cellxgene.fetch([BLOOD, LUNG], tmp_path) == [tmp_path / f"{BLOOD}.h5ad", tmp_path / f"{LUNG}.h5ad"]
    for datasets in (found, list(BODIES)):
        with pytest.raises(
            FileNotFoundError, match=rf"2 of 4 datasets are not in {tmp_path}.*offline is set: {BRAIN}, {MIXED}\. Fetch"
        ):
            cellxgene.fetch(datasets, tmp_path)
    with pytest.raises(
        ConnectionError, match="The catalogue of CELLxGENE is on the network, and scfm.settings.offline"
    ):
        table()
    assert not server.seen


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("setting", [True, False])
def test_a_bar(
    server: FileServer, tmp_path: Path, progress: bool, setting: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    scfm.settings.progress = progress
    cellxgene.fetch(table(), tmp_path, progress=None if setting else progress)
    shown = capsys.readouterr().err
    assert ("fetch 4 datasets: 100%" in shown) == progress
    assert shown.count("fetch 4 datasets: 100%") <= 2  # one bar, not one a file


# --- Ctrl-C


@contextmanager
def interrupted(server: FileServer, requests: int) -> Iterator[None]:
    """Interrupt the main thread when so many requests have come."""

    def watch() -> None:
        while len(server.seen) < requests and not server.closing.is_set():
            time.sleep(0.005)
        time.sleep(0.05)
        _thread.interrupt_main()

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    watcher.join()


def test_after_an_interruption_nothing_more_is_begun(server: FileServer, tmp_path: Path) -> None:
    found = table()
    server.seen.clear()
    server.always = Fault(drip=0.1)
    with interrupted(server, 2):
        cellxgene.fetch(found, tmp_path, workers=2)
    while any(thread.name == "scfm-cellxgene" for thread in threading.enumerate()):
        time.sleep(0.01)
    assert len(asked(server)) == 2
    server.always = Fault()
    cellxgene.fetch(found, tmp_path)
    assert len(asked(server)) == len(BODIES) - 2
    assert names(tmp_path) == {f"{name}{suffix}" for name in BODIES for suffix in (".h5ad", ".json")}


def test_a_program_imports_it_late_and_ends_when_interrupted(server: FileServer, tmp_path: Path) -> None:
    table().to_csv(tmp_path / "table.csv")
    folder = tmp_path / "files"
    server.always = Fault(stop_after=10_000, hold=threading.Event())
    code = (
        "import sys, pandas as pd, scfm; names = dir(scfm.datasets); before = set(sys.modules)\n"
        "fetch = scfm.datasets.cellxgene.fetch\n"
        "print('scfm.datasets.cellxgene' in before, 'torch' in sys.modules, 'cellxgene' in names, flush=True)\n"
        "fetch(pd.read_csv(sys.argv[1] + '/table.csv', index_col=0), sys.argv[1] + '/files')"
    )
    environment = {**os.environ, "SCFM_OFFLINE": "0", "SCFM_CELLXGENE_ENDPOINT": server.url("")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment, **pipes) as process:
        until = time.monotonic() + 60
        while sum(path.stat().st_size for path in folder.glob(".*.part")) < 40_000 and time.monotonic() < until:
            time.sleep(0.01)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 10
    assert process.returncode != 0
    assert b"KeyboardInterrupt" in errors
    assert output.split() == [b"False", b"False", b"True"]
    assert [path.stat().st_size for path in folder.glob(".*.part")] == [10_000] * 4


# --- the Census


class FakeCensus:
    """Stands for cellxgene-census, and says how it was called."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    @contextmanager
    def open_soma(self, *, census_version: str) -> Iterator[str]:
        self.calls.append(("open", census_version))
        yield "census"
        self.calls.append("closed")

    def get_anndata(self, census: str, organism: str, **options: Any) -> ad.AnnData:
        self.calls.append((census, organism, options))
        var = pd.DataFrame(
            {"soma_joinid": [0, 1], "feature_id": ["ENSG01", "ENSG02"], "feature_name": ["A", "B"]}, index=["0", "1"]
        )
        obs = pd.DataFrame({"tissue": pd.Categorical(["lung"] * 3)}, index=["0", "1", "2"])
        return ad.AnnData(np.ones((3, 2), np.float32), obs=obs, var=var)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCensus]:
    fake = FakeCensus()
    monkeypatch.setitem(sys.modules, "cellxgene_census", fake)
    scfm.settings.offline = False
    yield fake
    scfm.settings.reset()


@pytest.mark.parametrize(
    ("species", "organism"),
    [
        ("human", "Homo sapiens"),
        ("Mouse", "Mus musculus"),
        ("mus_musculus", "mus_musculus"),
        ("marmoset", "Callithrix jacchus"),
    ],
)
def test_the_census(package: FakeCensus, tmp_path: Path, species: str, organism: str) -> None:
    found = cellxgene.census(species=species, obs_filter="tissue == 'lung'", census_version="2025-01-30")
    options = {"X_name": "raw", "obs_value_filter": "tissue == 'lung'", "var_value_filter": None}
    assert package.calls == [("open", "2025-01-30"), ("census", organism, options), "closed"]
    assert found.var_names.tolist() == ["ENSG01", "ENSG02"]
    assert found.var_names.name is None
    assert found.shape == (3, 2)
    found.write_h5ad(tmp_path / "slice.h5ad")


def test_the_default_census(package: FakeCensus) -> None:
    cellxgene.census(var_filter="feature_name == 'A'")
    options = {"X_name": "raw", "obs_value_filter": None, "var_value_filter": "feature_name == 'A'"}
    assert package.calls[:2] == [("open", "stable"), ("census", "Homo sapiens", options)]


def test_a_census_that_cannot_be_had(package: FakeCensus, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="whole Census does not fit into memory; give obs_filter"):
        cellxgene.census()
    scfm.settings.offline = True
    with pytest.raises(ConnectionError, match="The Census is on the network, and scfm.settings.offline is set"):
        cellxgene.census(obs_filter="a == 1")
    scfm.settings.offline = False
    monkeypatch.setitem(sys.modules, "cellxgene_census", None)
    with pytest.raises(ImportError, match="pip install cellxgene-census"):
        cellxgene.census(obs_filter="a == 1")
    assert not package.calls


def test_other_names_are_missing() -> None:
    with pytest.raises(AttributeError, match=r"module 'scfm.datasets' has no attribute 'nothing'"):
        scfm.datasets.nothing  # noqa: B018


# --- the command


def test_the_command(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from scfm.cli import main

    found = cellxgene.list_datasets()
    assert main(["cellxgene"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in found.index)
    assert f"{len(found)} datasets, {found['cells'].sum():,} cells" in text
    name = found.index[0]
    assert main(["cellxgene", "--species", "human,homo sapiens", "--output-dir", str(tmp_path / "more"), "--processes", "2",
                 "--max-retries", "3", "--no-metadata"]) == 0  # fmt: skip
    assert capsys.readouterr().out.split() == [str(path) for path in sorted((tmp_path / "more").glob("*.h5ad"))]
    assert main(["cellxgene", "--ids", name, "--out", str(tmp_path / "files")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "files" / f"{name}.h5ad")]
    assert (tmp_path / "files" / f"{name}.h5ad").read_bytes() == BODIES[name]
    assert main(["cellxgene", "--ids", name]) == 1
    assert "it goes with --out" in capsys.readouterr().err

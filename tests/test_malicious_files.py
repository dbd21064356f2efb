"""Archives, tables, configs and gene files made to do harm are refused by a clear error, and at little cost."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import tarfile
import zlib
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch
from h5py import h5d, h5p, h5s, h5t

import scfm
from scfm.testing import write_geneformer
from scfm.weights.gene_vectors import read_gene_vectors, write_gene_vectors

from .fuzz_worker import check_refused, shared_worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("resource")

SIZES: dict[str, Any] = {"n_genes": 6, "n_layers": 1, "hidden_size": 4, "max_tokens": 8}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 41234\n"
PAGE = b"<!DOCTYPE html>\n<html><body>Too many requests</body></html>"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("sources")
    published = write_geneformer(top / "published", **SIZES)
    write_geneformer(top / "bin", **SIZES, weights="pytorch_model.bin")
    scfm.model.convert(published, top / "converted")
    (top / "empty").mkdir()
    return {folder.name: folder for folder in top.iterdir()}


@pytest.fixture
def refused(sources: dict[str, Path], tmp_path: Path) -> Callable[..., None]:
    """Change a copy of a source, and let a reader read it in a process of its own."""

    def read(source: str, reader: str, change: Callable[[Path], object], match: str) -> None:
        folder = shutil.copytree(sources[source], tmp_path / f"copy{len(list(tmp_path.iterdir()))}")
        change(folder)
        before = sorted(tmp_path.rglob("*"))
        check_refused(shared_worker()(reader, folder), match)
        assert sorted(tmp_path.rglob("*")) == before

    return read


def block(kind: bytes, payload: bytes, name: str = "tf/a") -> bytes:
    """A member of a tar."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(payload)
    return member.tobuf(tarfile.GNU_FORMAT) + payload + bytes(-len(payload) % 512)


def record(key: bytes, value: bytes) -> bytes:
    """A record of an extended header, which starts with its own length."""
    size = len(key) + len(value) + 3
    while len(b"%d" % size) + len(key) + len(value) + 3 != size:
        size = len(b"%d" % size) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (size, key, value)


def extended_sparse() -> bytes:
    """A file with holes in the old format of GNU, whose map never ends."""
    head = bytearray(block(b"S", b""))
    head[482] = 1
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + (b"00000000001\0" * 42 + b"\1" * 8) * 40_000


END = block(b"0", b"1") + bytes(10240)
SPARSE = block(b"x", record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0"))
SMALL = block(b"x", record(b"a", b"b"))
ARCHIVES: dict[str, tuple[bytes, str]] = {
    "digits": (block(b"x", b"1" * (2**20 - 512)) + END, "an extended header that is damaged"),
    "digits in a record": (block(b"x", record(b"comment", b"1" * 10**6)) + END, "a number of more than 100 digits"),
    "keys": (block(b"x", b"3 " * 300_000 + b"=") + END, "an extended header that is damaged"),
    "empty record": (block(b"x", b"0 a=\n") + END, "an extended header that is damaged"),
    "for all members": (
        block(b"g", b"".join(record(b"k%d" % i, b"") for i in range(80_000)))
        + b"".join(SMALL + block(b"0", b"", f"tf/{i}") for i in range(3000))
        + END,
        "more than 100 records for all members",
    ),
    "holes": (SPARSE + block(b"0", b"99999999\n" + b"1\n" * 10**7, "tf/s") + END, "a file with holes"),
    "old holes": (extended_sparse() + END, "more than 16,777,216 bytes of headers"),
    "long names": (block(b"L", b"a\0") * 8000 + END, "RecursionError"),
    "headers of headers": (SMALL * 8000 + END, "RecursionError"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_headers_of_archives_that_never_end(kind: str, refused: Callable[..., None]) -> None:
    content, match = ARCHIVES[kind]
    refused("empty", "unpack", lambda folder: (folder / "a.tar").write_bytes(gzip.compress(content, 1)), match)


def within(name: str, key: str, value: str) -> Callable[[Path], object]:
    """Put JSON in the place of a value, unread."""

    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        inner = values["architecture"] if key in values.get("architecture", {}) else values
        assert key in inner
        inner[key] = "HERE"
        (folder / name).write_text(json.dumps(values).replace('"HERE"', value))

    return change


DEEP = "[" * 900 + "]" * 900
DEEPER = "[" * 400_000 + "]" * 400_000
SIZE_KEYS = ("hidden_size", "intermediate_size", "max_position_embeddings", "num_hidden_layers", "vocab_size")
JSONS: dict[str, tuple[str, str, str, str, str]] = {
    **{f"{k} 1e9": ("published", "config.json", k, str(10**9), "000") for k in SIZE_KEYS},
    **{f"{k} 1e300": ("published", "config.json", k, str(10**300), "000") for k in SIZE_KEYS},
    **{f"{k} infinite": ("published", "config.json", k, "1e999", "must be a positive integer") for k in SIZE_KEYS},
    "digits": ("published", "config.json", "vocab_size", "9" * 900_000, "config.json is no valid JSON"),
    "deep size": ("published", "config.json", "hidden_size", DEEP, "hidden_size must be a positive integer"),
    "deeper": ("published", "config.json", "hidden_size", DEEPER, "config.json is no valid JSON"),
    "deep alias": ("converted", "card.json", "aliases", DEEP, "aliases is"),
    "deep architecture": ("converted", "card.json", "n_layers", DEEP, "must be a positive integer"),
    "deep tables": ("converted", "card.json", "aux_tokens", '{"a": ' + DEEP + "}", "aux_tokens is"),
    "deeper card": ("converted", "card.json", "aliases", DEEPER, "card.json is no valid JSON"),
    "file list": ("converted", "card.json", "dictionaries", '{"../../x": 5}', "dictionaries is"),
    "half a character": ("converted", "card.json", "special_tokens", '{"\\ud800": 0}', "printable"),
}


@pytest.mark.parametrize("kind", JSONS)
def test_values_of_configs_and_cards(kind: str, refused: Callable[..., None]) -> None:
    source, name, key, value, match = JSONS[kind]
    refused(source, "model", within(name, key, value), match)


@pytest.mark.parametrize("content", [LFS, PAGE], ids=["lfs", "page"])
@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("published", "config.json"),
        ("converted", "card.json"),
        ("converted", "vocabulary.tsv"),
        ("converted", "aliases.tsv"),
        ("published", "ensembl_mapping_dict_gctiny.pkl"),
    ],
)
def test_something_else_in_the_place_of_a_file(
    source: str, name: str, content: bytes, refused: Callable[..., None]
) -> None:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)
        if name.endswith(".tsv"):
            within("card.json", "vocabulary_sha256", "null")(folder)

    refused(source, "model", change, name)


def test_a_vocabulary_of_a_billion_takes_no_memory(refused: Callable[..., None]) -> None:
    """Config, dictionary and weights agree, and no file is large: one row stands for all."""

    def change(folder: Path) -> None:
        within("config.json", "vocab_size", str(10**9))(folder)
        path = folder / "token_dictionary_gctiny.pkl"
        path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), "ENSG00000000006": 10**9 - 1}))
        tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
        for name in [name for name in tensors if "word_embeddings" in name or "decoder" in name]:
            tensors[name] = tensors[name][:1].expand(10**9, *tensors[name].shape[1:])
        tensors["cls.predictions.bias"] = torch.zeros(1).expand(10**9)
        torch.save(tensors, folder / "pytorch_model.bin")

    refused("bin", "model", change, "of which it does not hold all values")


BAD_NAMES = ("\x1b[31mred", "a\nb", "a\rb", "a\tb", "\x07", "a\0", "\x85", "\u202eabc", "", "x" * 10**6, "\u2028")


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name)[:20])
@pytest.mark.parametrize("column", ["gene", "symbol"])
def test_names_that_cannot_be_shown(name: str, column: str, refused: Callable[..., None]) -> None:
    """An array of texts takes as much memory for each as for the longest: here 200 GB."""
    if column == "symbol" and not name:
        pytest.skip("no symbol is known")
    many = {f"G{i}": i + 10 for i in range(50_000 if len(name) > 999 else 1)}

    def table(folder: Path) -> None:
        lines = (folder / "vocabulary.tsv").read_text().splitlines()
        fields = lines[-1].split("\t")
        fields[0 if column == "gene" else -1] = f'"{name}"'
        lines = [*lines[:-1], "\t".join(fields), *(f"{gene}\t{token}\t1.0\t" for gene, token in many.items())]
        (folder / "vocabulary.tsv").write_text("\n".join(lines), newline="")

    def dictionary(folder: Path) -> None:
        for kind, more in {"token": many | {name: 9}, "gene_median": dict.fromkeys([*many, name], 1.0)}.items():
            path = folder / f"{kind}_dictionary_gctiny.pkl"
            values = pickle.loads(path.read_bytes())
            values.pop("ENSG00000000006")
            path.write_bytes(pickle.dumps({**values, **(more if column == "gene" else {})}))
        if column == "symbol":
            (folder / "gene_name_id_dict_gctiny.pkl").write_bytes(pickle.dumps({name: "ENSG00000000001"}))

    refused("converted", "vocabulary", table, "vocabulary.tsv is no ")
    refused("published", "dictionaries", dictionary, "printable characters")


@pytest.mark.parametrize("token", [2**31, 2**32 + 9, 2**64, 10**30, -1])
def test_tokens_that_are_no_rows(token: int, refused: Callable[..., None]) -> None:
    def change(folder: Path) -> None:
        path = folder / "token_dictionary_gctiny.pkl"
        path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), "ENSG00000000006": token}))

    refused("published", "dictionaries", change, "token_dictionary_gctiny.pkl holds a token that is negative or above")

    def line(folder: Path) -> None:
        path = folder / "vocabulary.tsv"
        path.write_text(path.read_text().replace("\t9\t", f"\t{token}\t"))

    refused("converted", "vocabulary", line, "vocabulary.tsv is no ")


NAMES = ["a", "b", "c"]


def pipe(file: h5py.File) -> str:
    """The path of a file that whoever opens it never comes back from."""
    path = f"{file.filename}.pipe"
    if not os.path.exists(path):  # noqa: PTH110
        os.mkfifo(path)
    return path


def put(file: h5py.File, name: str, value: Any) -> None:
    del file[name]
    file[name] = value


def growing_view(file: h5py.File, name: str, dtype: str) -> None:
    """A view of a dataset in another file, whose length is that of the other."""
    layout = h5py.VirtualLayout(shape=(3,), dtype=dtype, maxshape=(None,))
    source = h5py.VirtualSource(pipe(file), "x", shape=(3,), maxshape=(None,))
    layout[slice(0, h5s.UNLIMITED)] = source[0 : h5s.UNLIMITED]
    del file[name]
    file.create_virtual_dataset(name, layout)


def chunk_of(file: h5py.File, name: str, size: int, chunk: int, packed: int, dtype: str = "f4") -> None:
    """A dataset of one chunk of zeros, packed several times."""
    content = bytes(2**29)
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk((chunk,))
    for _ in range(packed):
        plist.set_deflate(9)
        content = zlib.compress(content, 9)
    del file[name]
    kind, space = h5t.py_create(np.dtype(dtype)), h5s.create_simple((size,), (h5s.UNLIMITED,))
    dataset = h5d.create(file.id, name.encode(), kind, space, plist)
    dataset.write_direct_chunk((0,), content)


def wide(file: h5py.File) -> None:
    for name in NAMES:
        del file[f"arrays/{name}"]
        file.create_dataset(f"arrays/{name}", (9 * 10**8,), "f4", chunks=(2**20,), compression="gzip")


def repeated(file: h5py.File) -> None:
    del file["keys"]
    file.create_dataset("keys", data=np.full(300_000, b"a"), chunks=(2**18,), compression="gzip")
    put(file, "arrays/a", np.zeros(700, "f4"))


def many_names(file: h5py.File) -> None:
    del file["keys"]
    file.create_dataset("keys", data=np.full(2 * 10**6, b"a"), chunks=(2**20,), compression="gzip")


GENES: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "link": (lambda f: put(f, "arrays/a", h5py.ExternalLink(pipe(f), "x")), "is a link (ExternalLink)"),
    "link of all": (lambda f: put(f, "arrays", h5py.ExternalLink("/etc/passwd", "/")), "is a link (ExternalLink)"),
    "soft link of all": (lambda f: put(f, "arrays", h5py.SoftLink("/arrays")), "is a link (SoftLink)"),
    "growing view": (lambda f: growing_view(f, "arrays/a", "f4"), "a keeps its values in other files"),
    "growing view of names": (lambda f: growing_view(f, "keys", "S1"), "keys keeps its values in other files"),
    "control": (lambda f: put(f, "keys", np.array([b"a", b"\x1b[2Jb"])), "an id has 1 to 256 characters"),
    "space": (lambda f: put(f, "keys", np.array([b"a", b" "])), "an id has 1 to 256 characters"),
    "variable length": (lambda f: put(f, "keys", np.array(["a", "b"], object)), "texts of variable length"),
    "grows": (
        lambda f: chunk_of(f, "arrays/a", 3, 2**18, 1),
        "a compressed chunk of 1048576 bytes inflates to 1048577",
    ),
    "names that grow": (lambda f: chunk_of(f, "keys", 3, 2**18, 1, "S4"), "of 1048576 bytes inflates to 1048577"),
    "many names": (many_names, "declares 2,000,000 ids of 1 bytes"),
    "packed twice": (lambda f: chunk_of(f, "arrays/a", 3, 2**18, 2), "the filters [1, 1]"),
    "large chunk": (lambda f: chunk_of(f, "arrays/a", 3, 2**27, 1), "has chunks of (134217728,) values"),
    "nothing there": (wide, "declares 3 vectors of length 900,000,000"),
    "one for all": (repeated, "declares 300,000 vectors of length 700"),
}


@pytest.mark.parametrize("kind", GENES)
def test_gene_files_that_lead_elsewhere_or_fill_the_memory(kind: str, refused: Callable[..., None]) -> None:
    how, match = GENES[kind]

    def change(folder: Path) -> None:
        path = write_gene_vectors(folder / "a_gene.h5", NAMES, np.ones((3, 2)))
        with h5py.File(path, "r+") as file:
            how(file)
        assert path.stat().st_size < 2**20

    refused("empty", "genes", change, "a_gene.h5")
    refused("empty", "genes", change, match)


def test_compressed_gene_files_are_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 2000)).astype(np.float32)
    for how in ({"compression": "gzip", "shuffle": True, "fletcher32": True}, {"fletcher32": True}, {"chunks": True}):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("keys", data=np.array(NAMES, "S"), **how)
            for name, vector in zip(NAMES, values, strict=True):
                file.create_dataset(f"arrays/{name}", data=vector, maxshape=(None,), **how)
        names, vectors = read_gene_vectors(tmp_path / "a.h5")
        assert names == NAMES
        np.testing.assert_array_equal(vectors, values)


ARRAY = {"path": "obsm/X_a", "shape": [10, 4], "dtype": "float32", "fill": 0, "shard_rows": 4, "chunk_rows": 4}
PLAN = {
    "format": 2,
    "verb": "embed",
    "key": "a",
    "n_obs": 10,
    "shard_rows": 4,
    "sequences": None,
    "arrays": [ARRAY],
}
PLANS: dict[str, tuple[dict[str, Any] | bytes, bytes]] = {
    "no entry": ({"arrays": ...}, b"{}"),
    "elsewhere": ({"arrays": [ARRAY, ARRAY | {"path": "../../../elsewhere"}]}, b"{}"),
    "a shard too few": ({"sequences": [1, 2]}, b"{}"),
    "rows of chunks": ({"arrays": [ARRAY | {"chunk_rows": 3}]}, b"{}"),
    "text": ({"n_obs": "x"}, b"{}"),
    "negative": ({"n_obs": -1}, b"{}"),
    "infinite": ({"n_obs": 1e400}, b"{}"),
    "no rows": ({"shard_rows": 0}, b"{}"),
    "no source": ({"identity": []}, b"{}"),
    **{f"plan {text[:5]!r}": (text, b"{}") for text in (b"", b"[]", PAGE, LFS, b"[" * 10**5, b"\xff")},
}


@pytest.mark.parametrize("kind", PLANS)
def test_stores_that_lie(kind: str, refused: Callable[..., None]) -> None:
    plan, marker = PLANS[kind]

    def change(folder: Path) -> None:
        inner = folder / "obsm" / "X_a"
        (inner / ".shards").mkdir(parents=True)
        (inner / ".shards" / "00000000.json").write_bytes(marker)
        content = plan
        if isinstance(plan, dict):
            values = {**PLAN, "identity": {"source": [{"n_obs": 10, "bytes": 1, "modified": 2}]}, **plan}
            content = json.dumps({name: value for name, value in values.items() if value is not ...}).encode()
        (inner / ".scfm.json").write_bytes(content)

    refused("empty", "store", change, "copy")

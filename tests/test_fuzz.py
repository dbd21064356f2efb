"""Damaged files of all kinds are read, or refused by an error of ours, in a process that is limited and watched."""

from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import pickletools
import shutil
import zipfile
import zlib
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scfm
from scfm.testing import write_geneformer, write_sccello, write_transcriptformer

from .fuzz_sources import write_legacy, write_small, write_store, write_tables
from .fuzz_worker import RESIDENT, shared_worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

pytest.importorskip("resource")

EXAMPLES = 4 * settings.default.max_examples
OURS = ("", "ValueError", "FileNotFoundError", "FileExistsError", "OSError", "TypeError")
NUMBERS = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2.5, 1e308, float("nan"), float("inf"), 10**12, 2**31, 2**63, 10**30, -(2**63), "", "x" * 1000),
    *("../../x", "/etc/passwd", "a\0b", "a\nb", "\ud800", "\x1b[31m", [], {}, [1], [[[[1]]]], {"a": 1}, ["a"] * 99),
)  # fmt: skip
INSTRUCTIONS = (
    *(b".", b"0", b"1", b"2", b"(", b")", b"]", b"}", b"N", b"R", b"b", b"s", b"u", b"t", b"d", b"l", b"\x85", b"\x86"),
    *(b"\x81", b"\x8f", b"\x90", b"\x91", b"\x94", b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x97", b"o", b"Q"),
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nTensor\n", b"ctorch\nFloatStorage\n", b"(S'x'\nios\nsystem\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n", b"\x82\x01", b"P1\n"),
    *(b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"p9999999999999999999\n", b"I0xffffffffffffffffffffffffffffffffffff\n"),
    *(b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 7 + b"\x7f", b"\x8a\x09" + b"\xff" * 9, b"\x95" + b"\xff" * 7 + b"\x00"),
)  # fmt: skip


def place(content: bytes | bytearray, rng: Random) -> int:
    """Most often one where there is something, for many formats are full of zeros."""
    filled = np.flatnonzero(np.frombuffer(content, np.uint8))
    if len(filled) and rng.randrange(8):
        return int(filled[rng.randrange(len(filled))])
    return rng.randrange(len(content) + 1)


def damaged(content: bytes, rng: Random, other: bytes) -> bytes:
    """Change a few bytes, or many."""
    data = bytearray(content)
    for _ in range(rng.randrange(1, 5)):
        at, how, length = place(data, rng), rng.randrange(9), rng.randrange(1, 64)
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif how == 2:
            width = rng.choice((1, 2, 4, 8))
            data[at : at + width] = (rng.choice(NUMBERS) % 256**width).to_bytes(width, rng.choice(("little", "big")))
        elif how == 3:
            data[at:at] = bytes(rng.randrange(256) for _ in range(length % 8))
        elif how == 4:
            del data[at : at + length]
        elif how == 5:
            del data[at:]
        elif how == 6:
            data[at:at] = data[at : at + length]
        elif how == 7:
            start = place(other, rng)
            data[at : at + length] = other[start : start + length]
        else:
            data[at:] = other[place(other, rng) :]
    return bytes(data)


def other_header(content: bytes, rng: Random, other: bytes) -> bytes:
    """A safetensors file whose header says something else."""
    size = int.from_bytes(content[:8], "little")
    header, values = json.loads(content[8 : 8 + size]), content[8 + size :]
    for _ in range(rng.randrange(1, 3)):
        entry = header[rng.choice(sorted(header))]
        dtypes = ("F4", "F8_E4M3", "F6_E2M3", "C64", "BOOL", "U64", "F64", "I8", "BF16")
        near = [rng.choice((-1, 0, 1, 4, 8, 2**31, 2**62, 2**64)) for _ in range(rng.randrange(4))]
        if isinstance(entry, dict):
            name = rng.choice(("dtype", "shape", "data_offsets", "more"))
            entry[name] = deepcopy(rng.choice((*ODD, *dtypes, near, near)))
    text = json.dumps(header)
    if rng.randrange(4) == 0:
        text = text[:-1] + "," + text[1:]
    size = len(text) if rng.randrange(4) else rng.choice(NUMBERS)
    return (size % 2**64).to_bytes(8, "little") + text.encode() + values


def other_instructions(content: bytes, rng: Random, other: bytes) -> bytes:
    """One pickle, or several and what follows, with instructions left out, put in or exchanged."""
    parts, file = [], io.BytesIO(content)
    while True:
        start = file.tell()
        try:
            starts = [at for _, _, at in pickletools.genops(file)]
        except ValueError:
            break
        ends = [*starts[1:], file.tell()]
        parts += [content[at:end] for at, end in zip(starts, ends, strict=True)]
    for _ in range(rng.randrange(1, 4)):
        at, how = rng.randrange(len(parts)), rng.randrange(5)
        if how == 0:
            del parts[at]
        elif how == 1:
            parts.insert(at, parts[rng.randrange(len(parts))])
        elif how == 2:
            parts[at] = rng.choice(INSTRUCTIONS)
        elif how == 3:
            parts.insert(at, rng.choice(INSTRUCTIONS))
        else:
            parts[at] = damaged(parts[at], rng, other)
    return b"".join(parts) + content[start:]


def other_members(content: bytes, rng: Random, other: bytes) -> bytes:
    """A zip file of other content, which is whole."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    how = rng.randrange(6)
    if how < 4:
        members[name] = other_instructions(members[name], rng, other)
    else:
        name = rng.choice(sorted(members))
        members[name] = damaged(members[name], rng, other)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if how == 5 else zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def other_blocks(content: bytes, rng: Random, other: bytes) -> bytes:
    """A tar with fields of headers changed, and the right checksums; some are compressed."""
    fields = ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (329, 8), (345, 155), (386, 24))
    data = bytearray(content)
    heads = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    for _ in range(rng.randrange(1, 4)):
        at, (start, size) = rng.choice(heads), rng.choice(fields)
        some = [b"7" * size, b"\xff" * size, b"\x80" + b"\x7f" * size, *b"../../x /etc/x a\nb 10 tf/b".split(b" "), b""]
        kinds = tuple(b"0123456789xgXLKSVADMN\0")
        value = bytes([rng.choice(kinds)]) if size == 1 else rng.choice(some)
        data[at + start : at + start + size] = value[:size].ljust(size, b"\0")
        if rng.randrange(4) == 0:
            data[at + 512 : at + 1024] = damaged(bytes(data[at + 512 : at + 1024]), rng, other)[:512].ljust(512, b"\0")
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return gzip.compress(bytes(data), 1) if rng.randrange(4) == 0 else bytes(data)


def other_values(content: bytes, rng: Random, other: bytes) -> bytes:
    """A JSON object with other values somewhere."""
    values = json.loads(content)
    for _ in range(rng.randrange(1, 4)):
        inner: Any = values
        while True:
            places = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not places:
                break
            at = rng.choice(places)
            if isinstance(inner[at], dict | list) and rng.randrange(4):
                inner = inner[at]
                continue
            if rng.randrange(5) == 0:
                del inner[at]
            else:
                inner[at] = deepcopy(rng.choice(ODD))
            break
    return json.dumps(values).encode(errors="surrogatepass")


def other_lines(content: bytes, rng: Random, other: bytes) -> bytes:
    """A table with other fields."""
    rows = [line.split("\t") for line in content.decode().splitlines()]
    odd = ("", "x" * 3000, *'-1 nan NA 1e400 4294967305 99999999999999999999 " \0 \r \u2028 \x1b[2J \x85'.split(" "))
    for _ in range(rng.randrange(1, 4)):
        row = rng.choice(rows)
        how, at = rng.randrange(5), rng.randrange(len(row))
        if how == 0 and len(row) > 1:
            del row[at]
        elif how == 1:
            row.insert(at, rng.choice(odd))
        elif how == 2:
            row[at] = rng.choice(odd)
        elif how == 3:
            row[at] += rng.choice(odd)
        else:
            rows.insert(rng.randrange(len(rows) + 1), list(row))
    return "\n".join("\t".join(row) for row in rows).encode() + b"\n"


def other_entries(content: bytes, rng: Random, other: bytes) -> bytes:
    """A pickled dictionary of other keys and values."""
    values = pickle.loads(content)
    for _ in range(rng.randrange(1, 4)):
        name = rng.choice(list(values))
        odd = rng.choice((*ODD, 2**40, 2**200, np.float32(1), np.int64(-1), b"1", (1, 2), "ENSG00000000001"))
        if rng.randrange(3) == 0:
            values[odd if isinstance(odd, str) else 5] = values.pop(name)
        else:
            values[name] = odd
    return pickle.dumps(values, protocol=rng.randrange(5))


Change = "Callable[[bytes, Random, bytes], bytes]"


@dataclass(frozen=True)
class Case:
    """A file, how it is read and how it is changed."""

    reader: str
    source: str
    name: str
    changes: tuple[Any, ...]
    named: bool = True
    """Whether each error must name a file."""


CASES = {
    "safetensors": Case("safetensors", "small", "model.safetensors", (damaged, other_header)),
    "zip": Case("pytorch", "small", "pytorch_model.bin", (damaged, other_members)),
    "legacy": Case("pytorch", "legacy", "pytorch_model.bin", (damaged, other_instructions)),
    "pickle": Case("dictionary", "small", "token_dictionary.pkl", (damaged, other_instructions)),
    "old pickle": Case("dictionary", "legacy", "token_dictionary.pkl", (damaged, other_instructions)),
    "tokens": Case("dictionaries", "bert", "token_dictionary_gctiny.pkl", (other_entries,)),
    "medians": Case("dictionaries", "bert", "gene_median_dictionary_gctiny.pkl", (other_entries,)),
    "symbols": Case("dictionaries", "bert", "gene_name_id_dict_gctiny.pkl", (other_entries,)),
    "tar": Case("unpack", "small", "a.tar", (damaged, other_blocks)),
    "tar.gz": Case("unpack", "legacy", "a.tar", (damaged,)),
    "vectors": Case("genes", "small", "a_gene.h5", (damaged,)),
    "compressed vectors": Case("genes", "legacy", "a_gene.h5", (damaged,)),
    "vocabulary": Case("vocabulary", "converted bert", "vocabulary.tsv", (damaged, other_lines)),
    "aliases": Case("vocabulary", "converted bert", "aliases.tsv", (damaged, other_lines)),
    "card": Case("card", "converted bert", "card.json", (damaged, other_values)),
    "bert card": Case("model", "converted bert", "card.json", (other_values,), named=False),
    "bert config": Case("model", "bert", "config.json", (other_values,), named=False),
    "names": Case("dictionaries", "sccello", "vocab_id2name.csv", (damaged, other_lines)),
    "sccello config": Case("model", "sccello", "config.json", (other_values,), named=False),
    "parquet": Case("parquet", "tables", "cells.parquet", (damaged,), named=False),
    "arrow": Case("arrow", "tables", "cells.arrow", (damaged,), named=False),
    "dataset": Case("dataset", "tables", "state.json", (damaged, other_values)),
    "owl": Case("owl", "tables", "cl.owl", (damaged,), named=False),
    "obo": Case("obo", "tables", "cl.obo", (damaged, other_lines), named=False),
    "tf card": Case("model", "converted tf", "card.json", (other_values,), named=False),
    "tf config": Case("model", "tf", "config.json", (other_values,), named=False),
    "assays": Case("model", "tf", "vocabs/assay_vocab.json", (damaged, other_values), named=False),
    "store": Case("store", "store", "obsm/X_a/.scfm.json", (damaged, other_values)),
    "marker": Case("store", "store", "obsm/X_a/.shards/00000000.json", (damaged, other_values)),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("sources")
    write_small(top / "small")
    write_legacy(top / "legacy")
    write_store(top / "store")
    write_tables(top / "tables")
    write_sccello(top / "sccello", n_genes=6, n_layers=1, hidden_size=4, max_tokens=8, n_types=3)
    bert = write_geneformer(top / "bert", n_genes=6, n_layers=1, hidden_size=4, max_tokens=8)
    tf = write_transcriptformer(top / "tf", n_genes=6, n_layers=1, embed_dim=4, model_dim=4, seq_len=4, gene_width=3)
    scfm.model.convert(bert, top / "converted bert")
    scfm.model.convert(tf, top / "converted tf")
    return {folder.name: folder for folder in top.iterdir()}


def check(case: Case, folder: Path, content: bytes) -> None:
    (folder / case.name).write_bytes(content)
    before = {path.name for path in folder.iterdir()}
    outcome = shared_worker()(case.reader, folder)
    new = {path.name for path in folder.iterdir()} - before
    shutil.rmtree(folder / "out", ignore_errors=True)
    known = [*(path.name for path in folder.rglob("*") if path.is_file()), str(folder)]
    problems = {
        "not our error": outcome.error not in OURS,
        "names no file": case.named and outcome.error and not any(name in outcome.message for name in known),
        "did more than read": bool(outcome.forbidden),
        "took memory": outcome.resident > RESIDENT,
        "left something": bool(new - {"out"}),
    }
    found = [name for name, there in problems.items() if there]
    packed = base64.b64encode(zlib.compress(content, 9)).decode()
    assert not found, f"{case.name} {found}: {outcome}, {new}; zlib.decompress(base64.b64decode({packed!r}))"


@pytest.mark.parametrize("kind", CASES)
def test_damaged_files(kind: str, sources: dict[str, Path], tmp_path: Path) -> None:
    case = CASES[kind]
    folder = shutil.copytree(sources[case.source], tmp_path / "copy")
    content = (folder / case.name).read_bytes()
    twin = sources["legacy" if case.source == "small" else "small"] / case.name
    other = twin.read_bytes() if twin.exists() else content
    check(case, folder, content)

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
    @given(rng=st.randoms(use_true_random=False), change=st.sampled_from(case.changes))
    def damage(rng: Random, change: Callable[[bytes, Random, bytes], bytes]) -> None:
        check(case, folder, change(content, rng, other))

    damage()

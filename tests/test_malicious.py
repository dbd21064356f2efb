"""Files made to do harm are refused by a clear error: nothing runs, nothing is written, no time or memory is lost."""

from __future__ import annotations

import copyreg
import io
import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save

from scfm.weights.pickles import read_dictionary
from scfm.weights.tensors import open_tensors

from .fuzz_worker import check_refused, shared_worker

if TYPE_CHECKING:
    from collections.abc import Callable

pytest.importorskip("resource")

DEEP = 200_000


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., None]:
    """Let a reader read ``tmp_path`` in a process of its own, and look at what comes of it."""

    def read(reader: str, match: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        check_refused(shared_worker()(reader, tmp_path), match)
        assert sorted(tmp_path.rglob("*")) == before

    return read


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def attacks(canary: Path) -> dict[str, bytes]:
    """Pickles that make ``canary`` when they are read without care, each by other instructions."""
    command = text(f"touch {canary}")
    python = text(f"open({str(canary)!r}, 'w').close()") + b"\x85R."
    system = b"cos\nsystem\n" + command
    mapped = b"cbuiltins\nbytes\ncbuiltins\nmap\ncos\nsystem\n](" + command + b"e\x86"
    return {
        "GLOBAL": b"\x80\x02" + system + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + command + b"\x85R.",
        "INST": b"(S'touch " + str(canary).encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(" + system + b"o.",
        "NEWOBJ": b"\x80\x02" + mapped + b"\x81\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04" + mapped + b"}\x92\x85}\x92.",
        "BUILD": b"\x80\x02cfunctools\npartial\ncbuiltins\nprint\n\x85R(" + system + b"\x85}Ntb)R.",
        "eval": b"\x80\x02cbuiltins\neval\n" + python,
        "exec": b"\x80\x02c__builtin__\nexec\n" + python,
        "getattr": b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\n" + text("__call__") + b"\x86R" + command + b"\x85R.",
        "dotted": b"\x80\x04\x8c\x07pathlib\x8c\x09os.system\x93" + command + b"\x85R.",
        "memo": b"\x80\x02cos\nsystem\nq\x000}h\x00" + command + b"\x85RK\x01s.",
        "value": b"\x80\x02}" + text("ENSG00000000001") + system + b"\x85Rs.",
        "state": b"\x80\x02ccollections\nOrderedDict\n)R}" + text("a") + system + b"\x85Rsb.",
    }


def zipped(data: bytes, how: int = zipfile.ZIP_STORED, name: str = "data.pkl") -> bytes:
    """A file as PyTorch writes it, with this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for record, content in {name: data, "byteorder": b"little", "data/0": bytes(64), "version": b"3\n"}.items():
            archive.writestr(f"archive/{record}", content)
    return buffer.getvalue()


def legacy(data: bytes) -> bytes:
    """A file as old versions of PyTorch wrote it, with this pickle."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    return b"".join(pickle.dumps(part, protocol=2) for part in parts) + data + pickle.dumps(["0"], protocol=2)


@pytest.mark.parametrize("kind", attacks(Path()))
def test_no_instruction_of_a_pickle_runs_anything(kind: str, tmp_path: Path, refused: Callable[..., None]) -> None:
    canary = tmp_path / "canary"
    attack = attacks(canary)[kind]
    pickle.loads(attack)
    assert canary.exists()  # it would work
    canary.unlink()
    (tmp_path / "token_dictionary.pkl").write_bytes(attack)
    refused("dictionary", "token_dictionary.pkl is not a readable pickle")
    for content in (attack, zipped(attack), zipped(attack, zipfile.ZIP_DEFLATED), legacy(attack)):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        refused("pytorch", "pytorch_model.bin was refused")


def test_numbers_of_functions_are_not_looked_up(tmp_path: Path) -> None:
    """A program may have given a number to a function, and Python remembers which it has looked up."""
    canary, path = tmp_path / "canary", tmp_path / "a.pkl"
    copyreg.add_extension("posix", "system", 0x70)
    try:
        for code in (b"\x82\x70", b"\x83\x70\x00", b"\x84\x70\x00\x00\x00"):
            attack = b"\x80\x02" + code + text(f"touch {canary}") + b"\x85R."
            pickle.loads(attack)
            canary.unlink()
            path.write_bytes(attack)
            with pytest.raises(ValueError, match="a.pkl is not a readable pickle .*nothing was run"):
                read_dictionary(path)
            for content in (zipped(attack), legacy(attack)):
                path.write_bytes(content)
                with pytest.raises(ValueError, match="a.pkl was refused"):
                    open_tensors(path)
    finally:
        copyreg.remove_extension("posix", "system", 0x70)
    assert not canary.exists()


NESTED = b"N" + b"\x85" * DEEP
"""A tuple in a tuple in a tuple: computing its hash overflows the stack of the process."""
COLLIDING = b"".join(b"\x8a\x10" + (i * (2**61 - 1)).to_bytes(16, "little") + b"N" for i in range(2**16))
PICKLES: dict[str, tuple[bytes, str]] = {
    "deep key": (b"}" + NESTED + b"K\x01s.", "as the key of a dictionary"),
    "deep keys": (b"}(" + NESTED + b"K\x01u.", "as the key of a dictionary"),
    "deep dict": (b"(" + NESTED + b"K\x01d.", "as the key of a dictionary"),
    "deep set": (b"\x8f(" + NESTED + b"\x90.", "an instruction that"),
    "deep frozenset": (b"(" + NESTED + b"\x91.", "an instruction that"),
    "same hashes": (b"}(" + COLLIDING + b"u.", "as the key of a dictionary"),
    "same hashes in the memo": (b"Np%d\n." % (2**61 - 1), "as the key of a dictionary"),
    "digits": (b"}" + text("a") + b"I" + b"9" * 5000 + b"\ns.", "is not a readable pickle (ValueError"),
    "hexadecimal digits": (b"}" + text("a") + b"I0x" + b"f" * 10**6 + b"\ns.", "an integer of more than 128 bits"),
    "long": (b"}" + text("a") + b"L0x" + b"f" * 10**6 + b"L\ns.", "an integer of more than 128 bits"),
    "large": (b"}" + text("a") + b"\x8b\x10\x27\x00\x00" + b"\x7f" * 10_000 + b"s.", "an instruction that"),
    "no text": (b"}X\x01\x00\x00\x00\xffK\x01s.", "is not a readable pickle (UnicodeDecodeError"),
    "bytes": (b"\x8e" + b"\xff" * 7 + b"\x00.", "is not a readable pickle"),
    "buffer": (b"\x97.", "an instruction that"),
    "lists": (b"]" * 2**23 + b".", "more than 2,000,000 instructions"),
    "marks": (b"(" * 2**23 + b".", "more than 2,000,000 instructions"),
    "memo": (b"N" + b"\x94" * 2**23 + b".", "more than 2,000,000 instructions"),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_dictionary_that_would_end_or_stop_the_process(
    kind: str, tmp_path: Path, refused: Callable[..., None]
) -> None:
    content, match = PICKLES[kind]
    (tmp_path / "token_dictionary.pkl").write_bytes(content)
    refused("dictionary", match)
    for wrapped in (zipped(b"\x80\x02" + content), legacy(b"\x80\x02" + content)):
        (tmp_path / "pytorch_model.bin").write_bytes(wrapped)
        refused("pytorch", "pytorch_model.bin was refused")


def test_a_text_is_not_copied_again_and_again(tmp_path: Path, refused: Callable[..., None]) -> None:
    text_once = b"c_codecs\nencode\nq\x00" + text("x" * 2**20) + b"\x85q\x01"
    (tmp_path / "token_dictionary.pkl").write_bytes(text_once + b"h\x00h\x01R" * 2000 + b".")
    refused("dictionary", "it encodes something other than latin1 text of at most 256")


def called(function: str, *arguments: bytes) -> bytes:
    name = function.replace(" ", "\n").encode()
    return b"\x80\x02}" + text("a") + b"c" + name + b"\n(" + b"".join(arguments) + b"tRs."


def rebuilt(size: tuple[int, ...], stride: tuple[int, ...], values: int = 16, name: str = "tensor_v2") -> bytes:
    """A state dict of one tensor in 64 bytes."""

    def numbers(found: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x09" + n.to_bytes(9, "little", signed=True) for n in found) + b"t"

    storage = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + numbers((values,))[1:-1]
    parts = b"(" + storage + b"tQ" + b"K\x00" + numbers(size) + numbers(stride) + b"\x89}"
    return called(f"torch._utils _rebuild_{name}", parts)


def stored(name: str, values: int) -> bytes:
    """What refers to the values of a tensor."""
    where = text("storage") + b"ctorch\nFloatStorage\n" + text(name) + text("cpu")
    return b"(" + where + b"J" + values.to_bytes(4, "little") + b"tQ"


HUGE = b"\x8a\x06" + (10**12).to_bytes(6, "little")
TENSORS: dict[str, tuple[bytes, str]] = {
    "repeated": (zipped(rebuilt((2**15, 2**15), (0, 0))), "has the shape (32768, 32768), of which it does not hold all"),
    "endless": (zipped(rebuilt((2**31, 2**31), (0, 0))), "of which it does not hold all values"),
    "overlapping": (zipped(rebuilt((15, 4), (1, 0))), "of which it does not hold all values"),
    "beyond": (zipped(rebuilt((17,), (1,))), "cut off"),
    "backwards": (zipped(rebuilt((4,), (-1,))), "cut off"),
    "declared": (zipped(rebuilt((4,), (1,), 10**12)), "not a storage in the file"),
    "declared legacy": (legacy(rebuilt((4,), (1,), 10**12)), "not a storage in the file"),
    "declared together": (
        legacy(b"\x80\x02](" + b"".join(stored(name, 200) for name in "abcde") + b"e."),
        "not a storage in the file",
    ),
    "negative": (zipped(rebuilt((4,), (1,), -4)), "not a storage in the file"),
    "bytearray": (zipped(called("builtins bytearray", HUGE)), "asks for builtins.bytearray"),
    "empty": (zipped(called("torch FloatTensor", HUGE)), "asks for torch.FloatTensor"),
    "meta": (zipped(rebuilt((4,), (1,), name="meta_tensor_no_storage")), "asks for torch._utils"),
    "sparse": (zipped(called("torch._utils _rebuild_sparse_tensor", b"N")), "asks for torch._utils"),
    "subclass": (zipped(called("torch._tensor _rebuild_from_type_v2", b"N")), "asks for torch._tensor"),
    "items": (zipped(called("collections OrderedDict", b"](", b"](" + NESTED + b"K\x01ee")), "takes 1 positional"),
    "attributes": (zipped(b"\x80\x02ccollections\nOrderedDict\n)R](](" + NESTED + b"K\x01eeb."), "not a dictionary"),
    "zip bomb": (zipped(b"\x80\x02}." + bytes(2**28), zipfile.ZIP_DEFLATED), "it is compressed, as 'archive/data.pkl'"),
    "script": (zipped(rebuilt((4,), (1,)), name="constants.pkl"), "cut off"),
    "key of the list": (legacy(b"\x80\x02}.")[:-10] + b"\x80\x02](" + NESTED + b"e.", "was refused"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TENSORS)
def test_weights_that_would_end_or_fill_the_process(kind: str, tmp_path: Path, refused: Callable[..., None]) -> None:
    content, match = TENSORS[kind]
    assert len(content) < 2**20
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    refused("pytorch", match)


def test_weights_of_the_usual_kinds_are_read(tmp_path: Path) -> None:
    linear = torch.nn.Linear(2, 3)
    tensors = {
        "a": torch.ones(2, 3).T,
        "b": torch.ones(4)[1:3],
        "c": torch.arange(3).expand(1, -1),
        "d": torch.ones(()),
    }
    kinds = {str(kind): torch.ones(2, dtype=kind) for kind in (torch.float16, torch.bfloat16, torch.int8, torch.bool)}
    contents: list[tuple[Any, int]] = [(linear.state_dict(), 2), (tensors | kinds, len(tensors | kinds))]
    contents += [({"state_dict": linear.state_dict(), "epoch": 3, "lr": [0.1], "name": None}, 2)]
    contents += [(OrderedDict(weight=linear.weight, tied=linear.weight), 2)]
    for content, number in contents:
        for zips in (True, False):
            torch.save(content, tmp_path / "a.bin", _use_new_zipfile_serialization=zips)
            found = open_tensors(tmp_path / "a.bin")
            assert len(found) == number
            expected = content.get("state_dict", content)
            assert all(torch.equal(found[name], expected[name]) for name in found)


def headed(header: dict[str, Any] | bytes, values: bytes = b"", size: int | None = None) -> bytes:
    """A safetensors file, or something like it."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(content) if size is None else size).to_bytes(8, "little") + content + values


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
SAFETENSORS: dict[str, bytes] = {
    "10 GB of header": headed({}, size=10 * 10**9),
    "endless header": headed({}, size=2**64 - 1),
    "overlap": headed({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "hole": headed({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
    "twice": headed(b"{" + ONE % (0, 4) + b"," + ONE % (4, 8) + b"}", bytes(8)),
    "beyond the end": headed({"a": entry([4], 0, 16)}, bytes(8)),
    "more at the end": headed({"a": entry([1], 0, 4)}, bytes(8)),
    "overflow": headed({"a": entry([2**32, 2**32], 0, 4)}, bytes(4)),
    "overflow to fit": headed({"a": entry([2**62 + 1, 4], 0, 16)}, bytes(16)),
    "negative": headed({"a": entry([-1], 0, 4)}, bytes(4)),
    "backwards": headed({"a": entry([1], 4, 0)}, bytes(4)),
    "unknown type": headed({"a": entry([1], 0, 4, "PY")}, bytes(4)),
    "type that PyTorch lacks": headed({"ab": entry([4], 0, 3, "F6_E2M3")}, bytes(3)),
    "deep": headed(b'{"a":' + b"[" * DEEP),
    "list": headed(b"[]"),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_safetensors_that_lie(kind: str, tmp_path: Path, refused: Callable[..., None]) -> None:
    (tmp_path / "model.safetensors").write_bytes(SAFETENSORS[kind])
    refused("safetensors", "model.safetensors")


@pytest.mark.parametrize("size", [60, 0x3C20])
def test_a_length_that_looks_like_a_web_page(size: int, tmp_path: Path) -> None:
    """The first byte of safetensors may be that of a page, or a space before it."""
    path = tmp_path / "model.safetensors"
    content = save({"a": torch.ones(1)})
    header = content[8 : 8 + int.from_bytes(content[:8], "little")].rstrip()
    path.write_bytes(headed(header.ljust(size), content[-4:]))
    assert open_tensors(path)["a"].tolist() == [1]

"""Tensors that are written, checked, and found in a zip file by its one directory."""

from __future__ import annotations

import io
import struct
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scfm.weights.tensors import check_finite, open_tensors, save_tensors

from ..fuzz_worker import check_refused, shared_worker

if TYPE_CHECKING:
    from pathlib import Path

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def test_tensors_are_written_as_safetensors_writes_them(tmp_path: Path) -> None:
    other = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    tensors = {f"é.{kind}": torch.arange(7).to(kind) for kind in (*FLOATS, *other)}
    tensors |= {"transposed": torch.rand(3, 5).T, "number": torch.tensor(2.5), "empty": torch.zeros(0, 4)}
    tensors |= {"parameter": torch.nn.Linear(2, 3).weight}
    save_tensors(tensors, tmp_path / "ours.safetensors")
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    found, expected = load_file(tmp_path / "ours.safetensors"), load_file(tmp_path / "theirs.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = [0]

    class Lazy(Mapping[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            tensor = torch.full((3,), float(name))
            alive.add(tensor)
            most.append(len(alive))
            return tensor

        def __iter__(self) -> Iterator[str]:
            return iter(map(str, range(20)))

        def __len__(self) -> int:
            return 20

    save_tensors(Lazy(), tmp_path / "a.safetensors")
    assert len(open_tensors(tmp_path / "a.safetensors")) == 20
    assert max(most) <= 2


def test_tied_tensors_are_written_twice(tmp_path: Path) -> None:
    weight = torch.rand(4, 2)
    save_tensors({"a": weight, "b": weight, "c": weight[1:]}, tmp_path / "a.safetensors")
    found = open_tensors(tmp_path / "a.safetensors")
    assert torch.equal(found["a"], weight)
    assert torch.equal(found["b"], weight)
    assert torch.equal(found["c"], weight[1:])


def test_dtypes_of_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The tensor a is of the dtype complex64, expected one of int64"):
        save_tensors({"a": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float8_e5m2])
def test_values_that_are_not_finite(value: str, dtype: torch.dtype) -> None:
    tensor = torch.ones(3, 4)
    check_finite("a", tensor.to(dtype))
    tensor[1, 2] = float(value)
    with pytest.raises(ValueError, match="The tensor a holds values that are not finite"):
        check_finite("a", tensor.to(dtype))


def test_numbers_that_are_always_finite() -> None:
    for tensor in (torch.zeros(0), torch.ones(3, dtype=torch.int64), torch.ones(2, dtype=torch.bool)):
        check_finite("a", tensor)


def directory(members: list[tuple[bytes, int, bytes, int, int]], start: int) -> bytes:
    """Entries of a zip's directory for members that lie one after the other: name, method, data, sizes."""
    found = b""
    for name, how, data, packed, size in members:
        sizes = (zlib.crc32(data), packed, size, len(name), 0, 0, 0, 0, 0, start)
        found += struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, how, 0, 0, *sizes) + name
        start += 30 + len(name) + packed
    return found


def end(members: int, size: int, start: int) -> bytes:
    return struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, members, members, size, start, 0)


def two_directories(large: int) -> bytes:
    """Whose first directory says that the pickle is packed, and whose second, which zipfile reads, that it is not."""
    content = b"\x80\x02}." + bytes(large)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(content) + packer.flush()
    records = [
        (b"a/data.pkl", 8, content, packed),
        (b"a/version", 0, b"3\n", b"3\n"),
        (b"a/byteorder", 0, b"little", b"little"),
    ]
    body = b""
    for name, how, data, stored in records:
        sizes = (zlib.crc32(data), len(stored), len(data), len(name), 0)
        body += struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, how, 0, 0, *sizes) + name + stored
    real = directory([(name, how, data, len(stored), len(data)) for name, how, data, stored in records], 0)
    shown = directory([(name, 0, data, len(stored), len(stored)) for name, _, data, stored in records], 0)
    return body + real + shown + end(len(records), len(real), len(body))


def with_member(size: int) -> bytes:
    """A member that says it is larger than the file."""
    start = len(b"a/data.pkl") + 30 + 4
    data = b"\x80\x02}."
    body = struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 0, 0, 0, zlib.crc32(data), 4, 4, 10, 0) + b"a/data.pkl" + data
    real = directory([(b"a/data.pkl", 0, data, size, size)], 0)
    return body + real + end(1, len(real), start)


ZIPS: dict[str, tuple[Any, str]] = {
    "two directories": (lambda: two_directories(2**28), "its directory is not where its end record says"),
    "larger than the file": (lambda: with_member(2**31), "its members are larger than the file"),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_zips_that_are_larger_than_they_look(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    content, match = ZIPS[kind]
    (tmp_path / "pytorch_model.bin").write_bytes(content())
    check_refused(shared_worker()("pytorch", tmp_path), match)


def test_zips_of_both_kinds_are_read(tmp_path: Path) -> None:
    """PyTorch ends its files with the records of large zips, other programs do not."""
    torch.save({"a": torch.ones(3)}, tmp_path / "a.bin")
    assert b"PK\6\7" in (tmp_path / "a.bin").read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "a.bin") as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    (tmp_path / "b.bin").write_bytes(buffer.getvalue())
    assert b"PK\6\7" not in buffer.getvalue()
    for name in ("a.bin", "b.bin"):
        assert open_tensors(tmp_path / name)["a"].tolist() == [1, 1, 1]


def test_another_place_for_the_records_of_large_zips(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.bin")
    content = bytearray((tmp_path / "a.bin").read_bytes())
    content[-34:-26] = bytes(8)
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match="its directory is not where its end record says"):
        open_tensors(tmp_path / "a.bin")

"""Open files of weights lazily, without running code."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from scfm._paths import check_regular
from scfm.weights.archive import read_head
from scfm.weights.pickles import check_tensor_pickle

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["FileTensors", "check_finite", "check_sha256", "open_tensors", "save_tensors", "sha256", "shapes"]

MAX_REASON = 300
LEGACY_PICKLES = 5
"""Magic number, version, machine, content, and the names of the storages that follow."""
END, LOCATOR, END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
"""Records at the end of a zip file, the last one first."""
SAFETENSORS = {
    "int64": "I64", "float64": "F64", "float32": "F32", "int32": "I32", "bfloat16": "BF16", "float16": "F16",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""Names in safetensors of the dtypes of a PyTorch file, in the order in which safetensors writes tensors."""


def open_tensors(path: Path) -> FileTensors:
    """Open ``.safetensors``, ``.bin`` or ``.pt`` weights; tensors are read on access.

    PyTorch files are read with ``weights_only=True`` and memory-mapped. A pickle of the tensors holds the path and
    the hash of the file, which is opened again on unpickling.

    Raises
    ------
    ValueError
        If the file is a git-lfs pointer, a web page, truncated, holds more than tensors, or would run code.
    """
    read_head(path, "the weights themselves")
    return _Safetensors(path) if path.suffix == ".safetensors" else _Pytorch(path)


def _opened_again(path: Path, expected: str) -> FileTensors:
    """The tensors of a file that another process has opened, or another machine."""
    if not path.exists():
        msg = (
            f"The model that was sent here has its weights in {path}, which is not there: put them there, or send the name "
            "of the model and call scfm.model.load where it is used."
        )
        raise FileNotFoundError(msg)
    tensors = open_tensors(path)
    tensors.sha256 = check_sha256(expected, path)
    return tensors


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor by name; read from the header of a safetensors file."""
    if isinstance(tensors, _Safetensors):
        return {name: tensors.shape(name) for name in tensors}
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_finite(name: str, tensor: Tensor) -> None:
    """Check that a tensor holds neither NaN nor infinite values.

    Raises
    ------
    ValueError
        If it holds one.
    """
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return
    # torch.isfinite needs as much memory as the tensor; aminmax does not support dtypes of one byte
    extremes = torch.stack((tensor if tensor.element_size() > 1 else tensor.half()).aminmax())
    if not extremes.isfinite().all():
        msg = (
            f"The tensor {name} holds values that are not finite (NaN or infinite): the file is damaged, or the training "
            "diverged. Fetch it again, or take another checkpoint."
        )
        raise ValueError(msg)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, one at a time; tensors that share memory, such as tied weights, are written separately.

    Raises
    ------
    ValueError
        If a value is not finite, or a dtype is not one of a PyTorch file.
    """
    import torch

    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    odd = [name for name, dtype in dtypes.items() if dtype not in SAFETENSORS]
    if odd:
        msg = f"The tensor {odd[0]} is of the dtype {dtypes[odd[0]]}, expected one of {', '.join(SAFETENSORS)}."
        raise ValueError(msg)
    names = sorted(tensors, key=lambda name: (list(SAFETENSORS).index(dtypes[name]), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for name in names:
        start, stop = stop, stop + tensors[name].nbytes
        header[name] = {
            "dtype": SAFETENSORS[dtypes[name]],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, stop],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            if not tensors[name].numel():
                continue  # has no bytes to view
            check_finite(name, tensors[name])
            file.write(tensors[name].detach().contiguous().flatten().view(torch.uint8).numpy().data)


def sha256(*paths: Path) -> str:
    """Hash of the concatenation of files, as hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        check_regular(path)
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def check_sha256(expected: str | None, *paths: Path) -> str:
    """Hash files and compare with the expected hash, if given.

    Raises
    ------
    ValueError
        If they differ.
    """
    found = sha256(*paths)
    if expected is not None and found != expected:
        msg = f"{' and '.join(map(str, paths))} has sha256 {found}, expected {expected}: it is damaged or another file; fetch or convert it again."
        raise ValueError(msg)
    return found


class FileTensors(Mapping[str, "Tensor"]):
    """Tensors of a file by name.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def sha256(self) -> str:
        """Hash of the file."""
        return sha256(self._path)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self._path.absolute(), self.sha256)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same tensors, which nothing changes."""
        return self


class _Safetensors(FileTensors):
    """Of a safetensors file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        super().__init__(path)

        try:
            self._file = safe_open(path, framework="pt")
        except SafetensorError as error:
            msg = f"{path} is not a readable safetensors file ({error}): it is cut off or damaged; fetch it again."
            raise ValueError(msg) from error
        self._names = dict.fromkeys(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        from safetensors import SafetensorError

        try:
            return self._file.get_tensor(name)
        except SafetensorError as error:
            msg = f"{self._path}: the tensor {name} cannot be read ({error})."
            raise ValueError(msg) from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._file.get_slice(name).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Pytorch(FileTensors):
    """Of a file of PyTorch, memory-mapped unless it is of an old version."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._tensors = _read_pytorch(path)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _read_pytorch(path: Path) -> Mapping[str, Tensor]:
    import torch

    try:
        zipped = zipfile.is_zipfile(path)
        _check_zipped(path) if zipped else _check_legacy(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:
        reason = str(error).strip().splitlines() or ["no message"]
        msg = f"{path} was refused ({type(error).__name__}: {reason[0][:MAX_REASON]}): it is cut off, or holds more than tensors."
        raise ValueError(msg) from error
    tensors = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items()
    ):
        msg = f"{path} holds no plain state dict of tensors."
        raise ValueError(msg)
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            msg = (
                f"{path} was refused: {name} has the shape {tuple(tensor.shape)}, of which it does not hold all values."
            )
            raise ValueError(msg)
    return tensors


def _check_zipped(path: Path) -> None:
    """Refuse a zip file that is compressed or holds more than tensors."""
    from torch._C import PyTorchFileReader

    _check_directory(path)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        msg = f"it is compressed, as {packed[0][:MAX_REASON]!r}, which files of tensors are not"
        raise ValueError(msg)
    size = path.stat().st_size
    if sum(member.file_size for member in members) > size:
        msg = "its members are larger than the file"
        raise ValueError(msg)
    # with PyTorch's reader: zipfile may find another member of the same name
    check_tensor_pickle(io.BytesIO(PyTorchFileReader(str(path)).get_record("data.pkl")), size)


def _check_directory(path: Path) -> None:
    """Refuse a zip file with a second directory, of which zipfile and PyTorch would each read another."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - END.size - LOCATOR.size - END64.size))
        tail = file.read()
    mark, *_, length, start, _ = END.unpack(tail[-END.size :])
    stop = size - END.size
    locator = tail[-END.size - LOCATOR.size : -END.size]
    if locator.startswith(b"PK\6\7") and len(tail) == END.size + LOCATOR.size + END64.size:
        stop -= LOCATOR.size + END64.size
        *_, length, start = END64.unpack(tail[: END64.size])
        mark = mark if LOCATOR.unpack(locator)[2] == stop else b""
    if mark != b"PK\5\6" or start + length != stop:
        msg = "its directory is not where its end record says"
        raise ValueError(msg)


def _check_legacy(path: Path) -> None:
    """Refuse a file in PyTorch's legacy format that holds more than tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        *_, keys = [check_tensor_pickle(file, size) for _ in range(LEGACY_PICKLES)]
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        msg = "it does not list its tensors"
        raise ValueError(msg)

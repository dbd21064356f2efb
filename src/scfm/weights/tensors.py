"""Open files of weights lazily, without running code."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from scfm.weights.archive import read_head
from scfm.weights.pickles import check_tensor_pickle

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["check_sha256", "open_tensors", "sha256", "shapes"]

MAX_REASON = 300
LEGACY_PICKLES = 5
"""Magic number, version, machine, content, and the names of the storages that follow."""


def open_tensors(path: Path) -> Mapping[str, Tensor]:
    """Open ``.safetensors``, ``.bin`` or ``.pt`` weights; tensors are read on access.

    PyTorch files are read with ``weights_only=True`` and memory-mapped.

    Raises
    ------
    ValueError
        If the file is a git-lfs pointer, a web page, truncated, holds more than tensors, or would run code.
    """
    read_head(path, "the weights themselves")
    return _Safetensors(path) if path.suffix == ".safetensors" else _read_pytorch(path)


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor by name; read from the header of a safetensors file."""
    if isinstance(tensors, _Safetensors):
        return {name: tensors.shape(name) for name in tensors}
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def sha256(*paths: Path) -> str:
    """Hash of the concatenation of files, as hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
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


class _Safetensors(Mapping[str, "Tensor"]):
    """Tensors of a safetensors file by name, memory-mapped."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(path, framework="pt")
        except SafetensorError as error:
            msg = f"{path} is not a readable safetensors file ({error}): it is cut off or damaged; fetch it again."
            raise ValueError(msg) from error
        self._path = path
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

    with zipfile.ZipFile(path) as archive:
        packed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        msg = f"it is compressed, as {packed[0][:MAX_REASON]!r}, which files of tensors are not"
        raise ValueError(msg)
    # with PyTorch's reader: zipfile may find another member of the same name
    check_tensor_pickle(io.BytesIO(PyTorchFileReader(str(path)).get_record("data.pkl")), path.stat().st_size)


def _check_legacy(path: Path) -> None:
    """Refuse a file in PyTorch's legacy format that holds more than tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        *_, keys = [check_tensor_pickle(file, size) for _ in range(LEGACY_PICKLES)]
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        msg = "it does not list its tensors"
        raise ValueError(msg)

"""Choose the devices and the precision of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scfm._settings import settings

if TYPE_CHECKING:
    import torch

    Device = str | torch.device

__all__ = ["default_batch_tokens", "env_int", "local_device", "resolve_device", "resolve_devices", "resolve_dtype"]

LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID")
DTYPES = ("float32", "bfloat16", "float16")
_BATCH_TOKENS = {"cuda": 131_072}
_BATCH_TOKENS_ELSEWHERE = 8_192
_BFLOAT16_CAPABILITY = (8, 0)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Turn a device name into a device; ``None`` takes ``settings.device``, else CUDA, else MPS, else the CPU.

    Raises
    ------
    ValueError
        If the name is not a torch device, or the device is not available.
    """
    import torch

    name = "device" if device is not None else "scfm.settings.device (SCFM_DEVICE)"
    device = device if device is not None else settings.device
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        msg = f"device={device!r} is not a torch device; use 'cpu', 'cuda', 'cuda:1' or 'mps'."
        raise ValueError(msg) from error
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (found.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(found.type, False):
        usable = [kind for kind, usable in available.items() if usable]
        msg = f"{name}={device!r} cannot be used here; available: {', '.join(usable)}. By default the fastest of these is used."
        raise ValueError(msg)
    return found


def resolve_devices(device: Device | Sequence[Device] | None) -> tuple[torch.device, ...]:
    """Turn one or several device names into devices.

    Raises
    ------
    ValueError
        As :func:`resolve_device`, or if the list is empty or mixes kinds of devices.
    """
    if device is None or isinstance(device, str) or not isinstance(device, Sequence):
        return (resolve_device(device),)
    found = tuple(resolve_device(one) for one in device)
    if len({one.type for one in found}) != 1:
        msg = f"device={device!r}: several devices must be of one kind, such as ['cuda:0', 'cuda:1']."
        raise ValueError(msg)
    return found


def env_int(name: str) -> int | None:
    """A number from the environment; ``None`` where it is not set or empty.

    Raises
    ------
    ValueError
        If it holds something else than a number that is not negative.
    """
    text = os.environ.get(name, "").strip()
    if text and not text.isdecimal():
        msg = f"{name}={text!r} in the environment is not a number from 0 on, as torchrun or SLURM set it."
        raise ValueError(msg)
    return int(text) if text else None


def local_device() -> str | None:
    """CUDA device of this process if torchrun or SLURM started several on this machine, else ``None``."""
    import torch

    ranks = [rank for name in LOCAL_RANKS if (rank := env_int(name)) is not None]
    if not ranks or not torch.cuda.is_available():
        return None
    return f"cuda:{ranks[0] % torch.cuda.device_count()}"


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Turn a dtype name into a dtype; ``None`` is bfloat16 on CUDA from compute capability 8.0 on, else float32.

    Raises
    ------
    ValueError
        If it is not float32, bfloat16 or float16.
    """
    import torch

    if dtype is None:
        fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _BFLOAT16_CAPABILITY
        return torch.bfloat16 if fast else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        msg = f"dtype={dtype!r} is not supported; use one of {', '.join(DTYPES)}."
        raise ValueError(msg)
    found: torch.dtype = getattr(torch, name)
    return found


def default_batch_tokens(device: torch.device) -> int:
    """Token budget of a batch: ``settings.batch_tokens``, else by the kind of device."""
    return settings.batch_tokens or _BATCH_TOKENS.get(device.type, _BATCH_TOKENS_ELSEWHERE)

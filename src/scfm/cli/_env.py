"""What a run depends on besides its arguments, for reports of problems."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError

from scfm._package import version_of
from scfm._settings import settings
from scfm._text import masked

__all__ = ["show"]

PACKAGES = (
    "scfm",
    "torch",
    "anndata",
    "scanpy",
    "mudata",
    "numpy",
    "scipy",
    "numba",
    "h5py",
    "zarr",
    "safetensors",
    "huggingface-hub",
    "dask",
    "distributed",
    "isal",
    "zarrs",
    "cellxgene-census",
)


def show() -> None:
    """Print versions, devices and settings, without passwords."""
    for name, value in _environment().items():
        print(f"{name}: {masked(value)}")


def _environment() -> dict[str, str]:
    """Versions, devices and settings, by name."""
    import torch

    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version_of(name)
        except PackageNotFoundError:
            continue
    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    found["devices"] = ", ".join([*devices, f"cpu ({torch.get_num_threads()} threads)"])
    found |= {f"settings.{name}": str(value) for name, value in settings.model_dump().items()}
    return found

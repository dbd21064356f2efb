"""Settings of the session, from ``SCFM_*`` environment variables and from Python."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Settings", "settings"]

Verbosity = Literal["error", "warning", "info", "debug"]


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "scfm"


class Settings(BaseSettings):
    """Settings of scfm; each is also read from the environment as ``SCFM_<NAME>``.

    Examples
    --------
    >>> import scfm
    >>> scfm.settings.device = "cpu"
    >>> scfm.settings.batch_tokens = 8192
    >>> scfm.settings.device = scfm.settings.batch_tokens = None
    """

    model_config = SettingsConfigDict(env_prefix="SCFM_", validate_assignment=True, extra="ignore")

    device: str | None = None
    """Torch device for models, as ``"cpu"`` or ``"cuda:1"``; by default CUDA, else MPS, else the CPU."""
    threads: int = Field(
        default_factory=lambda: len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1, ge=1
    )
    """Threads for encoding."""
    block_rows: int = Field(default=4096, ge=1)
    """Cells read at a time; with :attr:`block_values` the bound of the memory that counts take."""
    block_values: int = Field(default=16_000_000, ge=1)
    """Stored values read at a time, about 8 bytes each."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens that go through the network at a time; by default 8,192 on CPU and MPS and 131,072 on CUDA."""
    cache_dir: Path = Field(default_factory=_default_cache)
    """Folder for downloaded and converted models."""
    offline: bool = Field(
        default_factory=lambda: os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    )
    """Never use the network; also from ``HF_HUB_OFFLINE``."""
    hub_endpoint: str = Field(default_factory=lambda: os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    """Address of the Hugging Face hub or of a mirror of it; also from ``HF_ENDPOINT``."""
    s3_endpoint: str | None = None
    """Address of a mirror of the buckets that other weights come from."""
    cellxgene_endpoint: str = "https://api.cellxgene.cziscience.com"
    """Address of the catalogue of CELLxGENE Discover or of a mirror of it."""
    progress: bool | None = None
    """Show a progress bar; by default on terminals and in notebooks."""
    verbosity: Verbosity = "warning"
    """What the logger ``"scfm"`` lets through. From ``"info"`` on it prints to stderr by itself."""

    @field_validator("verbosity")
    @classmethod
    def _set_level(cls, value: Verbosity) -> Verbosity:
        logger = logging.getLogger("scfm")
        logger.setLevel(value.upper())
        if value in ("info", "debug") and not logger.handlers:
            logger.addHandler(logging.StreamHandler())
        return value

    def reset(self) -> None:
        """Go back to the defaults and the environment."""
        fresh = type(self)()
        for name in type(self).model_fields:
            setattr(self, name, getattr(fresh, name))


settings = Settings()

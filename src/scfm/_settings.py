"""Settings of the session, from ``SCFM_*`` environment variables and from Python."""

from __future__ import annotations

import logging
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from scfm._text import masked

__all__ = ["Settings", "console", "settings"]

Verbosity = Literal["error", "warning", "info", "debug"]
BOOLEAN = "it should be 1, true, yes or on, or 0, false, no or off"
"""What a variable that is on or off accepts."""
SCANPY = {0: "error", 1: "warning", 2: "info", 3: "info", 4: "debug", "hint": "info"}
"""What scanpy calls the levels."""


class _Console(logging.Handler):
    """Prints to stderr what the root logger does not print already."""

    always = False

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        if sys.stderr is not None and (self.always or not logging.getLogger().handlers):
            print(self.format(record), file=sys.stderr, flush=True)


console = _Console()
"""What ``verbosity="info"`` and ``"debug"`` print with."""


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "scfm"


class Settings(BaseSettings):
    """Settings of scfm; each is also read from the environment as ``SCFM_<NAME>``, unless that is empty.

    Raises
    ------
    ValueError
        If a setting, or the variable that it is read from, holds what it cannot be.
    AttributeError
        If there is no such setting.

    Examples
    --------
    >>> import scfm
    >>> scfm.settings.device = "cpu"
    >>> scfm.settings.batch_tokens = 8192
    >>> scfm.settings.device = scfm.settings.batch_tokens = None
    """

    model_config = SettingsConfigDict(
        env_prefix="SCFM_", env_ignore_empty=True, validate_assignment=True, extra="ignore"
    )

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
    hub_endpoint: str = Field(default_factory=lambda: os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    """Address of the Hugging Face hub or of a mirror of it; also from ``HF_ENDPOINT``."""
    s3_endpoint: str | None = None
    """Address of a mirror of the buckets that other weights come from."""
    cellxgene_endpoint: str = "https://api.cellxgene.cziscience.com"
    """Address of the catalogue of CELLxGENE Discover or of a mirror of it."""
    allow_external: bool = False
    """Follow what leads out of a file: links and values in other files of an HDF5 file, and links in a zarr store. For atlases
    and stores that are made of other files, of people whom you trust."""
    fsync: bool = True
    """Have results on the disk before they get their name, so that even a power failure leaves no half ones. ``False``: faster on
    scratch disks; a crash or kill of the process still does no harm, one of the machine may."""
    progress: bool | None = None
    """Show progress: ``True``: a bar, ``False``: nothing. By default a bar on terminals and in notebooks, and anywhere else a
    line after ten seconds and then one every half minute."""
    verbosity: Verbosity = "warning"
    """What the logger ``"scfm"`` lets through: ``"error"``, ``"warning"``, ``"info"`` or ``"debug"``, or 0 to 4 as in scanpy.
    From ``"info"`` on it prints to stderr by itself, unless the root logger has a handler."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError("; ".join(_said(one, _variable(one["loc"][0])) for one in error.errors())) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).model_fields:
            msg = f"There is no setting {name!r}; there are {', '.join(type(self).model_fields)}."
            raise AttributeError(msg)
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise ValueError(_said(error.errors()[0], f"scfm.settings.{name}")) from None

    @field_validator("verbosity", mode="before")
    @classmethod
    def _as_in_scanpy(cls, value: object) -> object:
        value = value.strip().lower() if isinstance(value, str) else value
        value = int(value) if isinstance(value, str) and value.isdecimal() else value
        return SCANPY.get(value, value) if isinstance(value, str | int) else value

    @field_validator("verbosity")
    @classmethod
    def _set_level(cls, value: Verbosity) -> Verbosity:
        logger = logging.getLogger("scfm")
        logger.setLevel(value.upper())
        if value in ("info", "debug"):
            logger.addHandler(console)  # once, however often
        return value

    @field_validator("cache_dir")
    @classmethod
    def _at_home(cls, value: Path) -> Path:
        value = value.expanduser()
        with suppress(OSError):  # what cannot be looked at is told when it is used
            if value.exists() and not value.is_dir():
                msg = "it should be a folder, or a place for one, and is a file"
                raise ValueError(msg)
        return value

    @field_validator("device")
    @classmethod
    def _is_device(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"(cpu|cuda|mps)(:\d+)?", value):
            msg = "it should be 'cpu', 'cuda', 'cuda:1' or 'mps'"
            raise ValueError(msg)
        return value

    @field_validator("hub_endpoint", "s3_endpoint", "cellxgene_endpoint")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/]", value):
            msg = "it should begin with https:// and a host, or with http:// for a mirror"
            raise ValueError(msg)
        return value

    def reset(self) -> None:
        """Go back to the defaults and the environment."""
        fresh = type(self)()
        for name in type(self).model_fields:
            setattr(self, name, getattr(fresh, name))


def _variable(setting: object) -> str:
    """The variable that a setting is read from."""
    name = f"SCFM_{setting}".upper()
    return "HF_ENDPOINT" if setting == "hub_endpoint" and not os.environ.get(name) else name


def _said(error: Any, name: str) -> str:
    """What is wrong with a setting, in one line, without a login."""
    why = BOOLEAN if error["type"].startswith("bool") else error["msg"].removeprefix("Value error, ")
    return f"{name}={masked(repr(error['input']))} cannot be used: {why.replace('Input', 'it', 1)}."


settings = Settings()

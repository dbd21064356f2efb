"""Zarr stores by their address."""

from __future__ import annotations

from typing import Any

from scfm._package import pip_install
from scfm._text import masked

__all__ = ["open_url"]

SILENCE = 30.0
"""Seconds for which a server may say nothing."""


def open_url(url: str) -> Any:
    """Open a group of a zarr store for reading.

    Parameters
    ----------
    url
        Address of the store, as fsspec takes it.

    Raises
    ------
    ImportError
        If the address needs a package that is not installed.
    FileNotFoundError
        If there is no zarr store.
    ConnectionError
        If the server does not answer, or refuses.
    ValueError
        If no such kind of address is known.
    """
    import zarr

    try:
        return zarr.open_group(url, mode="r", storage_options=_options(url))
    except ImportError as error:
        msg = f"{url} needs another package: {error}. For http, https and s3: {pip_install('remote')}."
        raise ImportError(masked(msg)) from error
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        msg = f"{url} cannot be opened as a zarr store: {error}. A file of another kind must be downloaded first."
        raise kind(masked(msg)) from error
    except Exception as error:
        msg = f"{url} cannot be reached: {str(error) or type(error).__name__}."
        raise ConnectionError(masked(msg)) from error


def _options(url: str) -> dict[str, Any] | None:
    """What fsspec is given beside the settings of the user; only http waits for minutes by default."""
    if not url.startswith(("http://", "https://")):
        return None
    from aiohttp import ClientTimeout
    from fsspec.config import conf  # type: ignore[import-untyped]

    own = conf.get(url.partition(":")[0], {}).get("client_kwargs", {})
    return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE), **own}}

"""Keep other processes away from what is being written."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING

from scfm._warn import warn

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["NO_LOCKS", "hold"]

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What a file system answers that has no locks."""


def hold(path: Path, wait: float = -1) -> ExitStack:
    """Lock a file, which is made for that, until the result is closed or the process ends.

    On a file system without locks that is a warning.

    Parameters
    ----------
    path
        The file.
    wait
        Seconds to wait for another process that holds the lock; without end if negative.

    Raises
    ------
    TimeoutError
        If another process still holds it then.
    """
    from filelock import FileLock

    held = ExitStack()
    try:
        held.enter_context(FileLock(path).acquire(timeout=wait))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _warn_of_no_locks(path.parent)
    return held


@cache
def _warn_of_no_locks(folder: Path) -> None:
    warn(f"The file system of {folder} has no locks: do not let two processes write there at the same time.")

"""Resident memory of this process on Linux; needs nothing but Python, so that peers can use it, too."""

from __future__ import annotations

from pathlib import Path

PROCESS = Path("/proc/self")


def resident() -> int:
    """Bytes in use now."""
    return _status("VmRSS")


def anonymous() -> int:
    """Bytes in use now that are not pages of files, which the system can drop."""
    return _status("RssAnon")


def peak() -> int:
    """Most bytes in use since the process began or :func:`reset_peak` was called."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Forget the peak so far (proc_pid_clear_refs(5): writing 5 sets it to what is in use now)."""
    (PROCESS / "clear_refs").write_text("5")


def check() -> None:
    """Say so if the system cannot tell peaks, before the long work."""
    try:
        reset_peak()
        peak()
    except (OSError, RuntimeError) as error:
        msg = f"Peak memory is read from /proc/self/clear_refs and /proc/self/status, which only Linux has ({error})."
        raise SystemExit(msg) from error


def _status(name: str) -> int:
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    msg = f"/proc/self/status has no {name}"
    raise RuntimeError(msg)

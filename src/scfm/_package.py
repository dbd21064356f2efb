"""What scfm is called where it is installed from, and which versions of packages are here."""

from __future__ import annotations

from importlib.metadata import version

__all__ = ["DISTRIBUTION", "pip_install", "version_of"]

DISTRIBUTION = "scfm-tools"
"""Name on PyPI, where ``scfm`` is another project."""


def pip_install(*extras: str) -> str:
    """The command that installs scfm with some of its extras.

    Examples
    --------
    >>> from scfm._package import pip_install
    >>> print(pip_install("arrow", "fast"))
    pip install "scfm-tools[arrow,fast]"
    """
    return f'pip install "{DISTRIBUTION}[{",".join(extras)}]"' if extras else f"pip install {DISTRIBUTION}"


def version_of(package: str) -> str:
    """Version of an installed package; a ``PackageNotFoundError`` if it is not installed."""
    return version(DISTRIBUTION if package == "scfm" else package)

"""Tools that compute something and store it in the object they are given."""

from __future__ import annotations

from scfm.tl._embed import embed

__all__ = ["embed"]

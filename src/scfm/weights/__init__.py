"""Files of weights and vocabularies: cards, safe readers, conversion."""

from __future__ import annotations

from scfm.weights.card import ModelCard, read_cards

__all__ = ["ModelCard", "read_cards"]

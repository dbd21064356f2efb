"""The cards of all registered models, whatever registers them."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from scfm.genes import is_species

if TYPE_CHECKING:
    from scfm.weights.card import ModelCard

__all__ = ["import_families", "known_cards", "models_of"]

ENTRY_POINTS = "scfm.models"
FAMILIES = "scfm.model.families"

known_cards: dict[str, ModelCard] = {}


@cache
def import_families() -> None:
    """Import all families, which register their cards."""
    for module in iter_modules(import_module(FAMILIES).__path__):
        if not module.name.startswith("_"):
            import_module(f"{FAMILIES}.{module.name}")
    for point in entry_points(group=ENTRY_POINTS):
        point.load()


def models_of(species: str) -> list[str]:
    """Ids of the registered models that know a species."""
    import_families()
    return [card.id for card in known_cards.values() if is_species(species, card.species)]

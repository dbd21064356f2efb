"""All registered families and the cards of their models, whatever registers them."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from scfm._warn import warn
from scfm.genes import is_species

if TYPE_CHECKING:
    from scfm.weights.card import ModelCard

__all__ = ["import_families", "known_cards", "known_families", "models_of"]

ENTRY_POINTS = "scfm.models"
FAMILIES = "scfm.model.families"

known_families: dict[str, Any] = {}
known_cards: dict[str, ModelCard] = {}


@cache
def import_families() -> None:
    """Import all families, which register their cards; a package that cannot be imported is left out, with a warning."""
    for module in iter_modules(import_module(FAMILIES).__path__):
        if not module.name.startswith("_"):
            import_module(f"{FAMILIES}.{module.name}")
    for point in entry_points(group=ENTRY_POINTS):
        before = {*known_families, *known_cards}
        try:
            point.load()
        except BaseException as error:  # noqa: BLE001
            registered: dict[str, Any]
            for registered in (known_families, known_cards):
                for name in registered.keys() - before:
                    del registered[name]
            package = point.value if point.dist is None else point.dist.name
            warn(
                f"The models of the package {package} are left out, because {point.value} cannot be imported "
                f"({type(error).__name__}: {error}). Update the package, or uninstall it."
            )


def models_of(species: str) -> list[str]:
    """Ids of the registered models that know a species."""
    import_families()
    return [card.id for card in known_cards.values() if is_species(species, card.species)]

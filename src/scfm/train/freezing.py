"""Parts of a network that are not trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from scfm._checks import is_int

if TYPE_CHECKING:
    from torch import nn

__all__ = ["freeze"]


def freeze(network: nn.Module, n_layers: int | bool) -> None:
    """Leave the input embeddings and the first layers of a network as they are in training, in place.

    Parameters
    ----------
    network
        A network of :meth:`~scfm.model.recipe.Recipe.training_network`.
    n_layers
        Number of layers; 0 for the input embeddings alone, ``True`` for the whole network.

    Raises
    ------
    TypeError
        If the network does not say which modules make its input.
    ValueError
        If it has fewer layers, or the number is negative.

    Examples
    --------
    >>> import scfm
    >>> from scfm.train.freezing import freeze
    >>> network = scfm.model.load("scfm-mini").training_network()
    >>> freeze(network, 1)
    >>> [layer.qkv.weight.requires_grad for layer in network.layers]
    [False, True]
    """
    if n_layers is True:
        network.requires_grad_(False)
        return
    names: tuple[str, ...] | None = getattr(network, "input_modules", None)
    if names is None:
        msg = (
            f"{type(network).__name__} does not say which modules make its input (input_modules), so it can only be frozen "
            "as a whole, by True."
        )
        raise TypeError(msg)
    layers = list(cast("Any", network).layers)
    if not is_int(n_layers) or not 0 <= n_layers <= len(layers):
        msg = (
            f"{n_layers!r} layers cannot be frozen: the network has {len(layers)}. freeze=0 is its input embeddings alone, and "
            "True all of it."
        )
        raise ValueError(msg)
    for module in [*(network.get_submodule(name) for name in names), *layers[:n_layers]]:
        module.requires_grad_(False)

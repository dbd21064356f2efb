"""What a training run asks of a model and of its data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from scfm.train.supervised.inputs import Inputs
    from scfm.train.supervised.setup import Setup
    from scfm.train.supervised.split import Split
    from scfm.train.supervised.targets import Target

__all__ = ["Prepared", "Trainable"]


class Trainable(Protocol):
    """A model as a training run sees it."""

    module: nn.Module
    targets: dict[str, Target]
    task_weights: dict[str, float]
    temperatures_: dict[str, float]
    calibrates: ClassVar[bool]
    is_trained_: bool
    trainer: Any
    setup: Setup

    def as_dict(self) -> dict[str, Any]:
        """The arguments of the model."""


class Prepared(NamedTuple):
    """Data of a training run."""

    training: Inputs
    validation: Inputs
    split: Split
    """Cells that are drawn for either."""
    weights: NDArray[np.float64] | None
    """Of the cells that are trained on, for balanced sampling."""

"""Losses, optimiser and figures of fine-tuning, as a Lightning module."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from scfm._checks import check_least, check_share
from scfm.train.supervised.figures import figures, judged, none_judged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning import Trainer

    from scfm.train.supervised.inputs import Part
    from scfm.train.supervised.targets import Target

__all__ = ["BestWeights", "Optimisation", "SupervisedPlan"]

Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How weights follow the gradient (AdamW); biases and norms do not decay.

    Parameters
    ----------
    lr
        Largest learning rate.
    head_lr
        That of the head; as ``lr`` by default.
    weight_decay
        Of matrices.
    schedule
        How the learning rate falls from its largest to 0.
    warmup
        Steps over which it rises, or their share if below 1.
    clip
        Largest norm of a gradient, 0 for none.
    """

    lr: float = 5e-5
    head_lr: float | None = None
    weight_decay: float = 0.001
    schedule: Schedule = "linear"
    warmup: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("lr", self.lr), ("head_lr", self.head_lr)):
            if value is not None and not 0 < value < 1:
                msg = f"{name} must be between 0 and 1, got {value}."
                raise ValueError(msg)
        check_share("weight_decay", self.weight_decay)
        for name in ("warmup", "clip"):
            if getattr(self, name) < 0:
                msg = f"{name} must not be negative, got {getattr(self, name)}."
                raise ValueError(msg)

    def factor(self, step: int, n_steps: int) -> float:
        """Share of the largest learning rate at a step."""
        # whole steps, so that a run of few steps does not spend them all on a learning rate near 0
        warmup = int(self.warmup * n_steps) if self.warmup < 1 else self.warmup
        if step < warmup:
            return step / warmup
        done = min(1.0, (step - warmup) / max(1.0, n_steps - warmup))
        falls = {"constant": 0.0, "linear": done, "cosine": 0.5 * (1 - math.cos(math.pi * done))}
        return 1 - falls[self.schedule]


class SupervisedPlan(LightningModule):
    """Trains a network for one or several targets.

    A step takes all its parts: gradients of the sums of the losses are added, each divided by how much it predicts in the
    whole step and in all processes.

    Parameters
    ----------
    module
        Network and head.
    targets
        What is predicted, by name.
    task_weights
        Weight of each target in the loss.
    optimisation
        Learning rates and their schedule.
    n_steps
        Steps of the optimiser in all.
    seed
        Decides, with the step alone, what dropout leaves out.
    """

    def __init__(
        self,
        module: nn.Module,
        targets: Mapping[str, Target],
        task_weights: Mapping[str, float],
        optimisation: Optimisation,
        n_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        check_least("max_epochs × steps", n_steps)
        self.automatic_optimization = False
        self.module = module
        self._targets, self._task_weights = targets, task_weights
        self._optimisation, self._n_steps, self._seed = optimisation, n_steps, seed
        self._judged: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []
        self._rate = 0.0

    def training_step(self, parts: list[Part], step: int) -> None:
        """One step of the optimiser."""
        # dropout depends on the step alone
        torch.manual_seed(hash((self._seed, self.global_step, self.global_rank)) & (2**63 - 1))
        optimiser = cast("torch.optim.Optimizer", self.optimizers())
        targets = [self._moved(part.targets) for part in parts]
        counts = self._summed(self._counts(targets)).clamp(min=1e-12)
        total = torch.zeros((), device=self.device)
        for number, part in enumerate(parts):
            with self._without_sync(skip=number == len(parts) - 1):
                loss = self._loss(self.module(part.inputs), targets[number], counts)
                total += loss.detach()
                # processes add their gradients up, and Lightning averages them
                self.manual_backward(loss * self.trainer.world_size)
        if self._optimisation.clip:
            nn.utils.clip_grad_norm_(self.parameters(), self._optimisation.clip)
        optimiser.step()
        optimiser.zero_grad()
        schedule = cast("Any", self.lr_schedulers())
        self._losses.append(total)
        self._rate = schedule.get_last_lr()[0]
        schedule.step()

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the steps and the last learning rate; at each step that costs more than a small head."""
        losses = self._summed(torch.stack(self._losses))
        self.log_dict({"train_loss": losses.mean(), "lr": self._rate}, batch_size=1)
        self._losses = []

    def on_validation_epoch_start(self) -> None:
        """Begin with no cells, of which a process may get none."""
        self._judged = {name: none_judged(target).to(self.device) for name, target in self._targets.items()}

    def validation_step(self, parts: list[Part], number: int) -> None:
        """Add up what the figures are made of."""
        for part in parts:
            targets = self._moved(part.targets)
            for name, scores in self.module(part.inputs).items():
                self._judged[name] += judged(self._targets[name], scores, targets[name])

    def on_validation_epoch_end(self) -> None:
        """Log the mean losses and figures."""
        total = 0.0
        for name, target in self._targets.items():
            found = figures(target, self._summed(self._judged[name]))
            total += self._task_weights[name] * found["loss"]
            label = f"validation_{name}_" if len(self._targets) > 1 else "validation_"
            own = {f"{label}{key}": value for key, value in found.items() if key != "loss" or len(self._targets) > 1}
            self.log_dict(own, batch_size=1)
        self.log("validation_loss", total, batch_size=1, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and a schedule."""
        config = self._optimisation
        heads = {id(parameter) for parameter in cast("nn.Module", self.module.head).parameters()}
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for parameter in self.parameters():
            if parameter.requires_grad:
                rate = config.head_lr or config.lr if id(parameter) in heads else config.lr
                groups.setdefault((rate, parameter.ndim > 1), []).append(parameter)
        optimiser = torch.optim.AdamW(
            [
                {"params": parameters, "lr": rate, "weight_decay": config.weight_decay * decays}
                for (rate, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
            ],
            lr=config.lr,
            fused=True,
        )
        factor = lambda step: config.factor(step, self._n_steps)
        return [optimiser], [torch.optim.lr_scheduler.LambdaLR(optimiser, factor)]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches stay arrays; networks move what they read."""
        return batch

    def _moved(self, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(values).to(self.device) for name, values in targets.items()}

    def _counts(self, targets: list[dict[str, Tensor]]) -> Tensor:
        """How much of each target the parts predict."""
        counts = torch.zeros(len(self._targets), device=self.device)
        for part in targets:
            for at, (name, target) in enumerate(self._targets.items()):
                counts[at] += target.count(part[name])
        return counts

    def _loss(self, scores: dict[str, Tensor], targets: dict[str, Tensor], counts: Tensor) -> Tensor:
        losses = [
            self._task_weights[name] * target.loss(scores[name], targets[name]) / counts[at]
            for at, (name, target) in enumerate(self._targets.items())
        ]
        return torch.stack(losses).sum()

    def _summed(self, values: Tensor) -> Tensor:
        """Sum over all processes."""
        return cast("Tensor", self.trainer.strategy.reduce(values, reduce_op="sum"))

    def _without_sync(self, *, skip: bool) -> Any:
        strategy = self.trainer.strategy
        return nullcontext() if skip or not hasattr(strategy, "block_backward_sync") else strategy.block_backward_sync()


class BestWeights(Callback):
    """Keeps the trained weights of the epoch that the validation cells like best, and puts them back at the end.

    Parameters
    ----------
    monitor
        Name of the figure; the smallest value is best for a loss, the largest for others.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.best: float | None = None
        self.epoch = -1
        self._weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights if they are better."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is None or trainer.sanity_checking or not math.isfinite(float(value)):
            return
        better = self.best is None or (value < self.best if self.monitor.endswith("loss") else value > self.best)
        if better:
            self.best, self.epoch = float(value), trainer.current_epoch
            self._weights = {name: one.detach().cpu().clone() for name, one in _trained(pl_module)}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put them back."""
        with torch.no_grad():
            for name, kept in _trained(pl_module):
                if name in self._weights:
                    kept.copy_(self._weights[name])

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"best": self.best, "epoch": self.epoch, "weights": self._weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a checkpoint."""
        self.best, self.epoch, self._weights = state_dict["best"], state_dict["epoch"], state_dict["weights"]


def _trained(module: LightningModule) -> list[tuple[str, Tensor]]:
    """What changes in training: parameters, and buffers such as running means of a head."""
    parameters = [(name, one) for name, one in module.named_parameters() if one.requires_grad]
    return [*parameters, *module.named_buffers()]

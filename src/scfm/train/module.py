"""The network and its losses as a Lightning module."""

from __future__ import annotations

import logging
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scfm._settings import settings
from scfm.train.objective import Outputs
from scfm.train.start import set_gene_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scfm._types import TokenBatch
    from scfm.model import FoundationModel
    from scfm.model.recipe import RunOptions
    from scfm.train.config import Pretraining
    from scfm.train.objective import Objective, Term, TrainingBatch
    from scfm.train.start import Vectors

__all__ = ["PretrainingModule"]

logger = logging.getLogger("scfm")

SECONDS = 30
"""Between two lines of the log."""


class PretrainingModule(LightningModule):
    """A network that is trained for one or several objectives.

    A step takes all its batches: gradients of the sums of the losses are added, each divided by how much it predicts in
    the whole step and in all processes.

    Parameters
    ----------
    model
        Card, vocabulary and the weights that training starts from.
    options
        How cells are pooled.
    objectives
        Losses by name, not yet built.
    weights
        Their weights.
    config
        Optimiser, schedule and seed.
    cell_types
        Names of the labels of cells.
    vectors
        Genes and the vectors from which theirs start.
    """

    def __init__(
        self,
        model: FoundationModel,
        options: RunOptions,
        objectives: Mapping[str, Objective],
        weights: Mapping[str, float],
        config: Pretraining,
        cell_types: Sequence[str] = (),
        vectors: Vectors | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.recipe, self.options, self.config, self.weights = model, options, config, weights
        torch.manual_seed(config.seed)
        self.network = model.training_network()
        if vectors is not None:
            set_gene_vectors(self.network, model.vocabulary, *vectors)
        for objective in objectives.values():
            objective.build(model, self.network, cell_types)
        self.objectives = nn.ModuleDict(objectives)
        if config.machine.recompute:
            for layer in cast("list[nn.Module]", self.network.layers):
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        self._judged: dict[str, Tensor] = {}
        self._began: float | None = None
        self._said = 0.0

    def forward(self, batch: TrainingBatch) -> dict[str, Term]:
        """The terms of all objectives that have something to predict in a batch."""
        hidden, pooled = self.recipe.training_outputs(self.network, batch.batch, self.options)
        outputs = Outputs(self.network, hidden, pooled, self._embed)
        return {
            name: objective(outputs, batch) for name, objective in self._objectives().items() if objective.count(batch)
        }

    def _embed(self, network: nn.Module, batch: TokenBatch) -> Tensor:
        return self.recipe.training_outputs(network, batch, self.options)[1]

    def training_step(self, batches: list[TrainingBatch], step: int) -> None:
        """One step of the optimiser."""
        began = time.perf_counter()
        # dropout depends on the step alone
        torch.manual_seed(hash((self.config.seed, self.global_step, self.global_rank)) & (2**63 - 1))
        optimiser = cast("torch.optim.Optimizer", self.optimizers())
        counts = self._summed(self._counts(batches))
        totals = torch.zeros_like(counts)
        metrics: dict[str, Tensor] = {}
        predicting = [batch for batch in batches if any(one.count(batch) for one in self._objectives().values())]
        for number, batch in enumerate(predicting):
            last = number == len(predicting) - 1
            with self._without_sync(skip=last):
                terms = self(batch)
                losses = []
                for at, name in enumerate(self.objectives):
                    if name in terms:
                        totals[at] += terms[name].total.detach()
                        losses.append(self.weights[name] * terms[name].total / counts[at])
                        for key, value in terms[name].metrics.items():
                            metrics[f"{name}/{key}"] = metrics.get(f"{name}/{key}", 0) + value.detach() / counts[at]
                # processes add their gradients up, and Lightning averages them
                self.manual_backward(cast("Tensor", sum(losses)) * self.trainer.world_size)
        if not predicting:  # the others wait for the gradients of this process
            self.manual_backward(cast("Tensor", sum(one.sum() for one in self.parameters() if one.requires_grad)) * 0)
        clip = self.config.optimiser.clip
        if clip:
            nn.utils.clip_grad_norm_(self.parameters(), clip)
        optimiser.step()
        optimiser.zero_grad()
        cast("Any", self.lr_schedulers()).step()
        self._log(totals / counts.clamp(min=1), metrics, batches, began)

    def validation_step(self, batches: list[TrainingBatch], number: int, dataloader_idx: int = 0) -> None:
        """Add up the losses of cells that are not trained on."""
        name = self.trainer.datamodule.judged[dataloader_idx]  # type: ignore[attr-defined]
        for batch in batches:
            sums = torch.zeros(2, len(self.objectives), device=self.device)
            terms = self(batch)
            for at, (key, objective) in enumerate(self._objectives().items()):
                if key in terms:
                    sums[0, at], sums[1, at] = terms[key].total.detach(), objective.count(batch)
            self._judged[name] = self._judged.get(name, torch.zeros_like(sums)) + sums

    def on_validation_epoch_end(self) -> None:
        """Log the mean losses."""
        for name in self.trainer.datamodule.judged:  # type: ignore[attr-defined]
            empty = torch.zeros(2, len(self.objectives), device=self.device)
            totals, counts = self._summed(self._judged.pop(name, empty))
            self._log_losses(name, totals / counts.clamp(min=1))

    def configure_optimizers(self) -> Any:
        """AdamW without decay of vectors, with warm-up and a schedule."""
        config = self.config.optimiser
        vectors = {id(module.weight) for module in self.network.modules() if isinstance(module, nn.Embedding)}
        heads = {id(parameter) for parameter in self.objectives.parameters()}
        rates = {"learning_rate": config.learning_rate, "embeddings": config.embedding_rate, "heads": config.head_rate}
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for parameter in self.parameters():
            if parameter.requires_grad:
                kind = (
                    "embeddings" if id(parameter) in vectors else "heads" if id(parameter) in heads else "learning_rate"
                )
                decays = kind != "embeddings" and parameter.ndim > 1
                groups.setdefault((rates[kind] or config.learning_rate, decays), []).append(parameter)
        optimiser = torch.optim.AdamW(
            [
                {"params": parameters, "lr": rate, "weight_decay": config.weight_decay * decays}
                for (rate, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
            ],
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )
        return [optimiser], [torch.optim.lr_scheduler.LambdaLR(optimiser, self._factor)]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches stay arrays; networks and losses move what they read."""
        return batch

    def published_tensors(self) -> dict[str, Tensor]:
        """All weights that the trained model keeps, by published name, on the CPU."""
        tensors = self.recipe.published_tensors(self.network)
        for objective in self._objectives().values():
            tensors |= objective.published_tensors()
        return {name: tensor.detach().cpu() for name, tensor in tensors.items()}

    def _objectives(self) -> dict[str, Objective]:
        return cast("dict[str, Objective]", dict(self.objectives.items()))

    def _counts(self, batches: Sequence[TrainingBatch]) -> Tensor:
        counts = [sum(objective.count(batch) for batch in batches) for objective in self._objectives().values()]
        return torch.tensor(counts, dtype=torch.float32, device=self.device)

    def _summed(self, values: Tensor) -> Tensor:
        """Sum over all processes."""
        return cast("Tensor", self.trainer.strategy.reduce(values, reduce_op="sum"))

    def _without_sync(self, *, skip: bool) -> Any:
        from contextlib import nullcontext

        strategy = self.trainer.strategy
        return nullcontext() if skip or not hasattr(strategy, "block_backward_sync") else strategy.block_backward_sync()

    def _factor(self, step: int) -> float:
        """Share of the largest learning rate at a step."""
        config, steps = self.config.optimiser, self.config.steps
        rising = min(1.0, (step + 1) / (config.warmup + 1))
        done = min(1.0, max(0.0, (step - config.warmup) / max(1, steps - config.warmup)))
        fallen = {"constant": 0.0, "linear": done, "cosine": 0.5 * (1 - math.cos(math.pi * done))}[config.schedule]
        return rising * (1 - (1 - config.final) * fallen)

    def _log(
        self, losses: Tensor, metrics: Mapping[str, Tensor], batches: Sequence[TrainingBatch], began: float
    ) -> None:
        now = time.perf_counter()
        n_tokens = sum(len(batch.batch.tokens) for batch in batches) * self.trainer.world_size
        since, self._began = self._began or began, now
        schedule = cast("Any", self.lr_schedulers())
        rates = {"learning_rate": schedule.get_last_lr()[-1], "tokens_per_second": n_tokens / max(now - since, 1e-9)}
        self._log_losses("train", losses)
        self.log_dict({**{f"train/{name}": value for name, value in metrics.items()}, **rates}, batch_size=1)
        self._say(now, losses, n_tokens / max(now - since, 1e-9))

    def _say(self, now: float, losses: Tensor, speed: float) -> None:
        """A line now and then, where there is no bar."""
        if self.trainer.progress_bar_callback is not None or settings.progress is False or now - self._said < SECONDS:
            return
        self._said = now
        each = ", ".join(f"{name} {loss:.3f}" for name, loss in zip(self.objectives, losses.tolist(), strict=True))
        logger.info("step %d of %d: %s; %.0f tokens/s", self.global_step, self.config.steps, each, speed)

    def _log_losses(self, name: str, losses: Tensor) -> None:
        each = dict(zip(self.objectives, losses, strict=True))
        total = sum(self.weights[key] * value for key, value in each.items())
        self.log_dict({f"{name}/loss": total, **{f"{name}/{key}": value for key, value in each.items()}}, batch_size=1)

"""Search for learning rate, frozen layers, adapters and dropout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd
from lightning.pytorch.callbacks import Callback

from scfm._checks import check_least, is_int, typed
from scfm._paths import atomic, check_writable, read_json
from scfm._text import some
from scfm.train.adapters import LoRA
from scfm.train.supervised.figures import check_monitor
from scfm.train.supervised.plan import Schedule
from scfm.train.supervised.runner import check_known

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler

    from scfm.train.supervised._cell_model import CellModel

__all__ = ["BEST", "Search", "search"]

STORAGE, BEST, SPACE = "trials.log", "best.json", "search.json"
RANGES: dict[str, Any] = {
    "lr": [1e-5, 1e-2],
    "schedule": ["linear", "cosine", "constant"],
    "weight_decay": [0.0, 0.3],
    "dropout": [0.0, 0.3],
}
"""What is searched by default, beside the number of frozen layers: a range, or choices."""
DRAWN = ("lr", "head_lr", "weight_decay", "warmup", "dropout")
"""Names with a range."""
LISTED = ("schedule", "batch_size", "freeze", "lora")
"""Names with choices."""
OF_MODEL = ("freeze", "lora", "dropout")


@dataclass(frozen=True)
class Search:
    """What a search found."""

    best: dict[str, Any]
    """Values of the best trial."""
    value: float
    """Its figure."""
    trials: pd.DataFrame
    """A row for each trial: its values, ``value``, and ``state``: ``complete`` or ``pruned``."""
    config: Path
    """File of the best trial, from which :func:`repeat` trains the same model again."""


class _Pruning(Callback):
    """Tells a trial of each epoch, and ends it where others were better by then."""

    def __init__(self, trial: Trial, monitor: str) -> None:
        self._trial, self._monitor = trial, monitor

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the figure of the epoch."""
        from optuna import TrialPruned

        self._trial.report(float(trainer.callback_metrics[self._monitor]), trainer.current_epoch)
        if self._trial.should_prune():
            raise TrialPruned


@typed
def search(
    model: CellModel,
    *,
    out: str | Path,
    n_trials: int = 20,
    space: Mapping[str, Any] | None = None,
    monitor: str = "validation_macro_f1",
    seed: int = 0,
    **how: Any,
) -> Search:
    """Try values of learning rate, schedule, frozen layers or adapters, and dropout, and keep the best (optuna).

    All trials have the same split. One whose figure is below the median of the others at the same epoch is ended. Trials are
    kept in ``out``; the same call goes on where an interrupted one stopped, and draws what it would have drawn.

    Parameters
    ----------
    model
        A model of cells; it is not changed.
    out
        Folder for the trials and the best config.
    n_trials
        Trials in all, those that ``out`` holds already included.
    space
        Values to choose from by name, instead of the default ones: of ``lr``, ``weight_decay``, ``warmup``, ``dropout`` a
        range ``[low, high]`` (of learning rates the logarithm is drawn), of ``schedule``, ``batch_size``, ``freeze``,
        ``lora`` (ranks) a list of choices. ``None`` among choices stands for none.
    monitor
        Figure to judge by, of which the largest is best, unless it is a loss.
    seed
        Decides trials, split and first weights.
    **how
        Arguments of ``train``, which are the same in all trials.

    Returns
    -------
    The best trial, and a table of all.

    Raises
    ------
    ValueError
        If a name or value of the space or the figure is not known, ``out`` holds another search, or no trial had a figure.

    Examples
    --------
    >>> import scfm, tempfile
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.tl.embed(adata, "scfm-mini")
    >>> scfm.train.CellClassifier.setup_anndata(adata, "bulk_labels")
    >>> model = scfm.train.CellClassifier(adata, "scfm-mini")
    >>> space = {"lr": [1e-3, 1e-2], "freeze": [True]}
    >>> found = scfm.train.search(model, out=tempfile.mkdtemp(), n_trials=1, space=space, max_epochs=1)
    >>> found.trials["state"].tolist()
    ['complete']
    """
    check_known(how, type(model).train)
    check_least("n_trials", n_trials)
    check_monitor(monitor, model.targets)
    chosen = _checked_space(space, model)
    if "checkpoint_dir" in how:
        msg = "checkpoint_dir= belongs to one run; trials are kept in out=."
        raise ValueError(msg)
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
    _check_same(folder / SPACE, model, {"space": chosen, "monitor": monitor, "seed": seed, "train": how})
    study = _study(folder / STORAGE, monitor)

    def objective(trial: Trial) -> float:
        values = _drawn(trial, chosen)
        trial.set_user_attr("values", values)
        tried, arguments = _with(model, values), _of_training(values)
        tried.train(**{**how, **arguments}, monitor=monitor, seed=seed, callbacks=[_Pruning(trial, monitor)])
        assert tried.fit_ is not None
        return float("nan") if tried.fit_.best is None else tried.fit_.best

    # pruned ones and those without a figure included
    done = sum(trial.state.is_finished() for trial in study.trials)
    for number in range(done, n_trials):
        # what a trial draws depends on those before it, not on where a call began
        study.sampler = _sampler(seed + number)
        study.optimize(objective, n_trials=1, catch=FloatingPointError)
    if not any(trial.state.name == "COMPLETE" for trial in study.trials):
        msg = f"No trial had a {monitor} that is a number; lower lr in space=."
        raise ValueError(msg)
    best = study.best_trial.user_attrs["values"]
    train = {**how, **_of_training(best), "monitor": monitor, "seed": seed}
    described = {**_described(_with(model, best)), "train": train, "value": study.best_value}
    with atomic(folder / BEST) as new:
        new.write_text(_text(described), encoding="utf-8")
    rows = [
        {**trial.user_attrs.get("values", {}), "value": trial.value, "state": trial.state.name.lower()}
        for trial in study.trials
    ]
    return Search(best, study.best_value, pd.DataFrame(rows), folder / BEST)


def _study(path: Path, monitor: str) -> Study:
    """Trials in a file, those of an earlier call included."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        study_name="search",
        direction="minimize" if monitor.endswith("loss") else "maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1),
        load_if_exists=True,
    )


def _sampler(seed: int) -> BaseSampler:
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed)


def _checked_space(space: Mapping[str, Any] | None, model: CellModel) -> dict[str, list[Any]]:
    """Ranges and choices by name; a ValueError for a name or values that there cannot be."""
    n_layers = model.backbone.base.n_layers
    freezing = {} if model.backbone.lora is not None else {"freeze": [None, *range(n_layers), True]}
    chosen = dict({**RANGES, **freezing} if space is None else space)
    unknown = [name for name in chosen if name not in (*DRAWN, *LISTED)]
    if unknown:
        msg = f"space: {unknown[0]!r} is not searched; there are {', '.join((*DRAWN, *LISTED))}."
        raise ValueError(msg)
    for name, values in chosen.items():
        wrong = not isinstance(values, Sequence) or isinstance(values, str) or not len(values)
        if wrong or (name in DRAWN and not (len(values) == 2 and values[0] <= values[1])):
            kind = "a range [low, high]" if name in DRAWN else "a list of choices"
            msg = f"space: {name} is {kind}, got {values!r}."
            raise ValueError(msg)
    _check_choices(chosen, n_layers)
    frozen, ranks = chosen.get("freeze", [model.backbone.freeze]), chosen.get("lora", [model.backbone.lora])
    if any(one is not None and one is not False for one in frozen) and any(one is not None for one in ranks):
        msg = "space: freeze and lora exclude each other, also where the model has one of them; search for one of them."
        raise ValueError(msg)
    return {name: list(values) for name, values in chosen.items()}


def _check_choices(space: Mapping[str, Sequence[Any]], n_layers: int) -> None:
    """A ValueError for a choice that training would refuse, perhaps after many trials."""
    accepted = {
        "schedule": (lambda one: one in get_args(Schedule), "one of 'linear', 'cosine', 'constant'"),
        "batch_size": (lambda one: is_int(one) and one >= 1, "a whole number of at least 1"),
        "freeze": (
            lambda one: one is None or isinstance(one, bool) or (is_int(one) and 0 <= one <= n_layers),
            f"None, True or a number of layers up to {n_layers}",
        ),
        "lora": (lambda one: one is None or (is_int(one) and one >= 1), "None or a rank of at least 1"),
    }
    for name, (fits, wanted) in accepted.items():
        wrong = [one for one in space.get(name, ()) if not fits(one)]
        if wrong:
            msg = f"space: {name} is {wanted}, got {wrong[0]!r}."
            raise ValueError(msg)
    if max(space.get("dropout", [0])) >= 1 or min(space.get("dropout", [0])) < 0:
        msg = f"space: dropout is at least 0 and below 1, got {space['dropout']!r}."
        raise ValueError(msg)


def _drawn(trial: Trial, space: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Values of a trial."""
    values: dict[str, Any] = {}
    for name, given in space.items():
        if name in DRAWN:
            values[name] = trial.suggest_float(name, *map(float, given), log=name.endswith("lr"))
        else:
            # by position, since optuna takes 1 and True for the same
            values[name] = given[trial.suggest_categorical(name, range(len(given)))]
    return values


def _of_training(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in OF_MODEL}


def _with(model: CellModel, values: Mapping[str, Any]) -> CellModel:
    """The model with other values of what belongs to it."""
    changes = {name: values[name] for name in OF_MODEL if name in values}
    if changes.get("lora") is not None:
        changes["lora"] = LoRA(rank=changes["lora"])
    tried = copy(model)
    tried.backbone = replace(model.backbone, **changes)
    return tried


def _described(model: CellModel) -> dict[str, Any]:
    return {"class": type(model).__name__, "setup": asdict(model.setup), **model.as_dict()}


def _text(described: Mapping[str, Any]) -> str:
    """As JSON; a TypeError for arguments that a file cannot hold."""
    try:
        return json.dumps(described, indent=2, default=fspath) + "\n"
    except TypeError as error:
        msg = (
            "Arguments of train() must be numbers, texts or paths in a search, so that the best trial can be repeated."
        )
        raise TypeError(msg) from error


def _check_same(path: Path, model: CellModel, choices: Mapping[str, Any]) -> None:
    """Note what is searched, or compare with what was noted; a ValueError if it is something else."""
    wanted = json.loads(_text({**_described(model), **choices}))
    if not path.exists():
        with atomic(path) as new:
            new.write_text(_text(wanted), encoding="utf-8")
        return
    stored = read_json(path)
    changed = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
    if changed:
        msg = f"{path.parent} holds another search, which differs in {some(changed)}; choose another folder."
        raise ValueError(msg)

"""Trained models as folders of safetensors and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scfm._package import version_of
from scfm._paths import atomic, read_json
from scfm._text import some
from scfm.model import load as load_model
from scfm.model.saved import write_folder
from scfm.train.adapters import LoRA, adapter_tensors, load_adapter_tensors
from scfm.train.supervised.published_heads import load_published
from scfm.train.supervised.runner import Fit
from scfm.train.supervised.setup import Setup
from scfm.train.supervised.targets import Classes, target_of
from scfm.weights.card import CARD_FILE
from scfm.weights.tensors import check_sha256, open_tensors, save_tensors, sha256

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["MODEL_FILE", "arguments_of", "load", "save"]

MODEL_FILE, HEAD_FILE, TRAINED_FILE, SPLIT_FILE = (
    "model.json",
    "head.safetensors",
    "trained.safetensors",
    "split.safetensors",
)
FORMAT = 1


def save(model: Any, folder: Path, *, overwrite: bool, whole: bool) -> None:
    """Write a trained model; the folder appears when it is complete."""
    if folder.exists() and not (overwrite and (folder / MODEL_FILE).is_file()):
        hint = "overwrite=True replaces it" if (folder / MODEL_FILE).is_file() else "it holds something else"
        msg = f"{folder} exists: {hint}, or choose another folder."
        raise FileExistsError(msg)
    if not whole and hasattr(model, "backbone") and model.backbone.base.card.weights_sha256 is None:
        msg = "The base is not in a file by which it could be known again: save all weights (whole=True), or the base first."
        raise ValueError(msg)
    with atomic(folder, overwrite=overwrite) as work:
        if whole and hasattr(model, "backbone"):
            labels = {
                name: list(target.labels) for name, target in model.targets.items() if isinstance(target, Classes)
            }
            tuned = model.foundation_model
            card = tuned.card.with_(id=folder.name, head=type(model).__name__, labels=labels)
            write_folder(work, card, tuned.vocabulary, tuned.tensors)
        else:
            work.mkdir()
            if hasattr(model, "backbone"):
                save_tensors(_trained(model), work / TRAINED_FILE)
        head: Any = model.module.head
        save_tensors({name: one.detach().cpu() for name, one in head.state_dict().items()}, work / HEAD_FILE)
        save_tensors(_split(model), work / SPLIT_FILE)
        files = [name for name in (HEAD_FILE, TRAINED_FILE, SPLIT_FILE) if (work / name).exists()]
        described = {
            "format": FORMAT,
            "class": type(model).__name__,
            "setup": asdict(model.setup),
            **model.as_dict(),
            "targets": {name: target.as_dict() for name, target in model.targets.items()},
            "task_weights": model.task_weights,
            "temperatures": model.temperatures_,
            "fit": None if model.fit_ is None else asdict(model.fit_),
            "history": _history(model),
            "report": None if model.report_ is None else model.report_.to_dict(orient="index"),
            "cells": model.cells_,
            "genes": _genes(model),
            "sha256": {name: sha256(work / name) for name in files},
            "versions": {name: version_of(name) for name in ("scfm", "scvi-tools", "torch", "lightning")},
        }
        (work / MODEL_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _trained(model: Any) -> dict[str, torch.Tensor]:
    network: Any = model.module.network
    if model.backbone.lora is not None:
        return adapter_tensors(network)
    return {name: one.detach().cpu() for name, one in network.named_parameters() if one.requires_grad}


def _split(model: Any) -> dict[str, torch.Tensor]:
    parts = {"train": model.train_indices, "validation": model.validation_indices, "test": model.test_indices}
    empty = np.empty(0, np.int64)
    return {name: torch.from_numpy(np.asarray(empty if one is None else one)) for name, one in parts.items()}


def _history(model: Any) -> dict[str, list[list[float]]]:
    history = model.history if isinstance(model.history, dict) else {}
    return {
        name: [[int(epoch), float(value)] for epoch, value in table[name].items()] for name, table in history.items()
    }


def _genes(model: Any) -> dict[str, list[Any]] | None:
    """Token, class and part of each gene that was learned, of a model of genes."""
    table: pd.DataFrame | None = getattr(model, "genes", None)
    return None if table is None else {"gene": table.index.tolist(), **{str(key): table[key].tolist() for key in table}}


def _put_genes(model: Any, stored: Mapping[str, list[Any]]) -> None:
    """The table of :func:`_genes`; of a model with data, the parts of its own genes."""
    table = pd.DataFrame(stored).set_index("gene").rename_axis(None).astype({"token": np.int32})
    own: pd.DataFrame | None = getattr(model, "genes", None)
    model.genes = table if own is None else own.assign(part=own["token"].map(table.set_index("token")["part"]))


def load(cls: Any, folder: Path, adata: Any, *, base: Any, head: torch.nn.Module | None) -> Any:
    """Make a model of what :func:`save` wrote, or of the head of a published fine-tuned model."""
    if not folder.is_dir():
        msg = f"There is no folder {folder}."
        raise FileNotFoundError(msg)
    if not (folder / MODEL_FILE).is_file():
        return load_published(cls, folder, adata)
    stored = read_json(folder / MODEL_FILE)
    if stored.get("format") != FORMAT or "class" not in stored:
        msg = f"{folder / MODEL_FILE} is not of format {FORMAT}; it was written by another version of scfm, or by something else."
        raise ValueError(msg)
    if stored["class"] != cls.__name__:
        msg = f"{folder} holds a {stored['class']}, not a {cls.__name__}: scfm.train.{stored['class']}.load reads it."
        raise ValueError(msg)
    for name, known in stored["sha256"].items():
        check_sha256(known, folder / name)
    whole = (folder / CARD_FILE).exists()
    arguments = arguments_of(stored, load_model(folder) if whole else base, check=not whole)
    if whole and "lora" in arguments:
        arguments["lora"] = None  # the weights hold the adapters already
    if arguments.get("head") == "module":
        if head is None:
            msg = f"{folder} was trained with a head of your own: give the same module as head=."
            raise ValueError(msg)
        arguments["head"] = head
    setup = Setup(**{**stored["setup"], "columns": tuple(stored["setup"]["columns"])})
    model = cls.restored(adata, setup, arguments)
    _fill(model, folder, stored)
    return model


def arguments_of(stored: Mapping[str, Any], base: Any = None, *, check: bool = True) -> dict[str, Any]:
    """Arguments of a model as they are stored, with its base."""
    arguments = dict(stored["arguments"])
    if "base" in stored:
        lora = arguments.pop("lora")
        arguments["lora"] = None if lora is None else LoRA(**{**lora, "targets": tuple(lora["targets"])})
        arguments |= arguments.pop("options")
        arguments["model"] = _base(stored["base"], base) if check else base
    return arguments


def _base(known: Mapping[str, Any], given: Any) -> Any:
    """The model below, if its weights are those that were trained on."""
    model = load_model(
        known["model"] if given is None else given, revision=known["revision"] if given is None else None
    )
    found = model.card.weights_sha256
    if known["weights_sha256"] not in (None, found):
        msg = (
            f"The weights of {model.card.id} have the sha256 {found}; the model was trained on those of {known['model']} with "
            f"{known['weights_sha256']}. Name the right ones by base=."
        )
        raise ValueError(msg)
    return model


def _fill(model: Any, folder: Path, stored: Mapping[str, Any]) -> None:
    """Put the stored weights and figures into a model."""
    model.targets = {name: target_of(one) for name, one in stored["targets"].items()}
    model.task_weights = {name: float(one) for name, one in stored["task_weights"].items()}
    model.temperatures_ = {name: float(one) for name, one in stored["temperatures"].items()}
    tensors = dict(open_tensors(folder / HEAD_FILE))
    model.module = model.new_module(tensors)
    head: Any = model.module.head
    _load_into(head, tensors, folder / HEAD_FILE)
    if (folder / TRAINED_FILE).exists():
        network: Any = model.module.network
        trained = dict(open_tensors(folder / TRAINED_FILE))
        if model.backbone.lora is not None:
            load_adapter_tensors(network, trained)
        else:
            _load_into(network, trained, folder / TRAINED_FILE, partial=True)
    model.module.eval()
    model.cells_ = stored["cells"]
    if stored["genes"] is not None:
        _put_genes(model, stored["genes"])
    split = open_tensors(folder / SPLIT_FILE)
    parts = (split[name].numpy() for name in ("train", "validation", "test"))
    model.train_indices, model.validation_indices, model.test_indices = parts
    fit = stored["fit"]
    lists = ("n_cells", "validated")  # tuples, which JSON holds as lists
    model.fit_ = None if fit is None else Fit(**{**fit, **{name: fit[name] and tuple(fit[name]) for name in lists}})
    model.history_ = _tables(stored["history"])
    report = stored["report"]
    model.report_ = None if report is None else pd.DataFrame.from_dict(report, orient="index")
    model.is_trained_ = True


def _load_into(module: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path, *, partial: bool = False) -> None:
    own = dict(module.named_parameters()) | dict(module.named_buffers()) if partial else module.state_dict()
    wrong = [name for name, one in tensors.items() if name not in own or own[name].shape != one.shape]
    wrong += [] if partial else [name for name in own if name not in tensors]
    if wrong:
        msg = f"{path} does not fit the model: {some(wrong)}."
        raise ValueError(msg)
    module.load_state_dict(tensors, strict=False)


def _tables(history: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    found = {}
    for name, points in history.items():
        index = pd.Index([int(epoch) for epoch, _ in points], name="epoch")
        found[name] = pd.DataFrame({name: [value for _, value in points]}, index=index)
    return found

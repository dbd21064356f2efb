"""The trained model as a folder that every verb takes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scfm._package import version_of
from scfm._paths import atomic
from scfm.model.saved import write_folder
from scfm.train.config import plain
from scfm.weights.tensors import sha256

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scfm.model import FoundationModel
    from scfm.train.cells import Corpus
    from scfm.train.config import Pretraining

__all__ = ["write_result"]

ELSEWHERE = ("files", "out", "name", "description", "license", "terms")
"""Fields of a run that the card has in other places."""


def write_result(
    out: Path,
    model: FoundationModel,
    tensors: Mapping[str, Tensor],
    run: Pretraining,
    corpus: Corpus,
    curves: Mapping[str, Any],
) -> Path:
    """Write weights, vocabulary and card; the folder appears when it is complete."""
    data = [
        {
            "name": name,
            "file": Path(path).name,
            "cells": size,
            "genes": int(panel.sum()),
            "sha256": sha256(Path(path)) if Path(path).is_file() else "",
            "terms": run.terms.get(name, ""),
            "use": "validation" if name in run.validation.files else "training",
        }
        for name, path, size, panel in zip(corpus.names, corpus.files.paths, corpus.sizes, corpus.panels, strict=True)
    ]
    sizes = {name: value for name, value in asdict(model.config).items() if name != "dropout"}
    dtype = getattr(torch, run.weights_dtype)
    kept = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    card = model.card.with_(
        architecture=sizes,
        n_parameters=sum(tensor.numel() for tensor in kept.values()),
        license=run.license or model.card.license,
        description=run.description or f"{sum(corpus.sizes):,} cells of {len(data)} files",
        training={
            "data": data,
            "run": {name: value for name, value in plain(run).items() if name not in ELSEWHERE},
            "curves": dict(curves),
            "versions": {name: version_of(name) for name in ("scfm", "torch", "lightning", "numpy")},
        },
    )
    with atomic(out) as folder:
        write_folder(folder, card, model.vocabulary, kept)
    return out

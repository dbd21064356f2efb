"""Arguments of wrong types and odd values: each public function takes them or says what is wrong, in its own words.

The functions are found by themselves. One that is new fails :func:`test_every_function_is_called` until a small valid call of
it stands in :data:`CALLS`.
"""

from __future__ import annotations

import builtins
import inspect
import re
import traceback
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

import scfm
from scfm._checks import CLASSES, COLLECTIONS, SIMPLE, kinds_of
from scfm.testing import write_transcriptformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODULES = ("pp", "tl", "get", "pl", "metrics", "datasets", "datasets.cellxgene", "ontology", "model", "train")
FUNCTIONS = {
    f"{module}.{name}": function
    for module in MODULES
    for name in import_module(f"scfm.{module}").__all__
    if inspect.isfunction(function := getattr(import_module(f"scfm.{module}"), name))
} | {"model.FoundationModel.embed": scfm.model.FoundationModel.embed}
VALUES: dict[str, Any] = {
    "None": None,
    "5": 5,
    "-1": -1,
    "2.5": 2.5,
    "True": True,
    "no text": "",
    "text": "x",
    "no list": [],
    "list": ["a"],
    "mapping": {},
    "object": object(),
    "NaN": np.nan,
}
INSIDE = str(Path(scfm.__file__).parent)


class World:
    """Small things that calls take; those that a call may change are made anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mini = scfm.model.load("scfm-mini")
        self.published = write_transcriptformer(folder / "tf", n_genes=12)
        self.tf = scfm.model.load(self.published)
        adata = scfm.datasets.pbmc68k()[:24, :90].copy()
        adata.obs["half"] = pd.Categorical(["a", "b"] * 12)
        adata.obs["batch"] = pd.Categorical(["x"] * 12 + ["y"] * 12)
        rng = np.random.default_rng(0)
        adata.obsm["X_own"] = rng.normal(size=(24, 4)).astype(np.float32)
        adata.obsm["ic50"] = pd.DataFrame(rng.normal(size=(24, 2)), adata.obs_names, ["drug A", "drug B"])
        scfm.tl.marker_genes(adata, self.mini, groupby="half", genes=list(adata.var_names[:20]))
        scfm.tl.attention(adata, self.mini, groupby="half", genes=list(adata.var_names[:20]))
        scfm.tl.gene_context(adata, self.mini)
        scfm.tl.embed(adata, self.mini, pooling="gene")
        scfm.tl.perturb(adata, self.mini, genes=list(adata.var_names[:3]), embeddings=True)
        scfm.tl.perturb_stats(adata)
        self._adata = adata
        adata.write_h5ad(folder / "cells.h5ad")
        scfm.train.CellClassifier.setup_anndata(adata := adata.copy(), "half")
        self.classifier = scfm.train.CellClassifier(adata, self.mini, freeze=True)
        self.classifier.train(1, train_size=0.5, validation_size=0.5)
        self.classifier.save(folder / "classifier")
        self.path = folder / "cells.h5ad"
        (folder / "markers.tsv").write_text("cellType\tgeneMarker\nB cell\tMS4A1,CD79A\n")

    @property
    def adata(self) -> Any:
        return self._adata.copy()

    @property
    def tf_adata(self) -> Any:
        return scfm.datasets.synthetic(5, 12, genes_per_cell=4, genes=self.tf.vocabulary.genes)

    @property
    def new(self) -> Path:
        """A path that is not there."""
        return self.folder / f"new{len(list(self.folder.iterdir()))}"


def _models(world: World, **more: Any) -> dict[str, Any]:
    return {"data": world.adata, "model": world.mini, **more}


CALLS: dict[str, Callable[[World], dict[str, Any]]] = {
    "pp.match_genes": _models,
    "pp.to_orthologs": lambda world: {"adata": world.adata, "table": world.folder / "no.tsv"},
    "pp.protein_vectors": lambda world: {"fasta": world.folder / "no.fa", "out": world.new},
    "tl.annotate": lambda world: {
        "data": world.adata[12:].copy(),
        "reference": world.adata[:12].copy(),
        "labels_key": "half",
        "use_rep": "X_own",
        "n_neighbors": 3,
    },
    "tl.drug_response": lambda world: {
        "data": world.adata,
        "use_rep": "X_own",
        "groupby": None,
        "split": "line",
        "test_share": 0.4,
    },
    "tl.embed": _models,
    "tl.embed_store": lambda world: {"source": world.path, "model": world.mini, "out": world.new},
    "tl.embed_tokenized": lambda world: {"data": world.folder / "no.parquet", "model": world.mini, "out": world.new},
    "tl.evaluate": lambda world: {"files": world.path, "models": world.mini, "labels_key": "half"},
    "tl.gene_embeddings": lambda world: _models(world, genes=world.adata.var_names[:3].tolist()),
    "tl.marker_genes": lambda world: _models(world, groupby="half", genes=world.adata.var_names[:3].tolist()),
    "tl.gene_context": lambda world: _models(world, groupby="half"),
    "tl.attention": lambda world: _models(world, groupby="half", genes=world.adata.var_names[:3].tolist()),
    "tl.prompt_genes": lambda world: {"model": world.tf, "prompts": world.tf.vocabulary.genes[:2].tolist()},
    "tl.predict_genes": lambda world: _models(world, genes=world.adata.var_names[:3].tolist()),
    "tl.perturb": lambda world: _models(world, genes=world.adata.var_names[:2].tolist(), n_cells=2),
    "tl.perturb_store": lambda world: {
        "source": world.path,
        "model": world.mini,
        "out": world.new,
        "genes": world.adata.var_names[:2].tolist(),
        "n_cells": 2,
    },
    "tl.predict": lambda world: {"data": world.adata, "model": world.folder / "classifier"},
    "tl.merge_store": lambda world: {"store": world.folder / "no.zarr", "target": world.path},
    "tl.perturb_stats": lambda world: {"adata": world.adata},
    "tl.tokenize": lambda world: {"data": world.path, "model": world.mini, "out": world.new},
    "tl.score": lambda world: {"data": world.tf_adata, "model": world.tf, "clip_counts": 9},
    "get.gene_adata": lambda world: {"adata": world.adata, "key": "X_scfm_mini"},
    "get.attention_df": lambda world: {"adata": world.adata},
    "get.marker_genes_df": lambda world: {"adata": world.adata},
    "get.perturb_df": lambda world: {"adata": world.adata},
    "get.perturbed": lambda world: {"adata": world.adata},
    "pl.gene_context": lambda world: {"adata": world.adata, "least": 1, "show": False},
    "pl.attention": lambda world: {"adata": world.adata, "show": False},
    "pl.perturb": lambda world: {"adata": world.adata, "kind": "bar", "show": False},
    "pl.perturb_cells": lambda world: {"adata": world.adata, "perturbation": "x", "show": False},
    "pl.confusion": lambda world: {"report": scfm.metrics.classification_report(**PREDICTED), "show": False},
    "pl.roc": lambda world: {"curves": scfm.metrics.roc_curves(**CURVES), "show": False},
    "pl.training": lambda world: {"history": {"loss": [[0, 2.0], [1, 1.0]]}, "show": False},
    "pl.marker_genes": lambda world: {"adata": world.adata, "n_genes": 2, "show": False},
    "metrics.calibrated": lambda world: {"logits": PROBABILITIES, "temperature": 2.0},
    "metrics.calibration_error": lambda world: {"probabilities": PROBABILITIES, "codes": [0, 1, 0]},
    "metrics.classification_report": lambda world: PREDICTED,
    "metrics.fit_temperature": lambda world: {"logits": PROBABILITIES, "codes": [0, 1, 0]},
    "metrics.pr_curves": lambda world: CURVES,
    "metrics.roc_curves": lambda world: CURVES,
    "metrics.graph_connectivity": lambda world: POINTS,
    "metrics.knn_accuracy": lambda world: POINTS,
    "metrics.marker_auroc": lambda world: {
        "scores": np.eye(3),
        "markers": {"a": ["g0"]},
        "labels": ["a", "b", "a"],
        "genes": ["g0", "g1", "g2"],
    },
    "metrics.nmi_ari": lambda world: POINTS | {"clustering": "kmeans"},
    "metrics.read_markers": lambda world: {"path": world.folder / "markers.tsv"},
    "metrics.score_embedding": lambda world: {
        "adata": world.adata,
        "use_rep": "X_own",
        "labels_key": "half",
        "clustering": "kmeans",
    },
    "metrics.silhouette_batch": lambda world: {"embedding": POINTS["embedding"], "batches": POINTS["labels"]},
    "metrics.silhouette_label": lambda world: POINTS,
    "datasets.drug_response": lambda world: dict.fromkeys(
        ("expression", "ic50", "annotations"), world.folder / "no.csv"
    ),
    "datasets.pbmc68k": lambda world: {},
    "datasets.synthetic": lambda world: {"n_cells": 5, "n_genes": 9, "genes_per_cell": 3},
    "datasets.cellxgene.census": lambda world: {},
    "datasets.cellxgene.fetch": lambda world: {
        "datasets": "00000000-0000-0000-0000-000000000000",
        "folder": world.new,
    },
    "datasets.tokenized": lambda world: {"name": "sccello-celltype-1"},
    "datasets.cellxgene.list_datasets": lambda world: {},
    "ontology.bundled": lambda world: {},
    "ontology.novel_type_scores": lambda world: {
        "values": np.eye(3),
        "prototypes": np.eye(3),
        "ppr": np.eye(3),
    },
    "ontology.prototypes": lambda world: {"values": np.eye(3), "labels": ["a", "b", "a"], "categories": ["a", "b"]},
    "ontology.read_ontology": lambda world: {"path": world.folder / "no.obo"},
    "model.convert": lambda world: {"source": world.published, "out": world.new},
    "model.fetch_gene_vectors": lambda world: {},
    "model.fetch": lambda world: {"model": "scfm-mini"},
    "model.list_cached": lambda world: {},
    "model.list_models": lambda world: {},
    "model.load": lambda world: {"model": "scfm-mini"},
    "model.load_recipe": lambda world: {"model": "scfm-mini"},
    "model.prune_cache": lambda world: {},
    "model.register": lambda world: {},
    "model.verify_cached": lambda world: {},
    "train.fine_tune": lambda world: {
        "data": world.adata,
        "model": world.mini,
        "labels_key": "half",
        "out": world.new,
        "freeze": True,
        "max_epochs": 1,
        "train_size": 0.5,
        "validation_size": 0.25,
    },
    "train.load": lambda world: {"dir_path": world.folder / "classifier"},
    "train.repeat": lambda world: {"config": world.folder / "no.json", "data": world.adata},
    "train.search": lambda world: {
        "model": world.classifier,
        "out": world.new,
        "n_trials": 1,
        "space": {"lr": [1e-4, 1e-3]},
        "max_epochs": 1,
        "train_size": 0.5,
    },
    "train.linear_projection": lambda world: {
        "files": world.path,
        "vocabulary": world.mini.vocabulary,
        "n_features": 3,
        "n_iter": 1,
    },
    "train.pretrain": lambda world: {
        "files": world.path,
        "out": world.new,
        "base": "scfm-mini",
        "config": {"genes": {"source": "scfm-mini"}},
        "steps": 1,
        "dry_run": True,
    },
    "model.FoundationModel.embed": lambda world: {"self": world.mini, "data": world.adata},
}
PROBABILITIES = [[0.9, 0.1], [0.5, 0.5], [0.4, 0.6]]
CURVES: dict[str, Any] = {
    "labels": ["a", "b", "a"],
    "probabilities": PROBABILITIES,
    "classes": ["a", "b"],
    "folds": [0, 0, 0],
}
PREDICTED = CURVES | {"predicted": ["a", "b", "b"]}
POINTS: dict[str, Any] = {
    "embedding": np.random.default_rng(0).normal(size=(40, 3)),
    "labels": ["a", "b"] * 20,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is written under an odd name goes to a folder of the test, and no network is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scfm.settings, "cache_dir", tmp_path / "cache")
    monkeypatch.setattr(scfm.settings, "offline", True)


def test_every_function_is_called() -> None:
    missing = sorted(set(FUNCTIONS) - set(CALLS))
    assert not missing, (
        f"add a small valid call of {', '.join(missing)} to CALLS, as a function that returns its arguments"
    )
    assert set(CALLS) == set(FUNCTIONS)


def arguments_of(function: Callable[..., Any], call: dict[str, Any]) -> Iterator[str]:
    """Names of what can be given: parameters, and options of the family of a model that is in the call."""
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self":
            continue
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            yield from (
                one.name
                for one in fields(getattr(call.get("model"), "options_class", scfm.model.Embedding))
                if "model" in call
            )
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            yield name


def raised(function: Callable[..., Any]) -> set[str]:
    """Exceptions that the docstring names."""
    section = re.search(r"Raises\n-+\n(.*?)(?:\n\n\w[\w ]*\n-+\n|\Z)", inspect.getdoc(function) or "", re.S)
    lines = section[1].splitlines() if section else []
    return {name for line in lines if re.match(r"\w", line) for name in line.split(", ")}


def answer(function: Callable[..., Any], call: dict[str, Any]) -> tuple[Exception, traceback.FrameSummary] | None:
    """What a call raises, and where."""
    try:
        function(**call)
    except Exception as error:  # noqa: BLE001
        return error, traceback.extract_tb(error.__traceback__)[-1]
    return None


def names(text: str, argument: str, value: object) -> bool:
    """Whether a message is about an argument: by its name, by what was given, or, where nothing was, by saying so."""
    given = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    words = [argument, *filter(None, given)]
    return any(re.search(rf"\b{word}\b", text) for word in words) or (
        value in ("", []) and ("''" in text or "empty" in text)
    )


def fault(function: Callable[..., Any], argument: str, value: object, error: Exception, where: str) -> str | None:
    """What is wrong with an error; ``None`` if nothing is."""
    kind, text = type(error), str(error)
    if isinstance(error, ConnectionError):
        return None  # the network would be asked
    if not hasattr(builtins, kind.__name__) or not {one.__name__ for one in kind.__mro__} & raised(function):
        return f"{kind.__name__} is not named in the docstring: {text}"
    if not where.startswith(INSIDE):
        return f"{kind.__name__} comes from {where}: {text}"
    return None if names(text, argument, value) else f"{kind.__name__} does not name the argument: {text}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_odd_values(name: str, world: World) -> None:
    function, call = FUNCTIONS[name], CALLS[name]
    usual = answer(function, call(world))
    faults = []
    for argument in arguments_of(function, call(world)):
        for label, value in VALUES.items():
            found = answer(function, {**call(world), argument: value})
            if found is not None and (usual is None or found[1] != usual[1]):
                error, where = found
                text = fault(function, argument, value, error, f"{where.filename}:{where.lineno}")
                faults += [f"{argument}={label}: {text}"] if text else []
    assert not faults, "\n".join(faults)


OPEN = {"Any", "ArrayLike", "NDArray", "csr_matrix", "csr_array", "tuple", "ModelCard"}
"""Annotations that say too little to be checked at the door; what comes after it checks the values."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_annotation_is_checked(name: str) -> None:
    """Or a class that is imported for type checkers alone would be accepted as everything."""
    function = inspect.unwrap(FUNCTIONS[name])
    assert function is not FUNCTIONS[name], f"{name} is not checked: decorate it with scfm._checks.typed"
    checked = {*SIMPLE, *CLASSES, *COLLECTIONS, "Literal"}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and parameter.name != "self":
            kinds = [kind for kind, _ in kinds_of(str(parameter.annotation), function.__globals__)]
            assert set(kinds) <= checked | OPEN, parameter

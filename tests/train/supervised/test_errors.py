"""What is wrong with data or arguments is said before the long work, with what was found and what to call."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scfm
from scfm.testing import write_geneformer
from scfm.train import (
    CellClassifier,
    CellRegressor,
    EmbeddingClassifier,
    GeneClassifier,
    LoRA,
    MultiTaskClassifier,
    fine_tune,
)
from scfm.train.supervised.setup import Setup, registry_of

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from scfm.model import FoundationModel

FAST: dict[str, Any] = {"max_epochs": 1, "lr": 5e-3, "accelerator": "cpu"}
NAN = float("nan")


def classifier(cells: AnnData, tiny: FoundationModel, *, donors: str | None = None, **arguments: Any) -> Any:
    CellClassifier.setup_anndata(cells, "kind", donors_key=donors)
    return CellClassifier(cells, tiny, **arguments)


def test_columns_that_are_not_there(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"'kinds' is not in obs; found \['age', 'donor', 'kind', 'stage'\]"):
        CellClassifier.setup_anndata(cells, "kinds")
    with pytest.raises(KeyError, match="'person' is not in obs"):
        CellRegressor.setup_anndata(cells, "age", donors_key="person")
    with pytest.raises(KeyError, match="'X_none' is not in obsm"):
        EmbeddingClassifier.setup_anndata(cells, "kind", "X_none")
    with pytest.raises(KeyError, match="'part' is not a column of obs; found"):
        classifier(cells, tiny).train(split="part", **FAST)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    CellClassifier.setup_anndata(tmp_path / "cells.h5ad", "kinds")
    with pytest.raises(KeyError, match="'kinds' is not a column of obs; found"):
        CellClassifier(tmp_path / "cells.h5ad", tiny)
    with pytest.raises(ValueError, match=r"must be different columns, one at least; found kind"):
        MultiTaskClassifier.setup_anndata(cells, ["kind", "kind"])


def test_columns_that_cannot_be_learned(cells: AnnData, tiny: FoundationModel) -> None:
    cells.obs["one"], cells.obs["share"] = "same", 0.5
    cells.obs["endless"] = np.where(np.arange(cells.n_obs) < 3, np.inf, 1.0)
    cells.obs["none"] = NAN
    for name, match in {
        "one": "has the label 'same' only",
        "share": "holds float64 values",
        "none": "no label",
    }.items():
        CellClassifier.setup_anndata(cells, name)
        with pytest.raises(ValueError, match=match):
            CellClassifier(cells, tiny)
    for name, match in {"endless": "holds infinite values in 3 cells", "kind": "holds category values"}.items():
        CellRegressor.setup_anndata(cells, name)
        with pytest.raises(ValueError, match=match):
            CellRegressor(cells, tiny)
    CellRegressor.setup_anndata(cells, "none")
    with pytest.raises(ValueError, match=r"obs\['none'\].*(no number|holds)"):
        CellRegressor(cells, tiny)


def test_setup_comes_first(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="[Pp]lease set up your AnnData"):
        CellClassifier(cells, tiny)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match=r"Please set up .*cells.h5ad first: CellClassifier.setup_anndata"):
        CellClassifier(tmp_path / "cells.h5ad", tiny)
    CellRegressor.setup_anndata(cells, "age")
    with pytest.raises(ValueError, match="[Ss]et ?up"):
        CellClassifier(cells, tiny)


def test_modalities(cells: AnnData, tiny: FoundationModel) -> None:
    other = ad.AnnData(np.ones((cells.n_obs, 2), np.float32), obs=cells.obs.copy())
    with mudata.set_options(pull_on_update=False):
        both = mudata.MuData({"rna": cells, "protein": other})
    with pytest.raises(ValueError, match="A MuData needs modality=, one of 'rna', 'protein'; got None"):
        CellClassifier.setup_anndata(both, "kind")
    with pytest.raises(ValueError, match="needs modality=, one of 'rna', 'protein'; got 'atac'"):
        CellClassifier.setup_anndata(both, "kind", modality="atac")
    with pytest.raises(ValueError, match="Of this MuData, 0 modalities are set up for CellClassifier; set up one"):
        CellClassifier(both, tiny)
    CellClassifier.setup_anndata(both, "kind", modality="rna")
    CellClassifier.setup_anndata(both, "kind", modality="protein")
    with pytest.raises(ValueError, match="2 modalities are set up for CellClassifier"):
        CellClassifier(both, tiny)


ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "head": ({"head": "mlp"}, ValueError, "head='mlp' is not known; use 'linear', 'bert', 'attention' or Module"),
    "head of genes": ({"head": "genes"}, ValueError, "head='genes' is not known"),
    "dropout": ({"dropout": 1.0}, ValueError, "dropout=1.0 must be at least 0 and below 1"),
    "negative dropout": ({"dropout": -0.1}, ValueError, "dropout=-0.1 must be at least 0"),
    "pooling": ({"pooling": "max"}, ValueError, "pooling='max' is not known"),
    "pooling of genes": ({"pooling": "gene"}, ValueError, "pooling='gene' gives no vector of a cell"),
    "weights": ({"class_weights": "balance"}, ValueError, "class_weights='balance' is not known; use 'balanced'"),
    "rank": ({"lora": 0}, ValueError, "lora must be at least 1, got 0"),
    "both": ({"lora": 2, "freeze": 0}, ValueError, "lora= trains adapters and freezes everything else; leave freeze=0 out"),
    "option": ({"widht": 3}, TypeError, "widht"),
    "tokens": ({"max_tokens": 0}, ValueError, "max_tokens"),
    "layers": ({"freeze": 3}, ValueError, "3 layers cannot be frozen: the network has 2"),
    "negative layers": ({"freeze": -1}, ValueError, "-1 layers cannot be frozen"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_arguments_of_a_model(
    kind: str, cells: AnnData, tiny: FoundationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, error, match = ARGUMENTS[kind]
    not_reached(monkeypatch)
    with pytest.raises(error, match=match):
        classifier(cells, tiny, **arguments).train(**FAST)
    with pytest.raises(ValueError, match="targets|adapters"):
        LoRA(targets=("keys",))


TRAINING: dict[str, tuple[dict[str, Any], str]] = {
    "epochs": ({"max_epochs": 0}, "max_epochs must be at least 1, got 0"),
    "batch": ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    "tokens": ({"batch_tokens": 0}, "batch_tokens must be at least 1, got 0"),
    "rate": ({"lr": 0.0}, "lr must be between 0 and 1, got 0"),
    "rate of the head": ({"head_lr": 2.0}, "head_lr must be between 0 and 1"),
    "decay": ({"weight_decay": -1.0}, "weight_decay must be between 0 and 1"),
    "warmup": ({"warmup": -1.0}, "warmup must not be negative"),
    "clip": ({"clip": -1.0}, "clip must not be negative"),
    "schedule": ({"schedule": "step"}, "schedule='step' is not known; use 'linear', 'cosine' or 'constant'"),
    "monitor": ({"monitor": "validation_f1"}, "monitor='validation_f1' is not known; there are 'validation_loss', 'validation_accuracy'"),
    "seed": ({"seed": -1}, "seed must be at least 0, got -1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TRAINING)
def test_arguments_of_training(
    kind: str, cells: AnnData, tiny: FoundationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, match = TRAINING[kind]
    not_reached(monkeypatch)
    with pytest.raises(ValueError, match=match):
        classifier(cells, tiny).train(**{**FAST, **arguments})


def not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if cells are encoded."""

    def encode(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr("scfm.train.supervised._cell_model.encoded_cells", encode)


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({"train_size": 0.9, "validation_size": 0.2}, "must be shares that add up to 1 at most"),
        ({"train_size": 0.0}, "must be shares"),
        ({"train_size": 0.999}, "There are no cells to validate with"),
        ({"train_size": 1.0, "monitor": "validation_accuracy"}, "There are no cells to validate with"),
    ],
)
def test_empty_parts(sizes: dict[str, Any], match: str, cells: AnnData, tiny: FoundationModel) -> None:
    with pytest.raises(ValueError, match=match):
        classifier(cells, tiny).train(**{**FAST, **sizes})


def test_splits_that_are_given(cells: AnnData, tiny: FoundationModel) -> None:
    parts = np.array(["train", "validation", "test"])[np.arange(cells.n_obs) // 2 % 3]
    cells.obs["part"] = parts
    with pytest.raises(
        ValueError,
        match="has cells of the donor 'donor 0'.* in several parts, and donors_key='donor' keeps donors whole",
    ):
        classifier(cells, tiny, donors="donor").train(split="part", **FAST)
    cells.obs["part"] = np.where(parts == "validation", "valid", parts)
    with pytest.raises(ValueError, match="also holds 'valid'; expected 'train', 'validation', 'test', or missing"):
        classifier(cells, tiny).train(split="part", **FAST)
    cells.obs["part"] = np.where(np.arange(cells.n_obs) < 60, "train", "test")
    with pytest.raises(ValueError, match="There are no cells to validate with"):
        classifier(cells, tiny).train(split="part", **FAST)
    model = classifier(cells, tiny)
    model.train(split="part", validation_size=0.0, **FAST)
    np.testing.assert_array_equal(model.test_indices, np.flatnonzero(cells.obs["part"] == "test"))


def test_donors(cells: AnnData, tiny: FoundationModel) -> None:
    cells.obs["two"] = np.where(np.arange(cells.n_obs) % 2, "a", "b")
    with pytest.raises(ValueError, match="donors_key has 2 donors, which are kept whole; 3 parts need as many"):
        classifier(cells, tiny, donors="two").train(train_size=0.5, validation_size=0.2, **FAST)
    cells.obs.loc[cells.obs_names[:4], "two"] = None
    with pytest.raises(ValueError, match=r"obs\['two'\] is missing for 4 cells, whose donor is then not known"):
        classifier(cells, tiny, donors="two").train(train_size=0.5, **FAST)


def test_other_data(cells: AnnData, tiny: FoundationModel) -> None:
    model = classifier(cells, tiny, freeze=True)
    for verb in (model.predict, model.evaluate):
        with pytest.raises(RuntimeError, match=r"was not trained; call train\(\) before"):
            verb()
    cells.obs["kind"] = cells.obs["kind"].astype(str).replace("T cell", "Tcell").to_numpy()
    with pytest.raises(
        ValueError, match="has the label 'Tcell', which the model has not seen; it knows 'B cell', 'NK cell', 'T cell'"
    ):
        model.train(**FAST)
    with pytest.raises(RuntimeError, match=r"was not trained"):  # nothing is left of the failed call
        model.predict()
    model = classifier(cells, tiny, freeze=True)
    model.train(train_size=0.8, **FAST)
    assert model.predict().notna().all().all()
    with pytest.raises(ValueError, match="must be shares"):
        model.train(train_size=2.0, **FAST)
    with pytest.raises(RuntimeError, match="was not trained"):  # its new head would predict at random
        model.predict()
    model.train(train_size=0.8, **FAST)
    with pytest.raises(ValueError, match="There is no test part"):
        model.evaluate()
    other = cells[:5].copy()
    other.var_names = [f"unheard {i}" for i in range(other.n_vars)]
    with pytest.raises(ValueError, match="gene"):
        model.predict(other)


def test_families_without_layers_to_train(cells: AnnData, tiny: FoundationModel) -> None:
    model: Any = scfm.model.load(tiny)
    CellClassifier.setup_anndata(cells, "kind")
    hidden = type("Hidden", (type(model),), {"implements": lambda self, name: False})
    fixed = hidden(model.card, model.vocabulary, model.tensors)
    classes: list[tuple[Any, dict[str, Any]]] = [(CellClassifier, {}), (GeneClassifier, {"gene_sets": {}})]
    for cls, more in classes:
        with pytest.raises(
            TypeError, match="has no layers that can be trained; these have: .*EmbeddingClassifier takes"
        ):
            cls(None, model=fixed, registry=registry_of(Setup(columns=("kind",)), cls.__name__), **more)


GENES: dict[str, tuple[Any, str]] = {
    "one class": (lambda g: {"a": g[:5]}, "gene_sets has 1 classes; a classifier needs two at least"),
    "none": (lambda g: {}, "gene_sets has 0 classes"),
    "in two": (lambda g: {"a": g[:5], "b": g[4:9]}, "is in two classes of gene_sets"),
    "too few": (lambda g: {"a": g[:5], "b": g[6:7]}, "needs two genes of the data that the model knows; 'b' has 1"),
}


@pytest.mark.parametrize("kind", GENES)
def test_gene_sets(kind: str, cells: AnnData, tiny: FoundationModel) -> None:
    make, match = GENES[kind]
    GeneClassifier.setup_anndata(cells)
    with pytest.raises(ValueError, match=match):
        GeneClassifier(cells, make(cells.var_names.tolist()), tiny)


def test_genes_that_are_not_known(cells: AnnData, tiny: FoundationModel) -> None:
    names = cells.var_names.tolist()
    GeneClassifier.setup_anndata(cells)
    with pytest.warns(
        UserWarning, match="1 genes of gene_sets are not in the data or not known to the model, such as NOSUCH"
    ):
        model: Any = GeneClassifier(cells, {"a": [*names[:5], "NOSUCH"], "b": names[5:10]}, tiny)
    for arguments, match in (
        ({"balanced": True}, "balanced= and a column of obs as split= are for cells"),
        ({"split": "kind"}, "balanced= and a column of obs as split= are for cells"),
    ):
        with pytest.raises(ValueError, match=match):
            model.train(**FAST, **arguments)


def test_a_run_that_differs(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    how = {**FAST, "train_size": 0.8, "checkpoint_dir": tmp_path}
    classifier(cells, tiny).train(**how)
    swapped = cells.copy()
    swapped.obs["kind"] = swapped.obs["kind"].cat.rename_categories({"B cell": "T cell", "T cell": "B cell"})
    with pytest.raises(ValueError, match="belongs to another run, which differs in cells. Call it as before to go on"):
        classifier(swapped, tiny).train(split=None, **how)
    counts = cells.copy()
    counts.X = sparse.vstack([cells.X[3:], cells.X[:3]]).tocsr()  # of other cells of the same class
    with pytest.raises(ValueError, match="differs in cells"):
        classifier(counts, tiny).train(**how)
    with pytest.raises(ValueError, match="differs in .*seed"):
        classifier(cells, tiny).train(**how, seed=1)
    with pytest.raises(ValueError, match="differs in freeze|differs in arguments"):
        classifier(cells, tiny, freeze=1).train(**how)


def test_folds_of_genes_do_not_go_on_from_one_another(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    sets = {"first": cells.var_names[:10].tolist(), "second": cells.var_names[10:20].tolist()}
    GeneClassifier.setup_anndata(cells)
    model: Any = GeneClassifier(cells, sets, tiny, freeze=True)
    plain = model.cross_validate(2, **FAST)
    assert "part" not in model.genes  # the model is as it was
    kept = model.cross_validate(2, checkpoint_dir=tmp_path, **FAST)
    pd.testing.assert_frame_equal(plain.predictions, kept.predictions, check_exact=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fold-0", "fold-1"]


def test_weights_that_are_not_finite(cells: AnnData, tiny: FoundationModel) -> None:
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) * float("nan")

    model = classifier(cells, tiny, head=Broken(), freeze=True)
    with pytest.raises(FloatingPointError, match="Training diverged: .* Lower lr="):
        model.train(train_size=0.8, **FAST)
    with pytest.raises(RuntimeError, match="was not trained"):
        model.predict()


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "MISSING":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import scfm
print([name for name in sys.modules if name in ("torch", "scvi", "lightning")])
for name in ("CellClassifier", "load"):
    try:
        getattr(scfm.train, name)
    except ImportError as error:
        print(error)
try:
    scfm.train.fine_tune("cells.h5ad", "scfm-mini", labels_key="kind", out="nowhere")
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("package", ["scvi", "lightning"])
def test_a_package_that_is_missing(package: str) -> None:
    code = WITHOUT.replace("MISSING", package)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *said = done.stdout.splitlines()
    assert first in ("[]", f"['{package}']")
    assert len(said) == 3
    for line in said:
        assert f"needs the package {package}: " in line
        assert 'pip install "scfm-tools[train]"' in line


def test_fine_tune_says_first_what_is_wrong(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError):
        fine_tune(cells, tiny, labels_key="kind", out=tmp_path / "there", max_epochs=1)
    with pytest.raises(ValueError, match="kind='numbers' learns one column of numbers"):
        fine_tune(cells, tiny, labels_key=["age", "kind"], kind="numbers", out=tmp_path / "new")
    with pytest.raises(KeyError, match="'kinds' is not in obs"):
        fine_tune(cells, tiny, labels_key="kinds", out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    whole: dict[str, Any] = {"freeze": True, "max_epochs": 1, "lr": 1e-3}
    out = fine_tune(cells, tiny, labels_key="kind", out=tmp_path / "new", train_size=0.8, validation_size=0.2, **whole)
    assert scfm.train.load(out).report_ is None  # there is no test part


def test_other_weights(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    embedded: Any = scfm.tl.embed(cells, tiny, copy=True)
    EmbeddingClassifier.setup_anndata(embedded, "kind", "X_geneformer")
    model: Any = EmbeddingClassifier(embedded)
    model.train(train_size=0.8, **FAST)
    wide = write_geneformer(tmp_path / "wide", n_genes=cells.n_vars, n_layers=2, max_tokens=48)
    other: Any = scfm.tl.embed(cells, wide, key_added="X_geneformer", copy=True)
    other.obsm["X_geneformer"] = np.hstack([other.obsm["X_geneformer"]] * 2)
    with pytest.raises(
        ValueError, match="has 32 features, and the model was trained on 16: embed both with the same model"
    ):
        model.predict(other)
    del other.obsm["X_geneformer"]
    with pytest.raises(KeyError, match="'X_geneformer' is not in obsm"):
        model.predict(other)

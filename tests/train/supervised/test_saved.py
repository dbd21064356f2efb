"""Folders of trained models: they hold all that the model is, appear at once, and are refused where they do not fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import LightningModule

import scfm
from scfm.testing import write_geneformer
from scfm.train import CellClassifier, CellRegressor, EmbeddingClassifier, GeneClassifier, LoRA, MultiTaskClassifier
from scfm.train.supervised.plan import BestWeights

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from scfm.model import FoundationModel

FAST: dict[str, Any] = {
    "max_epochs": 2,
    "lr": 5e-3,
    "batch_size": 16,
    "accelerator": "cpu",
    "train_size": 0.6,
    "validation_size": 0.2,
}
CLASSES = (CellClassifier, CellRegressor, EmbeddingClassifier, GeneClassifier, MultiTaskClassifier)


def trained(cls: Any, cells: AnnData, base: FoundationModel, how: dict[str, Any] | None = None, **more: Any) -> Any:
    """A model of a class after two epochs."""
    if cls is EmbeddingClassifier:
        scfm.tl.embed(cells, base)
        cls.setup_anndata(cells, "kind", "X_geneformer", donors_key="donor")
        model = cls(cells, **more)
    elif cls is GeneClassifier:
        cls.setup_anndata(cells)
        sets = {"first": cells.var_names[:10].tolist(), "second": cells.var_names[10:20].tolist()}
        model = cls(cells, sets, base, **more)
    else:
        keys = {CellClassifier: "kind", CellRegressor: "age", MultiTaskClassifier: ["kind", "age"]}
        cls.setup_anndata(cells, keys[cls])
        model = cls(cells, base, **more)
    model.train(**{**FAST, **(how or {})})
    return model


def same(one: Any, other: Any) -> None:
    """Two models do not differ in anything that a user sees."""
    assert type(one) is type(other)
    assert one.targets == other.targets
    assert one.temperatures_ == other.temperatures_
    assert one.task_weights == other.task_weights
    assert one.fit_ == other.fit_
    assert one.history.keys() == other.history.keys()
    for name, table in one.history.items():
        pd.testing.assert_frame_equal(
            table.astype(float), other.history[name], check_exact=True, check_index_type=False
        )
    for part in ("train_indices", "validation_indices", "test_indices"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
    if one.report_ is not None:
        pd.testing.assert_frame_equal(one.report_, other.report_, check_exact=True)
    if hasattr(one, "genes"):
        pd.testing.assert_frame_equal(one.genes, other.genes, check_exact=True, check_names=False)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_reloaded_model_has_the_same_bits(cls: Any, cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    model = trained(cls, cells, tiny)
    if hasattr(model, "evaluate"):
        model.evaluate()
        assert len(model.report_)
    expected = model.predict()
    model.save(tmp_path / "saved")
    for loaded in (cls.load(tmp_path / "saved"), scfm.train.load(tmp_path / "saved")):
        same(model, loaded)
        pd.testing.assert_frame_equal(loaded.predict(cells), expected, check_exact=True)
    with pytest.raises(ValueError, match=r"loaded without data: name some, as in load\(dir_path, adata\)"):
        loaded.predict()
    again = scfm.train.load(tmp_path / "saved", cells)
    same(model, again)
    pd.testing.assert_frame_equal(again.predict(), expected, check_exact=True)
    again.save(tmp_path / "second")
    same(model, cls.load(tmp_path / "second"))
    names = {path.suffix for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert names <= {".safetensors", ".json", ".tsv", ".gz", ".md", ".csv", ".txt"}, names
    assert not [path for path in (tmp_path / "saved").rglob("*") if path.read_bytes()[:2] in (b"\x80\x02", b"PK")]
    assert not [path for path in tmp_path.iterdir() if path.name not in ("saved", "second")]


@pytest.mark.parametrize(
    "arguments", [{"freeze": True}, {"lora": LoRA(rank=2, targets=("query", "down"))}, {"freeze": 1}], ids=str
)
def test_what_was_trained_alone(
    arguments: dict[str, Any], cells: AnnData, tiny: FoundationModel, tmp_path: Path
) -> None:
    model = trained(CellClassifier, cells, tiny, **arguments)
    model.save(tmp_path / "part", whole=False)
    model.save(tmp_path / "whole")
    expected = model.predict()
    loaded = scfm.train.load(tmp_path / "part", base=tiny)
    same(model, loaded)
    pd.testing.assert_frame_equal(loaded.predict(cells), expected, check_exact=True)
    assert not (tmp_path / "part" / "model.safetensors").exists()
    merged = CellClassifier.load(tmp_path / "whole").predict(cells)
    np.testing.assert_allclose(merged.iloc[:, 1:], expected.iloc[:, 1:], atol=1e-6)
    other = scfm.model.load(write_geneformer(tmp_path / "other", n_genes=40, n_layers=2, max_tokens=48, seed=5))
    with pytest.raises(ValueError, match=r"have the sha256 .*; the model was trained on those of .* by base="):
        CellClassifier.load(tmp_path / "part", base=other)
    with pytest.raises(ValueError, match="is not in a file by which it could be known again"):
        trained(CellClassifier, cells, model.foundation_model, freeze=True).save(tmp_path / "lost", whole=False)
    assert not (tmp_path / "lost").exists()


def test_every_verb_takes_a_whole_folder(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    model = trained(CellClassifier, cells, tiny)
    model.save(tmp_path / "saved")
    few = cells[:4].copy()
    scfm.tl.embed(few, tmp_path / "saved")
    vectors = few.obsm[next(name for name in few.obsm if name.startswith("X_"))]
    np.testing.assert_array_equal(vectors, model.foundation_model.embed(few))
    assert not np.allclose(vectors, tiny.embed(few, hidden_layer=0), atol=1e-3)
    scfm.tl.perturb(few, tmp_path / "saved", genes=[few.var_names[0]])
    scfm.tl.attention(few, tmp_path / "saved")
    scfm.tl.predict(few, tmp_path / "saved")
    assert few.obs["prediction"].astype(str).tolist() == model.predict(few)["label"].astype(str).tolist()


def test_what_is_overwritten(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    model = trained(EmbeddingClassifier, cells, tiny)
    folder = tmp_path / "saved"
    with pytest.raises(RuntimeError, match=r"was not trained; call train\(\) before save"):
        EmbeddingClassifier(cells).save(folder)
    model.save(folder)
    with pytest.raises(FileExistsError, match="exists: overwrite=True replaces it, or choose another folder"):
        model.save(folder)
    (folder / "left over").touch()
    model.save(folder, overwrite=True)
    assert not (folder / "left over").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("not to be lost")
    with pytest.raises(FileExistsError, match="it holds something else"):
        model.save(tmp_path / "notes", overwrite=True)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "not to be lost"


KILLED = """
import os, signal, sys
import anndata, numpy as np
from scfm.train import EmbeddingClassifier
from scfm.train.supervised import saved

rng = np.random.default_rng(0)
cells = anndata.AnnData(obs={"kind": list("ab") * 10}, obsm={"latent": rng.normal(size=(20, 3))})
EmbeddingClassifier.setup_anndata(cells, "kind", "latent")
model = EmbeddingClassifier(cells)
model.train(1, accelerator="cpu", train_size=0.8)
saved._split = lambda model: os.kill(os.getpid(), signal.SIGKILL)
model.save(sys.argv[1])
"""


def test_a_save_that_is_killed_leaves_no_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "saved")], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "saved").exists()


def test_damaged_folders(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    trained(CellClassifier, cells, tiny, freeze=1).save(tmp_path / "whole")
    for name in ("head.safetensors", "split.safetensors", "model.safetensors"):
        path = tmp_path / "whole" / name
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{name}.*sha256|sha256.*{name}"):
            scfm.train.load(tmp_path / "whole")
        path.write_bytes(good)
    described = json.loads((tmp_path / "whole" / "model.json").read_text())
    (tmp_path / "whole" / "model.json").write_text(json.dumps({**described, "format": 99}))
    with pytest.raises(ValueError, match="is not of format 1; it was written by another version"):
        CellClassifier.load(tmp_path / "whole")
    (tmp_path / "whole" / "model.json").write_text(json.dumps({**described, "class": "Guess"}))
    with pytest.raises(ValueError, match="names the class 'Guess'; there are CellClassifier"):
        scfm.train.load(tmp_path / "whole")


def test_another_class_or_no_folder(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    trained(EmbeddingClassifier, cells, tiny).save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"holds a EmbeddingClassifier.*scfm.train.EmbeddingClassifier.load reads it"):
        CellClassifier.load(tmp_path / "saved")
    for load in (CellClassifier.load, scfm.train.load):
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            load(tmp_path / "nowhere")
        with pytest.raises(ValueError, match="holds no trained head: give a folder of save"):
            load(tmp_path)
    with pytest.raises(TypeError, match="is a EmbeddingClassifier, which predicts no cells from counts"):
        scfm.tl.predict(cells, tmp_path / "saved")


def test_a_head_of_your_own_is_given_again(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    head = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
    model = trained(CellClassifier, cells, tiny, head=head, freeze=True)
    model.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="trained with a head of your own: give the same module as head="):
        CellClassifier.load(tmp_path / "saved")
    with pytest.raises(ValueError, match="does not fit the model"):
        CellClassifier.load(tmp_path / "saved", head=torch.nn.Linear(16, 3))
    loaded = scfm.train.load(tmp_path / "saved", head=head)
    pd.testing.assert_frame_equal(loaded.predict(cells), model.predict(), check_exact=True)


def test_running_means_are_those_of_the_best_epoch() -> None:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(2)

    class Trainer:
        sanity_checking = False

    module, best, trainer = Module(), BestWeights("validation_loss"), Trainer()
    for epoch, loss in enumerate((1.0, 0.5, 0.7)):
        trainer.current_epoch, trainer.callback_metrics = epoch, {"validation_loss": loss}  # type: ignore[attr-defined]
        module.norm.running_mean.fill_(epoch)  # type: ignore[union-attr]
        module.norm.weight.data.fill_(epoch)
        best.on_validation_end(trainer, module)  # type: ignore[arg-type]
    best.on_fit_end(trainer, module)  # type: ignore[arg-type]
    assert module.norm.running_mean.tolist() == module.norm.weight.tolist() == [1, 1]  # type: ignore[union-attr]


def test_a_split_belongs_to_its_cells(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    model = trained(CellClassifier, cells, tiny)
    expected = model.evaluate()
    model.save(tmp_path / "saved")
    other = cells[::-1].copy()
    with pytest.raises(ValueError, match="other cells than those of the training, to which the test part belongs"):
        CellClassifier.load(tmp_path / "saved", other).evaluate()
    again = CellClassifier.load(tmp_path / "saved", cells.copy())
    pd.testing.assert_frame_equal(again.evaluate(), expected, check_exact=True)
    with pytest.warns(UserWarning, match=r"saved was fine-tuned before \(CellClassifier\)"):
        again.train(**FAST)

"""Training of models of cells and genes: what it learns, leaves alone, and repeats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import scfm
from scfm.train import CellClassifier, CellRegressor, EmbeddingClassifier, GeneClassifier, MultiTaskClassifier
from scfm.train.supervised import tokens as tokens_module

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from scfm.model import FoundationModel

FAST: dict[str, Any] = {"lr": 1e-2, "batch_size": 8, "accelerator": "cpu"}


def classifier(cells: AnnData, model: FoundationModel, **arguments: Any) -> Any:
    CellClassifier.setup_anndata(cells, "kind")
    return CellClassifier(cells, model, **arguments)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.module.state_dict().items()}


@pytest.mark.parametrize("head", ["linear", "attention"])
def test_a_classifier_learns(cells: AnnData, tiny: FoundationModel, head: Any) -> None:
    model = classifier(cells, tiny, head=head)
    model.train(8, train_size=0.6, validation_size=0.2, **FAST)
    found = model.predict()
    assert found.index.equals(cells.obs_names)
    assert found.columns.tolist() == [
        "label",
        "score",
        *(f"probability_{kind}" for kind in sorted(set(cells.obs["kind"]))),
    ]
    np.testing.assert_allclose(found.iloc[:, 2:].sum(axis=1), 1, atol=1e-5)
    test = model.test_indices
    assert len(test) == 18
    assert (found["label"].astype(str) == cells.obs["kind"].astype(str)).iloc[test].mean() > 0.8
    assert len(model.history["validation_macro_f1"]) == 8
    assert set(model.train_indices) | set(model.validation_indices) | set(test) == set(range(cells.n_obs))


def test_the_best_epoch_is_kept(cells: AnnData, tiny: FoundationModel) -> None:
    model = classifier(cells, tiny, dropout=0.0)
    model.train(4, **{**FAST, "lr": 0.05}, schedule="constant", warmup=0)  # far too fast, so that epochs differ
    losses = model.history["validation_loss"].to_numpy(float)[:, 0]
    assert model.fit_.best == pytest.approx(losses.min(), rel=1e-6)
    assert model.fit_.epoch == losses.argmin()
    rows = model.validation_indices
    model.temperatures_ = {}
    table = model.predict().iloc[rows]
    right = [table[f"probability_{kind}"].iloc[at] for at, kind in enumerate(cells.obs["kind"].iloc[rows])]
    assert -np.log(right).mean() == pytest.approx(losses.min(), rel=1e-4)


def test_the_same_call_gives_the_same_bits_and_changes_nothing_else(cells: AnnData, tiny: FoundationModel) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), cells.X.copy()  # type: ignore[index]  # noqa: NPY002
    first, second = classifier(cells, tiny), classifier(cells.copy(), tiny)
    for model in (first, second):
        model.train(2, **FAST)
    assert all(torch.equal(one, weights(second)[name]) for name, one in weights(first).items())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    assert (before[2] != cells.X).nnz == 0


def test_parts_of_a_step_make_no_difference(cells: AnnData, tiny: FoundationModel) -> None:
    whole, parts = (classifier(cells, tiny, dropout=0.0) for _ in range(2))
    whole.train(1, **FAST)
    parts.train(1, batch_tokens=50, **FAST)
    for name, one in weights(whole).items():
        if not name.endswith("qkv.bias"):  # that of keys has no gradient but rounding, which AdamW makes large
            torch.testing.assert_close(one, weights(parts)[name], atol=1e-4, rtol=1e-3)


def test_tokens_in_a_file_and_cells_in_files_are_the_same(
    cells: AnnData, tiny: FoundationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = classifier(cells, tiny)
    inside.train(1, **FAST)
    cells[:50].copy().write_h5ad(tmp_path / "a.h5ad")
    cells[50:].copy().write_h5ad(tmp_path / "b.h5ad")
    monkeypatch.setattr(tokens_module, "IN_MEMORY", 100)
    CellClassifier.setup_anndata(str(tmp_path / "*.h5ad"), "kind")
    files: Any = CellClassifier(str(tmp_path / "*.h5ad"), tiny)
    cache = tmp_path / "cache"
    cache.mkdir()
    files.train(1, token_cache=cache, **FAST)
    assert not list(cache.iterdir())
    assert all(torch.equal(one, weights(files)[name]) for name, one in weights(inside).items())
    np.testing.assert_allclose(files.predict().iloc[:, 1:], inside.predict().iloc[:, 1:], atol=1e-5)


def test_frozen_layers_keep_their_bits(cells: AnnData, tiny: FoundationModel) -> None:
    model = classifier(cells, tiny, freeze=1)
    start = {name: one.detach().clone() for name, one in model.new_module().named_parameters()}
    model.train(2, **FAST)
    moved = {name for name, one in weights(model).items() if name in start and not torch.equal(one, start[name])}
    assert not any(name.startswith(("network.layers.0.", "network.word", "network.position")) for name in moved)
    assert any(name.startswith("network.layers.1.") for name in moved)
    whole = classifier(cells, tiny, freeze=True)
    whole.train(2, **FAST)
    assert all(torch.equal(weights(whole)[name], one) for name, one in start.items() if name.startswith("network."))


def test_adapters_alone_are_trained_and_merge(cells: AnnData, tiny: FoundationModel) -> None:
    model = classifier(cells, tiny, lora=2)
    model.train(2, **{**FAST, "lr": 0.02})
    base = dict(tiny.training_network().named_parameters())
    for name, one in model.module.network.named_parameters():
        if "lora" not in name:
            assert torch.equal(one, base[name.replace(".base_layer", "")])
    with torch.inference_mode():
        part = _part(model, tiny)
        unmerged = model.module.states(part).pooled
        merged = model.foundation_model
        options = model.backbone.run_options
        again = merged.training_outputs(merged.training_network(), part, options)[1]
    torch.testing.assert_close(unmerged, again, atol=1e-5, rtol=1e-5)


def _part(model: Any, tiny: FoundationModel) -> Any:
    with tiny.session(model.adata, model.backbone.arguments(model.setup)) as session:
        return next(session.batches(16))


def test_an_interrupted_run_ends_with_the_same_bits(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    straight = classifier(cells, tiny)
    straight.train(4, checkpoint_dir=tmp_path / "straight", **FAST)
    stopped = classifier(cells, tiny)

    class Stop(Exception):
        pass

    from lightning.pytorch.callbacks import Callback

    class Stopping(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 2:
                raise Stop

    with pytest.raises(Stop):
        stopped.train(4, checkpoint_dir=tmp_path / "stopped", callbacks=[Stopping()], **FAST)
    again = classifier(cells, tiny)
    again.train(4, checkpoint_dir=tmp_path / "stopped", **FAST)
    assert all(torch.equal(one, weights(again)[name]) for name, one in weights(straight).items())
    assert again.fit_.epoch == straight.fit_.epoch
    with pytest.raises(ValueError, match="belongs to another run, which differs in lr"):
        again.train(4, checkpoint_dir=tmp_path / "stopped", **{**FAST, "lr": 1e-3})


def test_a_label_that_is_a_donor_is_not_predicted_where_donors_are_whole(cells: AnnData, tiny: FoundationModel) -> None:
    donors = sorted(set(cells.obs["donor"]))
    cells.obs["label"] = cells.obs["donor"].map({donor: "ab"[at % 2] for at, donor in enumerate(donors)})
    counts = cells.X.toarray()
    for at, donor in enumerate(donors):  # each donor has genes of its own
        counts[cells.obs["donor"] == donor, 5 * at : 5 * at + 5] += 30
    cells.X = type(cells.X)(counts)
    CellClassifier.setup_anndata(cells, "label", donors_key="donor")
    whole: Any = CellClassifier(cells, tiny)
    found = whole.cross_validate(3, max_epochs=10, **FAST)
    CellClassifier.setup_anndata(cells, "label")
    split: Any = CellClassifier(cells, tiny)
    leaked = split.cross_validate(3, max_epochs=10, **FAST)
    assert found.report.accuracy < 0.65 < 0.85 < leaked.report.accuracy


def test_numbers(cells: AnnData, tiny: FoundationModel) -> None:
    CellRegressor.setup_anndata(cells, "age")
    model: Any = CellRegressor(cells, tiny)
    model.train(6, **FAST)
    found = model.predict(key_added="predicted_age")
    assert np.corrcoef(found["value"], cells.obs["age"])[0, 1] > 0.8
    assert cells.obs["predicted_age"].tolist() == found["value"].tolist()
    assert model.history["validation_r2"].to_numpy(float).max() > 0.4


def test_several_columns(cells: AnnData, tiny: FoundationModel) -> None:
    cells.obs.loc[cells.obs_names[:30], "kind"] = None
    MultiTaskClassifier.setup_anndata(cells, ["kind", "stage", "age"])
    model: Any = MultiTaskClassifier(cells, tiny, task_weights={"kind": 2.0})
    assert model.task_weights == {"kind": 1.5, "stage": 0.75, "age": 0.75}
    published = tiny.training_network().state_dict()
    loaded = model.new_module().network.state_dict()
    assert all(torch.equal(one, loaded[name]) for name, one in published.items())  # pretrained, not random
    model.train(6, **FAST)
    found = model.predict()
    assert {"kind_label", "stage_label", "age_value"} <= set(found)
    assert (found["stage_label"].astype(str) == cells.obs["stage"]).mean() > 0.8
    assert "validation_kind_macro_f1" in model.history


def test_embeddings(cells: AnnData, tiny: FoundationModel) -> None:
    scfm.tl.embed(cells, tiny)
    EmbeddingClassifier.setup_anndata(cells, "kind", "X_geneformer", donors_key="donor")
    model: Any = EmbeddingClassifier(cells)
    found = model.cross_validate(3, max_epochs=20, lr=0.02)
    assert found.report.macro_f1 > 0.6
    model.train(20, lr=0.02, train_size=0.5)
    assert (model.predict()["label"].astype(str) == cells.obs["kind"].astype(str)).mean() > 0.6
    donors = cells.obs["donor"].to_numpy()
    assert not set(donors[model.train_indices]) & set(donors[model.validation_indices])


def test_genes(cells: AnnData, tiny: FoundationModel) -> None:
    sets = {"first": cells.var_names[:10].tolist(), "second": cells.var_names[10:20].tolist()}
    GeneClassifier.setup_anndata(cells)
    model: Any = GeneClassifier(cells, sets, tiny, class_weights="balanced")
    model.train(6, train_size=0.7, **FAST)
    found = model.predict()
    assert found.index.equals(cells.var_names)
    assert model.genes["part"].value_counts().to_dict() == {"train": 14, "validation": 6}
    trained = model.genes.index[model.genes["part"] == "train"]
    truth = {gene: name for name, genes in sets.items() for gene in genes}
    assert np.mean([found.loc[gene, "label"] == truth[gene] for gene in trained]) > 0.8
    crossed = model.cross_validate(2, max_epochs=1, **FAST)
    assert sorted(crossed.predictions.index) == sorted(truth)


def test_your_own_head(cells: AnnData, tiny: FoundationModel) -> None:
    head = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    start = head[0].weight.detach().clone()
    model = classifier(cells, tiny, head=head, freeze=True)
    model.train(30, **FAST)
    assert torch.equal(head[0].weight, start)  # a copy is trained
    assert (model.predict()["label"].astype(str) == cells.obs["kind"].astype(str)).mean() > 0.7
    wrong = classifier(cells, tiny, head=torch.nn.Linear(16, 2))
    with pytest.raises(ValueError, match=r"scores of shape \(\d+, 2\), expected \(\d+, 3\)"):
        wrong.train(1, **FAST)


def test_a_threshold(cells: AnnData, tiny: FoundationModel) -> None:
    model = classifier(cells, tiny)
    model.train(1, **FAST)
    scores, right = map(np.array, model.fit_.validated)
    low = model.threshold_for(0.0)
    assert low == 0
    best = max(np.mean(right[scores >= score]) for score in scores)
    chosen = model.threshold_for(float(best))
    assert np.mean(right[scores >= chosen]) >= best - 1e-12
    found = model.predict(threshold=0.999999)
    assert (found.loc[found["score"] < 0.999999, "label"] == "unknown").all()


def test_balanced_draws_and_weights(cells: AnnData, tiny: FoundationModel) -> None:
    rare = np.flatnonzero(cells.obs["kind"] == "T cell")[4:]
    few = cells[np.setdiff1d(np.arange(cells.n_obs), rare)].copy()
    model = classifier(few, tiny, class_weights="balanced")
    model.train(1, balanced=True, **FAST)
    weights = dict(zip(model.targets["kind"].labels, model.targets["kind"].weights, strict=True))
    assert weights["T cell"] > 4 * weights["B cell"]

"""Every family keeps the rules, and a model that breaks one is found out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import sparse

import scfm
from scfm.model.families.geneformer import Geneformer
from scfm.model.families.transcriptformer import TranscriptFormer
from scfm.model.registry import families
from scfm.testing import check_model
from scfm.testing._rules import RULES

from ..families import TINY

if TYPE_CHECKING:
    from scfm.model import FoundationModel

OFFERED = {"linear layers", "genes", "scores", "masked genes", "perturbed genes"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FoundationModel]:
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.load(folder / name) for name, tiny in TINY.items()}


def test_every_family_is_here() -> None:
    assert {tiny.family for tiny in TINY.values()} == set(families())


@pytest.mark.parametrize("compat", [None, "upstream"])
@pytest.mark.parametrize("name", TINY)
def test_every_family_keeps_the_rules(name: str, compat: Any, models: dict[str, FoundationModel]) -> None:
    tiny, before = TINY[name], scfm.settings.model_dump()
    checked = check_model(models[name], exempt=tiny.exempt, compat=compat)
    assert set(checked) & OFFERED == tiny.offers
    assert scfm.settings.model_dump() == before
    for rule in tiny.exempt:
        with pytest.raises(AssertionError, match=f"breaks the rule '{rule}'"):
            check_model(models[name], exempt=set(RULES) - {rule}, compat=compat)
        with_options = check_model(models[name], exempt=set(RULES) - {rule}, compat=compat, **tiny.options)
        assert with_options == (rule,)


class Changed(Geneformer):
    """What comes out is changed."""

    def run(self, data: Any, arguments: Any = None, *, groupby: str | None = None) -> Any:
        found = super().run(data, arguments, groupby=groupby)
        return replace(found, values=self.changed(found.values, data, found.names))

    def changed(self, values: np.ndarray, data: Any, names: Any) -> np.ndarray:
        return values


def dense(data: Any) -> np.ndarray:
    return data.X.toarray() if sparse.issparse(data.X) else data.X


class Constant(Changed):
    def changed(self, values: np.ndarray, data: Any, names: Any) -> np.ndarray:
        return np.zeros_like(values)


class DoublePrecision(Changed):
    def changed(self, values: np.ndarray, data: Any, names: Any) -> np.ndarray:
        return values.astype(np.float64)


class Noisy(Geneformer):
    def forward(self, network: Any, batch: Any, options: Any) -> torch.Tensor:
        hidden = super().forward(network, batch, options)
        return hidden + 1e-6 * torch.rand_like(hidden)


class Centred(Geneformer):
    """On the cells of the same batch."""

    def forward(self, network: Any, batch: Any, options: Any) -> torch.Tensor:
        hidden = super().forward(network, batch, options)
        return hidden - 0.1 * hidden.mean(dim=0)


class SortedByName(Changed):
    def changed(self, values: np.ndarray, data: Any, names: Any) -> np.ndarray:
        return values[np.argsort(names)]


class FirstColumn(Changed):
    def changed(self, values: np.ndarray, data: Any, names: Any) -> np.ndarray:
        return values + dense(data)[:, :1]


class NumberOfColumns(Changed):
    def changed(self, values: np.ndarray, data: Any, names: Any) -> np.ndarray:
        return values + np.float32(data.n_vars)


class OtherFromFiles(Changed):
    def changed(self, values: np.ndarray, data: Any, names: Any) -> np.ndarray:
        return 2 * values if isinstance(data, Path) else values


class SaysNothingOfEmptyCells(Geneformer):
    embeds_empty = False


class EmptyCellsAreMissing(Changed):
    def changed(self, values: np.ndarray, data: Any, names: Any) -> np.ndarray:
        return np.where(dense(data).sum(axis=1, keepdims=True) > 0, values, np.float32(np.nan))


class TakesAnyValue(Geneformer):
    def run(self, data: Any, arguments: Any = None, *, groupby: str | None = None) -> Any:
        data = data.copy()
        data.X = np.abs(np.nan_to_num(dense(data), posinf=1))
        return super().run(data, arguments, groupby=groupby)


class TakesAnyGene(Geneformer):
    def run(self, data: Any, arguments: Any = None, *, groupby: str | None = None) -> Any:
        data = data.copy()
        data.var_names = self.vocabulary.genes[: data.n_vars]
        return super().run(data, arguments, groupby=groupby)


class StoresTooEarly(Geneformer):
    def run(self, data: Any, arguments: Any = None, *, groupby: str | None = None) -> Any:
        data.uns["early"] = {}
        return super().run(data, arguments, groupby=groupby)


class Writes(Geneformer):
    def run(self, data: Any, arguments: Any = None, *, groupby: str | None = None) -> Any:
        data.obs["seen"] = True
        return super().run(data, arguments, groupby=groupby)


class Sorts(Geneformer):
    """The stored values of the caller, in place."""

    def run(self, data: Any, arguments: Any = None, *, groupby: str | None = None) -> Any:
        if sparse.issparse(data.X):
            data.X.sort_indices()
        return super().run(data, arguments, groupby=groupby)


class UnstorableParams(Geneformer):
    def run(self, data: Any, arguments: Any = None, *, groupby: str | None = None) -> Any:
        found = super().run(data, arguments, groupby=groupby)
        return replace(found, params=found.params | {"seen": {1, 2}})


class ParamsThatChange(Geneformer):
    def run(self, data: Any, arguments: Any = None, *, groupby: str | None = None) -> Any:
        found = super().run(data, arguments, groupby=groupby)
        return replace(found, params=found.params | {"share": ["a", 1]})


class SecondDeviceIsOther(Geneformer):
    def networks(self, n_layers: int, devices: Any, dtype: Any, quantize: Any = None) -> list[torch.nn.Module]:
        found = super().networks(n_layers, devices, dtype, quantize)
        with torch.no_grad():
            for network in found[1:]:
                for parameter in network.parameters():
                    parameter.mul_(1.1)
        return found


class ReadsWeights(Geneformer):
    """Instead of calling the module."""

    def networks(self, n_layers: int, devices: Any, dtype: Any, quantize: Any = None) -> list[torch.nn.Module]:
        found = super().networks(n_layers, devices, dtype, quantize)
        for network in found:
            if not hasattr(network, "extra"):
                network.extra = torch.nn.Linear(self.n_features, self.n_features)
                torch.nn.init.eye_(network.extra.weight)
        return found

    def forward(self, network: Any, batch: Any, options: Any) -> torch.Tensor:
        return super().forward(network, batch, options) @ network.extra.weight.T


class OtherMeans(Changed):
    def changed(self, values: np.ndarray, data: Any, names: Any) -> np.ndarray:
        return 2 * values if len(names) == data.n_vars else values


class CentredScores(TranscriptFormer):
    """On the cells of the same batch."""

    def scorer(self, options: Any, device: Any, dtype: Any) -> Any:
        plain = super().scorer(options, device, dtype)

        def centred(network: Any, batch: Any) -> torch.Tensor:
            scores = plain(network, batch)
            is_gene = scores[:, 2] > 0
            scores[is_gene, :2] -= scores[is_gene, :2].mean(dim=0)
            return scores

        return centred


class OtherCellsAreMasked(Geneformer):
    def count_session(self, data: Any, arguments: Any) -> Any:
        return super().count_session(data[::-1].copy(), arguments)


class OtherCellsArePerturbed(Geneformer):
    def count_session(self, data: Any, arguments: Any) -> Any:
        return super().count_session(data[::-1].copy(), arguments)


class PerturbsNothing(Geneformer):
    def perturber(self, kind: Any, options: Any) -> Any:
        return lambda genes, _: genes


class OverexpressesByCompany(Geneformer):
    """Looks at the cells that it saw before."""

    seen = 0

    def perturber(self, kind: Any, options: Any) -> Any:
        plain = super().perturber(kind, options)

        def edit(genes: Any, group: Any) -> Any:
            self.seen += 1
            return plain(genes, group if self.seen % 2 else group[:0])

        return edit


BROKEN: dict[type[FoundationModel], tuple[str, str]] = {
    Constant: ("result", "all cells have the same embedding"),
    DoublePrecision: ("result", "the embeddings are float64"),
    Noisy: ("result", "the same call gives other numbers the second time"),
    Centred: ("batches", "a cell alone differs by up to"),
    SortedByName: ("cell order", "a cell in another row differs"),
    FirstColumn: ("gene order", "a cell with its genes in another order differs"),
    NumberOfColumns: ("unknown genes", "a cell with unknown genes differs"),
    OtherFromFiles: ("containers", "a cell in the path of an .h5ad file differs"),
    SaysNothingOfEmptyCells: ("empty cells", "the row of an empty cell is not NaN, but embeds_empty is False"),
    EmptyCellsAreMissing: ("empty cells", "the row of an empty cell is not finite, but embeds_empty is True"),
    TakesAnyValue: ("bad input", "the count -1 was accepted"),
    TakesAnyGene: ("bad input", "no gene that the model knows was accepted"),
    StoresTooEarly: ("bad input", "something was stored although the count -1 was refused"),
    Writes: ("unchanged input", "X, layers, raw, obs or var of the caller were changed"),
    Sorts: ("unchanged input", "X, layers, raw, obs or var of the caller were changed"),
    UnstorableParams: ("provenance", "IORegistryError: .*set"),
    ParamsThatChange: ("provenance", "a file gives other params back: share"),
    SecondDeviceIsOther: ("devices", "a cell on one of two devices differs"),
    ReadsWeights: ("linear layers", "the weights of extra are read, but the module is not called"),
    OtherMeans: ("genes", "the mean of a gene differs"),
    CentredScores: ("scores", "the score of a cell alone differs"),
    OtherCellsAreMasked: ("masked genes", "a gene that a cell does not express has a score"),
    OtherCellsArePerturbed: ("perturbed genes", "a gene that a cell does not express has an effect"),
    PerturbsNothing: ("perturbed genes", "no embedding changes with the genes of a cell"),
    OverexpressesByCompany: ("perturbed genes", "the embedding of a changed cell alone differs"),
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_model_is_found_out(kind: type[FoundationModel], models: dict[str, FoundationModel]) -> None:
    whole = models["TranscriptFormer" if issubclass(kind, TranscriptFormer) else "Geneformer V2"]
    rule, message = BROKEN[kind]
    others = set(RULES) - {rule}
    assert check_model(whole, exempt=others) == (rule,)
    with pytest.raises(AssertionError) as error:
        check_model(kind(whole.card, whole.vocabulary, whole.tensors), exempt=others)
    assert str(error.value).startswith(f"{whole.card.id} breaks the rule {rule!r}: ")
    assert re.search(message, str(error.value))


def test_every_rule_can_be_broken() -> None:
    assert {rule for rule, _ in BROKEN.values()} == set(RULES)


def test_an_unknown_rule_is_refused(models: dict[str, FoundationModel]) -> None:
    with pytest.raises(
        ValueError, match="exempt holds 'batch', which is not a rule; the rules are 'result', 'batches'"
    ):
        check_model(models["scfm-mini"], exempt=["batch"])

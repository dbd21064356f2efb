"""Labels by a model that is fine-tuned on the reference."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from anndata import AnnData
from mudata import MuData

from scfm._keys import PARAMS
from scfm._write import is_mudata_file
from scfm.annotate import LabelSpace, Prediction, left_out_novelty, threshold
from scfm.read import open_container
from scfm.tl._target import adata_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from scfm.model import FoundationModel
    from scfm.tl._annotate_cells import Cells
    from scfm.train import CellClassifier

__all__ = ["FineTuned"]

FINE_TUNED = "X_finetuned"
"""Key of the embeddings by the fine-tuned model, in the tables that this module makes."""
NETWORK = ("head", "pooling", "max_tokens", "freeze", "lora", "dropout", "class_weights", "compat")
"""Arguments of the model; the others are those of its training."""
UUIDS = ("_scvi_uuid", "_scvi_manager_uuid")
"""What scvi-tools writes into ``uns`` of data that it registers."""


@dataclass(frozen=True)
class FineTuned:
    """A classifier that was trained on the reference, and embeddings by it of the reference and of the data."""

    classifier: CellClassifier
    data: AnnData
    reference: AnnData
    probabilities: Any
    """Of the classes, in their order, for each cell of the data."""

    @classmethod
    def of(
        cls,
        data: Any,
        reference: Any,
        model: str | Path | FoundationModel,
        labels_key: str,
        *,
        matrix: Mapping[str, Any],
        modality: str | None,
        training: Mapping[str, Any],
        seed: int,
    ) -> Self:
        """Train on the labelled cells of the reference, or of the data if there is none."""
        from scfm.train import CellClassifier

        labelled, of_labelled = _opened(data if reference is None else reference, modality)
        given, of_given = _opened(data, modality)
        known = set(labelled.uns) if isinstance(labelled, AnnData) else set()
        network = {name: value for name, value in training.items() if name in NETWORK}
        try:
            CellClassifier.setup_anndata(labelled, labels_key, modality=of_labelled, **matrix)
            classifier = CellClassifier(labelled, model, **network)
            classifier.train(**{"seed": seed, **{name: one for name, one in training.items() if name not in NETWORK}})
        finally:
            if isinstance(labelled, AnnData):
                for key in set(UUIDS) - known:
                    labelled.uns.pop(key, None)
        (found,) = classifier.predictions(given, modality=of_given).values()
        how = {**matrix, **{name: network.get(name) for name in ("max_tokens", "compat")}}
        table = _embedded(classifier, given, of_given, how)
        # a network may read special tokens alone of a cell without genes
        table.obsm[FINE_TUNED][~np.isfinite(found.values).all(axis=1)] = np.nan
        source = table if reference is None else _embedded(classifier, labelled, of_labelled, how)
        return cls(classifier, table, source, found.values)

    def predict(self, cells: Cells, *, reject: float | None, seed: int) -> Prediction:
        """Probabilities of the classifier, and novelty in its own embedding."""
        classes = list(self.classifier.targets.values())[0].labels  # type: ignore[union-attr]
        order = [classes.index(label) for label in cells.reference.labels]
        space = LabelSpace.fit(cells.reference)
        limit = None if reject is None else threshold(left_out_novelty(cells.reference, seed), reject)
        return Prediction(self.probabilities[cells.rows][:, order], space.novelty(cells.query), limit)


def _opened(data: Any, modality: str | None) -> tuple[Any, str | None]:
    """An AnnData, or a path with the modality that is read of it."""
    if isinstance(data, str | PathLike):
        return data, modality if is_mudata_file(Path(data).expanduser()) else None
    return (adata_of(data, modality, "data") if isinstance(data, MuData) else data), None


def _embedded(classifier: CellClassifier, cells: Any, modality: str | None, how: Mapping[str, Any]) -> AnnData:
    """The annotation of cells with their embedding by the trained model, without a matrix."""
    how = {**how, "modality": modality}
    values = classifier.foundation_model.embed(cells, **how)
    params = {**classifier.params(), **how}
    return AnnData(obs=_obs(cells, modality), obsm={FINE_TUNED: values}, uns={FINE_TUNED: {PARAMS: params}})


def _obs(cells: Any, modality: str | None) -> pd.DataFrame:
    if isinstance(cells, AnnData):
        return cells.obs
    with open_container(cells, modality) as found:
        return found.obs

"""Trained models from folders and configs, whichever class they are of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scfm._checks import typed
from scfm._paths import read_json
from scfm.train.supervised._cell_classifier import CellClassifier
from scfm.train.supervised._cell_regressor import CellRegressor
from scfm.train.supervised._embedding_classifier import EmbeddingClassifier
from scfm.train.supervised._gene_classifier import GeneClassifier
from scfm.train.supervised._multi_task_classifier import MultiTaskClassifier
from scfm.train.supervised.published_heads import class_of_head
from scfm.train.supervised.saved import MODEL_FILE, arguments_of
from scfm.train.supervised.search import BEST
from scfm.train.supervised.setup import Setup

if TYPE_CHECKING:
    from torch import nn

    from scfm.model import FoundationModel
    from scfm.train.supervised._base import SupervisedModel
    from scfm.train.supervised._cell_model import CellModel

__all__ = ["load", "repeat"]

CLASSES: dict[str, type[SupervisedModel]] = {
    cls.__name__: cls
    for cls in (CellClassifier, CellRegressor, EmbeddingClassifier, GeneClassifier, MultiTaskClassifier)
}


@typed
def load(
    dir_path: str | Path,
    adata: Any = None,
    *,
    base: str | Path | FoundationModel | None = None,
    head: nn.Module | None = None,
) -> SupervisedModel:
    """Load a trained model of any class.

    Parameters
    ----------
    dir_path
        Folder that ``save`` wrote, or that :func:`scfm.model.convert` made of a fine-tuned checkpoint.
    adata
        Data to go on with; by default none, and predictions take their own.
    base, head
        As for :meth:`CellClassifier.load`.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or base.
    ValueError
        If it holds no trained model, or a damaged one, or the base has other weights.

    Examples
    --------
    >>> import scfm, tempfile
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.train.EmbeddingClassifier.setup_anndata(adata, "bulk_labels", use_rep="X_umap")
    >>> model = scfm.train.EmbeddingClassifier(adata)
    >>> model.train(max_epochs=2, lr=0.01)
    >>> folder = tempfile.mkdtemp() + "/model"
    >>> model.save(folder)
    >>> scfm.train.load(folder)
    EmbeddingClassifier(bulk_labels; trained)
    """
    folder = Path(dir_path).expanduser()
    if not folder.is_dir():
        msg = f"There is no folder {folder}."
        raise FileNotFoundError(msg)
    path = folder / MODEL_FILE
    name = read_json(path).get("class") if path.is_file() else class_of_head(folder)
    if name not in CLASSES:
        msg = f"{path} names the class {name!r}; there are {', '.join(CLASSES)}."
        raise ValueError(msg)
    return CLASSES[name].load(folder, adata, base=base, head=head)


@typed
def repeat(config: str | Path, data: Any, *, base: str | Path | FoundationModel | None = None) -> CellModel:
    """Train the model that a search found best, from its config alone.

    Parameters
    ----------
    config
        ``best.json`` of the search.
    data
        The data that it was made with.
    base
        The model below, where it is not found by the name that it had.

    Returns
    -------
    The trained model.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no config of a search, or the base has other weights.
    """
    stored = read_json(Path(config).expanduser())
    if stored.get("class") not in CLASSES or "train" not in stored:
        msg = f"{config} is not the {BEST} of a search."
        raise ValueError(msg)
    setup = Setup(**{**stored["setup"], "columns": tuple(stored["setup"]["columns"])})
    model: Any = CLASSES[stored["class"]].restored(data, setup, arguments_of(stored, base))
    model.train(**stored["train"])
    return model

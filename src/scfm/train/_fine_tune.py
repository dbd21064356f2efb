"""Fine-tune, judge and save a model in one call."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm._paths import check_new

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData

    from scfm.model import FoundationModel
    from scfm.train.supervised import CellModel

__all__ = ["fine_tune"]


@typed
@with_parameters
def fine_tune(
    data: AnnData | MuData | str | Path | Sequence[str | Path],
    model: str | Path | FoundationModel,
    *,
    labels_key: str | Sequence[str],
    out: str | Path,
    kind: Literal["classes", "numbers"] = "classes",
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    modality: str | None = None,
    donors_key: str | None = None,
    unlabeled_category: str | None = None,
    head: Literal["linear", "bert", "attention"] | None = None,
    pooling: str | None = None,
    max_tokens: int | None = None,
    freeze: int | bool | None = None,
    lora: int | None = None,
    dropout: float = 0.02,
    class_weights: Literal["balanced"] | None = None,
    max_epochs: int = 10,
    train_size: float = 0.8,
    validation_size: float = 0.1,
    split: str | None = None,
    batch_size: int = 16,
    lr: float = 5e-5,
    weight_decay: float = 0.001,
    schedule: Literal["linear", "cosine", "constant"] = "linear",
    warmup: float = 0.1,
    early_stopping: bool = False,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    seed: int = 0,
    **options: Any,
) -> Path:
    """Fine-tune a model on labels of cells, judge it on cells that it has not seen, and save it.

    The same as making a :class:`CellClassifier` (:class:`CellRegressor` for numbers, :class:`MultiTaskClassifier` for several
    columns), ``train()``, ``predict()`` and ``save()``, with a report beside the weights. Checkpoints are kept in
    ``<out>.training`` until the model is saved, so the same call goes on after an interruption.

    Needs the extra ``scfm-tools[train]``.

    Parameters
    ----------
    %(fine_tune_data)s
    %(model)s
    labels_key
        Column of ``obs`` to learn, or several.
    out
        Folder of the trained model to write, which every verb and :func:`scfm.tl.predict` take.
    kind
        ``"numbers"`` for a column of numbers.
    layer
        Layer that holds the counts.
    use_raw
        Read the counts from ``raw``.
    gene_key
        Column of ``var`` with the genes, or ``"index"``; by default the one where most genes match.
    modality
        Modality of a MuData.
    donors_key
        Column of ``obs`` whose values are kept whole: all cells of a donor are trained on, or none.
    unlabeled_category
        Label that stands for none, beside missing values.
    head
        ``"linear"``: a linear layer on the embedding of a cell. ``"bert"``: a dense layer and tanh on the first token, as
        Geneformer. ``"attention"``: on a learned mean of all tokens. By default linear, of several columns attention.
    pooling
        How the embedding of a cell is made, as for :func:`scfm.tl.embed`.
    max_tokens
        Most tokens of a cell that are read; that of the model by default.
    freeze
        Layers that keep their weights, counted from the input, together with the vectors of genes (0: these alone); ``True``
        for all of them.
    lora
        Rank of low-rank adapters that are trained instead of the weights of the layers.
    dropout
        Dropout probability in training.
    class_weights
        ``"balanced"``: in the loss all classes have the same weight, however many cells they have.
    max_epochs
        Passes over the cells that are trained on.
    train_size, validation_size
        Shares of the labelled cells (with ``donors_key`` of the donors) that are trained on, and that choose the epoch and
        calibrate probabilities. The rest is the test part, on which the report is made.
    split
        Instead: column of ``obs`` that holds ``"train"``, ``"validation"``, ``"test"``, or nothing for a cell to leave out.
    batch_size
        Cells of a step of the optimiser.
    lr
        Largest learning rate.
    weight_decay
        Of matrices; biases and norms have none.
    schedule
        How the learning rate falls to 0, if it does.
    warmup
        Steps over which the learning rate rises, or their share if below 1.
    early_stopping
        Stop when the loss on the validation cells has not become better for three epochs.
    precision
        ``"bf16-mixed"`` computes products of matrices in bfloat16.
    seed
        Decides split, order and first weights.
    **options
        Options of the family of the model.

    Returns
    -------
    ``out``.

    Raises
    ------
    ImportError
        If a package of the extra is missing.
    KeyError
        If a column is missing.
    ValueError
        If an argument is out of range, a part of the split is empty, or no gene matches.
    FileExistsError, FileNotFoundError, OSError
        If ``out`` exists already, or cannot be written.

    Examples
    --------
    >>> import scfm, tempfile
    >>> adata = scfm.datasets.pbmc68k()
    >>> out = scfm.train.fine_tune(
    ...     adata,
    ...     "scfm-mini",
    ...     labels_key="bulk_labels",
    ...     out=tempfile.mkdtemp() + "/mine",
    ...     freeze=True,
    ...     max_epochs=1,
    ...     lr=1e-2,
    ... )
    >>> scfm.tl.embed(adata, out)
    """
    train: Any = import_module("scfm.train")  # which says what to install where a package is missing

    folder = Path(out).expanduser()
    check_new(folder)
    columns = [labels_key] if isinstance(labels_key, str) else list(labels_key)
    if not columns:
        msg = "labels_key must be a column of obs, or a list of one or more; got an empty list."
        raise ValueError(msg)
    matrix: dict[str, Any] = {
        "layer": layer,
        "use_raw": use_raw,
        "gene_key": gene_key,
        "modality": modality,
        "donors_key": donors_key,
    }
    network: dict[str, Any] = {
        "pooling": pooling,
        "max_tokens": max_tokens,
        "freeze": freeze,
        "lora": lora,
        "dropout": dropout,
        **({} if head is None else {"head": head}),
        **options,
    }
    tuned: CellModel
    if kind == "numbers":
        if len(columns) > 1 or class_weights is not None or unlabeled_category is not None:
            msg = "kind='numbers' learns one column of numbers; leave class_weights= and unlabeled_category= out."
            raise ValueError(msg)
        train.CellRegressor.setup_anndata(data, columns[0], **matrix)
        tuned = train.CellRegressor(data, model, **network)
    elif len(columns) == 1:
        train.CellClassifier.setup_anndata(data, columns[0], unlabeled_category=unlabeled_category, **matrix)
        tuned = train.CellClassifier(data, model, class_weights=class_weights, **network)
    else:
        train.MultiTaskClassifier.setup_anndata(data, columns, unlabeled_category=unlabeled_category, **matrix)
        tuned = train.MultiTaskClassifier(data, model, class_weights=class_weights, **network)
    work = folder.with_name(f"{folder.name}.training")
    tuned.train(
        max_epochs,
        train_size=train_size,
        validation_size=validation_size,
        split=split,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        early_stopping=early_stopping,
        precision=precision,
        checkpoint_dir=work,
        seed=seed,
    )
    if len(tuned.test_indices):
        tuned.evaluate()
    tuned.save(folder)
    shutil.rmtree(work)
    return folder

"""Labels of cells by a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm._keys import annotation_keys
from scfm._write import Results
from scfm.tl._target import target_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from anndata import AnnData
    from mudata import MuData

    from scfm.run.device import Device
    from scfm.train.supervised import CellModel

__all__ = ["predict"]


@typed
@with_parameters
def predict(
    data: AnnData | MuData | str | Path,
    model: str | Path | CellModel,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    modality: str | None = None,
    threshold: float | None = None,
    device: Device | Sequence[Device] | None = None,
    dtype: str | torch.dtype | None = None,
    key_added: str = "prediction",
    copy: bool = False,
) -> AnnData | MuData | Path | None:
    """Predict labels or numbers of cells by a model that was trained for them.

    Needs the extra ``scfm-tools[train]``.

    Parameters
    ----------
    %(data)s
    model
        Folder that ``save()`` of :class:`scfm.train.CellClassifier`, :class:`scfm.train.CellRegressor` or
        :class:`scfm.train.MultiTaskClassifier`, :func:`scfm.train.fine_tune`, or :func:`scfm.model.convert` (of a published
        fine-tuned model) wrote; or such a model.
    %(out)s
    modality
        Modality of a MuData object that holds the counts; the result goes there.
    threshold
        Score below which a cell is ``"unknown"``.
    %(device)s
    %(dtype)s
    %(key_added)s Of a model of several columns, those of each have ``f"{key_added}_<column>"``.
    %(copy)s

    Returns
    -------
    ``None``, the changed copy with ``copy=True``, or the path ``out``. Sets these fields:

    ``.obs[key_added]`` : category, or float32
        Most probable label, or the number.
    ``.obs[f'{key_added}_score']`` : float32
        Probability of that label, calibrated on the validation cells.
    ``.obsm[f'{key_added}_probabilities']`` : float32, shape ``(n_obs, n_labels)``
        Probabilities of the labels in ``params["labels"]``.
    ``.uns[key_added]['params']`` : dict
        The model, and how it was made.

    Raises
    ------
    %(errors)s
    FileExistsError, OSError
        If ``out`` exists and ``overwrite`` is not set, or it cannot be written for want of room or permission.
    ImportError
        If a package of the extra is missing.

    See Also
    --------
    annotate : Labels by nearest neighbours in an embedding, without training.

    Examples
    --------
    >>> import scfm, tempfile
    >>> adata = scfm.datasets.pbmc68k()
    >>> folder = tempfile.mkdtemp() + "/mine"
    >>> how = {"labels_key": "bulk_labels", "freeze": True, "max_epochs": 1, "lr": 1e-2}
    >>> scfm.tl.predict(adata, scfm.train.fine_tune(adata[:200].copy(), "scfm-mini", out=folder, **how))
    >>> adata.obs["prediction"].dtype
    CategoricalDtype(categories=['CD14+ Monocyte', ...
    """
    from scfm import train
    from scfm.train.supervised import CellModel

    target = target_of(data, "predict", modality=modality, out=out, overwrite=overwrite, copy=copy)
    trained: Any = model if isinstance(model, CellModel) else train.load(model)
    if not isinstance(trained, CellModel):
        msg = f"{model} is a {type(trained).__name__}, which predicts no cells from counts; scfm.train.{type(trained).__name__}.load(folder).predict() is for it."
        raise TypeError(msg)
    names = {name: key_added if len(trained.targets) == 1 else f"{key_added}_{name}" for name in trained.targets}
    for key in names.values():
        keys = annotation_keys(key)
        target.check_free(keys.uns, ("obs", keys.label), ("obs", keys.score), ("obsm", keys.probabilities))
    found = trained.predictions(target.data, modality=modality, threshold=threshold, device=device, dtype=dtype)
    slots: dict[str, dict[str, Any]] = {"obs": {}, "obsm": {}, "uns": {}}
    for name, prediction in found.items():
        for slot, fields in prediction.fields(names[name], trained.params()).items():
            slots[slot] |= fields
    return target.store(Results(**slots))

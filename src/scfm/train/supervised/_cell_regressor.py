"""Numbers of cells, by a fine-tuned foundation model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm.train.supervised._cell_model import CellModel
from scfm.train.supervised.backbone import Backbone
from scfm.train.supervised.setup import Setup
from scfm.train.supervised.targets import Numbers, Target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    import torch
    from anndata import AnnData
    from mudata import MuData
    from torch import nn

    from scfm._types import Compat
    from scfm.model import FoundationModel
    from scfm.run.device import Device
    from scfm.train.adapters import LoRA

__all__ = ["CellRegressor"]


@with_parameters
class CellRegressor(CellModel):
    """Learns a number of each cell, such as an age or a score, by squared error.

    Needs the extra ``scfm-tools[train]``.

    Parameters
    ----------
    %(fine_tuned)s
    head
        As for :class:`CellClassifier`; a module of your own gives ``(n_cells, 1)``.
    %(fine_tuning)s

    Raises
    ------
    KeyError
        If the column is missing.
    TypeError
        If the family has no layers to train.
    ValueError
        If the column does not hold numbers, no gene matches, or an argument is out of range.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()
    >>> adata.obs["depth"] = adata.obs["n_counts"].astype(float)
    >>> scfm.train.CellRegressor.setup_anndata(adata, values_key="depth")
    >>> model = scfm.train.CellRegressor(adata, model="scfm-mini", freeze=True)
    >>> model.train(max_epochs=1, lr=1e-3)
    >>> model.predict(adata[:3]).columns.tolist()
    ['value']
    """

    @typed
    def __init__(
        self,
        data: AnnData | MuData | str | Path | Sequence[str | Path] | None = None,
        model: str | Path | FoundationModel = "scfm-mini",
        *,
        head: Literal["linear", "bert", "attention"] | nn.Module = "linear",
        pooling: str | None = None,
        max_tokens: int | None = None,
        compat: Compat | None = None,
        freeze: int | bool | None = None,
        lora: LoRA | int | None = None,
        dropout: float = 0.02,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data, registry)
        backbone = Backbone.of(
            model,
            lora,
            freeze=freeze,
            dropout=dropout,
            pooling=pooling,
            max_tokens=max_tokens,
            compat=compat,
            options=options,
        )
        self._start(backbone, head)

    def _target(self, column: pd.Series, name: str) -> Target:
        return Numbers.of(Numbers().values(column, name), name)

    @classmethod
    @typed
    @with_parameters
    def setup_anndata(
        cls,
        adata: AnnData | MuData | str | Path | Sequence[str | Path],
        values_key: str,
        *,
        layer: str | None = None,
        use_raw: bool | None = None,
        gene_key: str | None = None,
        modality: str | None = None,
        donors_key: str | None = None,
    ) -> None:
        """Say which column and which matrix are trained on.

        Parameters
        ----------
        %(setup_data)s
        values_key
            Column of ``obs`` with numbers. Cells without one (NaN) are not trained on.
        %(setup_counts)s

        Raises
        ------
        KeyError
            If a column is not there.
        """
        setup = Setup(
            columns=(values_key,),
            layer=layer,
            use_raw=use_raw,
            gene_key=gene_key,
            modality=modality,
            donors_key=donors_key,
        )
        cls._set_up(adata, setup)

    @typed
    @with_parameters
    def predict(
        self,
        adata: AnnData | MuData | str | Path | Sequence[str | Path] | None = None,
        *,
        modality: str | None = None,
        device: Device | Sequence[Device] | None = None,
        dtype: str | torch.dtype | None = None,
        key_added: str | None = None,
    ) -> pd.DataFrame:
        """Predict the number of each cell.

        Parameters
        ----------
        %(predict_from)s
        device, dtype
            As for :func:`scfm.tl.embed`, but in float32 by default: heads can be sensitive to the rounding of bfloat16.
        key_added
            Store the result in ``obs[key_added]``, too, and how it was made in ``uns[key_added]["params"]``.

        Returns
        -------
        ``value`` by the name of the cell, float32, in the unit of the column; NaN for a cell without a gene of the model.
        """
        found = self.predictions(adata, modality=modality, device=device, dtype=dtype)
        if key_added is not None:
            self._stored(adata, found, key_added)
        (prediction,) = found.values()
        return prediction.frame()

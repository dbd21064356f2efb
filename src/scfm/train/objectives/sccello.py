"""The four losses of scCello (Yuan et al. 2024, arXiv:2408.12373)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from scfm._warn import warn
from scfm.nn import (
    CellTypeCoherenceLoss,
    MaskedGeneLoss,
    OntologyAlignmentLoss,
    RegularisationLoss,
    ScCelloNetwork,
    cell_representation,
)
from scfm.nn.sccello import CENTROIDS, ONTOLOGY
from scfm.ontology import bundled, read_ontology
from scfm.train.objective import IGNORED, Objective, Outputs, Term, TrainingBatch
from scfm.train.objectives.contrastive import pairs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scfm.model import FoundationModel

__all__ = ["ScCello"]


class ScCello(Objective):
    """Masked genes, cell types, their place in the Cell Ontology, and a regularisation, added up without weights.

    The losses are :class:`~scfm.nn.MaskedGeneLoss`, :class:`~scfm.nn.CellTypeCoherenceLoss`,
    :class:`~scfm.nn.OntologyAlignmentLoss` and :class:`~scfm.nn.RegularisationLoss`, each a mean within a batch, as in the
    published training; so a step is the mean of its batches by cells. Cells are represented by the projected hidden
    state of ``<cls>``. Genes are predicted in the first view; the second serves the alignment, and differs by its
    dropout (and where views change cells, by that). Cells without a label count for masked genes only.

    Parameters
    ----------
    ontology
        File of the Cell Ontology (:func:`scfm.ontology.read_ontology`); by default the one that comes with scfm.
    tau
        Temperature; by default that of the model.

    Raises
    ------
    ValueError
        If ``tau`` is not positive.
    """

    n_views: ClassVar[int] = 2
    masks: ClassVar[bool] = True

    def __init__(self, ontology: str | Path | None = None, tau: float | None = None) -> None:
        super().__init__()
        self.ontology, self.tau = ontology, tau
        if tau is not None:
            MaskedGeneLoss(tau)  # refuses one that is not positive

    def build(self, model: FoundationModel, network: nn.Module, cell_types: Sequence[str] = ()) -> None:
        """Make prototypes of the cell types and the tables of the ontology; they start anew, for labels differ.

        Warns if the network has no dropout.

        Raises
        ------
        TypeError
            If the network is not that of scCello.
        ValueError
            If there are no cell types, or the ontology does not know one of them.
        """
        if not isinstance(network, ScCelloNetwork):
            msg = f"The objective sccello trains models of the family 'sccello'; the network is a {type(network).__name__}."
            raise TypeError(msg)
        if not cell_types:
            msg = "The objective sccello needs cell types: name the column of obs that holds them by labels_key."
            raise ValueError(msg)
        if not network.config.dropout:
            warn(
                "The objective sccello compares two passes of a cell that differ by their dropout, which is 0 here: set "
                "architecture.dropout, published as 0.02, or views."
            )
        known = bundled() if self.ontology is None else read_ontology(self.ontology)
        terms = known.resolve(cell_types)
        config = model.config
        tau = config.tau if self.tau is None else self.tau
        self.masked = MaskedGeneLoss(tau)
        self.coherence = CellTypeCoherenceLoss(len(terms), config.hidden_size, tau)
        self.regularisation = RegularisationLoss(config.hidden_size)
        tables = known.similarity(terms), known.ancestor_mask(terms)
        self.alignment = OntologyAlignmentLoss(*map(torch.from_numpy, tables))

    def count(self, batch: TrainingBatch) -> int:
        """Cells with two views."""
        return len(pairs(batch)[0])

    def forward(self, outputs: Outputs, batch: TrainingBatch) -> Term:
        """The four losses, times the number of cells."""
        network, hidden = cast("ScCelloNetwork", outputs.network), outputs.hidden
        first, second = pairs(batch)
        losses = {"masked_genes": self._masked_genes(network, hidden, batch, first)}
        labels = np.full(len(first), -1) if batch.labels is None else batch.labels[first]
        labelled = np.flatnonzero(labels >= 0)
        if len(labelled):
            starts = batch.batch.firsts
            types = torch.from_numpy(labels[labelled]).to(hidden.device)
            z, z_prime = (self._represented(network, hidden[starts[view[labelled]]]) for view in (first, second))
            losses["coherence"] = self.coherence(z, types).loss
            losses["alignment"] = self.alignment(z, z_prime, types)
            losses["regularisation"] = self.regularisation(z, self.coherence.representations(types))
        total = torch.stack(list(losses.values())).sum() * len(first)
        return Term(total, {name: loss.detach() * len(first) for name, loss in losses.items()})

    def _masked_genes(
        self, network: ScCelloNetwork, hidden: Tensor, batch: TrainingBatch, first: np.ndarray[Any, Any]
    ) -> Tensor:
        in_first = np.zeros(len(batch.batch.lengths), bool)
        in_first[first] = True
        targets = np.where(np.repeat(in_first, batch.batch.lengths), batch.targets, IGNORED)
        words, head = network.word_embeddings.weight, cast("nn.Module", network.gene_head)
        return self.masked(hidden, torch.from_numpy(targets).to(hidden.device), words, head).loss

    def _represented(self, network: ScCelloNetwork, states: Tensor) -> Tensor:
        return cell_representation(cast("nn.Module", network.cell_head)(states), self.masked.tau)

    def published_tensors(self) -> dict[str, Tensor]:
        """Prototypes, the map of the regularisation, and the tables of the ontology."""
        affine, tables = self.regularisation.affine, (self.alignment.ancestors.int(), self.alignment.similarity)
        return {
            CENTROIDS: self.coherence.prototypes.weight.detach(),
            "affine_projection.weight": affine.weight.detach(),
            "affine_projection.bias": affine.bias.detach(),
            **dict(zip(ONTOLOGY, tables, strict=True)),
        }

    def state(self) -> dict[str, Any]:
        """Name and arguments."""
        return super().state() | {"ontology": None if self.ontology is None else str(self.ontology), "tau": self.tau}

"""scCello's network (Yuan et al. 2024, arXiv:2408.12373): a BERT with a projection of cells and one of genes.

Upstream adds three one-row tables to every position, where a BERT has its token types; here their sum is the token type.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scfm.nn.bert import BertEncoder, encoder_targets, init_weights
from scfm.nn.bert_config import BertConfig
from scfm.nn.published import published_keys
from scfm.nn.state_dict import Shapes, check_layers, compare_names, compare_shapes, copy_into, weight_and_bias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "ProjectionHead",
    "ScCelloConfig",
    "ScCelloNetwork",
    "check_sccello",
    "has_cell_head",
    "heads_in",
    "sccello_keys",
]

CELL_HEAD, GENE_HEAD = "cell_cls", "cls"
ONTOLOGY = ("cell_type_ancestor_mask", "ctgraph_sim")

_TOKEN_TYPE = "bert.embeddings.token_type_embeddings.weight"
_EVERYWHERE = tuple(f"bert.embeddings.{name}_embeddings.weight" for name in ("tf_class", "tf_superclass", "expbin"))
_UNUSED = ("cell", "prototype", "cellprot")
CENTROIDS = "learned_centroid.weight"


@dataclass(frozen=True)
class ScCelloConfig(BertConfig):
    """Sizes of scCello's network, and the temperature of its training.

    Raises
    ------
    ValueError
        As :class:`BertConfig`, or if ``tau`` is not positive.
    """

    tau: float = 0.01
    """Temperature of the training losses."""

    def __post_init__(self) -> None:
        BertConfig.__post_init__(self)
        tau: object = self.tau
        if not isinstance(tau, float) or not 0 < tau < inf:
            msg = f"tau must be a positive number, got {tau!r}."
            raise ValueError(msg)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read a published ``config.json``, as :meth:`BertConfig.from_dict`; the network has one token type."""
        sizes = BertConfig.from_dict({**config, "type_vocab_size": 1})
        return cls(**asdict(sizes), tau=config.get("tau"))  # type: ignore[arg-type]  # checked there


class ProjectionHead(nn.Module):
    """``W₂ · relu(LayerNorm(W₁ x + b₁)) + b₂``, all of one width.

    Parameters
    ----------
    hidden_size
        Features of a hidden state.
    eps
        Added to the variance in the layer norm.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-12) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.down = nn.Linear(hidden_size, hidden_size)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Project hidden states of shape ``(..., hidden_size)``."""
        return cast("Tensor", self.down(F.relu(self.norm(self.up(x)))))


class ScCelloNetwork(BertEncoder):
    """The encoder with scCello's projections.

    Parameters
    ----------
    config
        Sizes; one token type.
    n_layers
        Layers to build (default: all).
    cell_head
        Build the projection of cells, which fine-tuned models may lack.
    gene_head
        Build the projection of genes, too, which only training reads.

    Attributes
    ----------
    cell_head
        Projection of the hidden state of ``<cls>``, or ``None``.
    gene_head
        Projection of hidden states of genes and of the word embeddings, or ``None``.
    """

    def __init__(
        self, config: BertConfig, n_layers: int | None = None, *, cell_head: bool = True, gene_head: bool = False
    ) -> None:
        super().__init__(config, n_layers)
        sizes = config.hidden_size, config.layer_norm_eps
        self.cell_head = ProjectionHead(*sizes) if cell_head else None
        self.gene_head = ProjectionHead(*sizes) if gene_head else None

    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the weights of a published state dict into what is built.

        Parameters
        ----------
        tensors
            Tensors by published name; only those of what is built are looked up.

        Raises
        ------
        ValueError
            If names are missing or unexpected, or a tensor has another shape; the weights are then undefined.
        """
        _check_names(tensors, self.config, head=self.cell_head is not None)
        if self.word_embeddings.weight.is_meta:
            self.to_empty(device="cpu")
        targets = encoder_targets(self)
        token_type = targets.pop(_TOKEN_TYPE)
        parts = torch.empty(len(_EVERYWHERE), self.config.hidden_size)
        targets |= {name: parts[i : i + 1] for i, name in enumerate(_EVERYWHERE)}
        for name, head in ((CELL_HEAD, self.cell_head), (GENE_HEAD, self.gene_head)):
            if head is not None:
                targets |= _head_targets(name, head, tensors)
        copy_into(targets, tensors)
        with torch.no_grad():
            token_type.copy_(parts.sum(dim=0))

    def add_heads(self) -> None:
        """Draw the projections that are not there, for training."""
        sizes = self.config.hidden_size, self.config.layer_norm_eps
        self.cell_head = self.cell_head or ProjectionHead(*sizes)
        self.gene_head = self.gene_head or ProjectionHead(*sizes)

    def published(self) -> dict[str, Tensor]:
        """What is built by published name, sharing memory; the token type is in the first of upstream's three tables."""
        targets = {name: tensor.detach() for name, tensor in encoder_targets(self).items()}
        token_type = targets.pop(_TOKEN_TYPE)
        rest = torch.zeros_like(token_type)
        targets |= {name: rest if i else token_type for i, name in enumerate(_EVERYWHERE)}
        for name, head in ((CELL_HEAD, self.cell_head), (GENE_HEAD, self.gene_head)):
            if head is not None:
                targets |= _head_targets(name, head, dict.fromkeys(_bias_names(name)[:1], rest))
        return targets


def heads_in(names: Iterable[str]) -> tuple[bool, bool]:
    """Whether a state dict with these names holds the projection of cells, and that of genes, or a part of it."""
    found = {name.partition(".")[0] for name in names}
    return CELL_HEAD in found, GENE_HEAD in found


def gene_head(config: BertConfig, tensors: Mapping[str, Tensor]) -> ProjectionHead:
    """The projection of genes with its published weights; a ValueError if they are not there."""
    head = ProjectionHead(config.hidden_size, config.layer_norm_eps)
    copy_into(_head_targets(GENE_HEAD, head, tensors), tensors)
    return head


def has_cell_head(names: Iterable[str]) -> bool:
    """Whether a state dict with these names holds the projection of cells, or a part of it."""
    return heads_in(names)[0]


def check_sccello(shapes: Mapping[str, tuple[int, ...]], config: BertConfig) -> None:
    """Compare all names and shapes of a published state dict with a config, before anything is built.

    The projection of cells may be missing as a whole: fine-tuned models have none.

    Parameters
    ----------
    shapes
        Shape of each tensor by published name. The cell types of the ontology buffers and prototypes may be any number.
    config
        Sizes.

    Raises
    ------
    ValueError
        If names are missing or unexpected, or a tensor has another shape.
    """
    check_layers(shapes, config.n_layers)
    _check_names(shapes, config, head=has_cell_head(shapes))
    n_types, rows = ((*shapes.get(name, ()), 0)[0] for name in (ONTOLOGY[0], CENTROIDS))
    required, optional = sccello_keys(config, n_types=n_types, n_centroids=rows)
    compare_shapes(shapes, required | optional)
    if CENTROIDS in shapes and rows < n_types:
        msg = f"{CENTROIDS} has {rows} rows, fewer than the {n_types} cell types of the ontology."
        raise ValueError(msg)


def sccello_keys(
    config: BertConfig, *, head: bool = True, n_types: int = 398, n_centroids: int = 600
) -> tuple[Shapes, Shapes]:
    """Names and shapes of a published state dict.

    Parameters
    ----------
    config
        Sizes; all ``config.n_layers`` layers belong to the state dict.
    head
        Whether the projection of cells must be there.
    n_types, n_centroids
        Cell types of the ontology buffers, and rows of the table of prototypes.

    Returns
    -------
    required
        Tensors that must be there.
    optional
        Tensors that may be there. With ``head``, one of the two names of its last bias must be.
    """
    required, optional = published_keys(config, head=False)
    d = config.hidden_size
    del required[_TOKEN_TYPE]
    required |= dict.fromkeys(_EVERYWHERE, (1, d))
    needed, extra = _head_keys(CELL_HEAD, d)
    if head:
        required |= needed
    optional |= extra | needed
    for shapes in _head_keys(GENE_HEAD, d):
        optional |= shapes
    optional |= {"affine_projection.weight": (d, d), "affine_projection.bias": (d,), CENTROIDS: (n_centroids, d)}
    optional |= dict.fromkeys(ONTOLOGY, (n_types, n_types))
    for part in _UNUSED:
        name = f"binary_ce_loss_transform_{part}"
        optional |= {f"{name}.weight": (1, 1), f"{name}.bias": (1,)}
    return required, optional


def _head_keys(name: str, d: int) -> tuple[Shapes, Shapes]:
    """Tensors of a projection; its last bias has two names, of which a file may lack one."""
    layer = f"{name}.predictions"
    needed: Shapes = {f"{layer}.dense_{i}.weight": (d, d) for i in (1, 2)}
    needed |= {f"{layer}.{part}": (d,) for part in ("dense_1.bias", "layer_norm.weight", "layer_norm.bias")}
    return needed, dict.fromkeys(_bias_names(name), (d,))


def _bias_names(head: str) -> tuple[str, str]:
    return f"{head}.predictions.bias", f"{head}.predictions.dense_2.bias"


def _check_names(tensors: Mapping[str, object], config: BertConfig, *, head: bool) -> None:
    """Raise a ValueError for missing and unexpected names; no tensor is read."""
    required, optional = sccello_keys(config, head=head)
    names, found = list(required), set(tensors.keys())
    if head and not found.intersection(_bias_names(CELL_HEAD)):
        names.append(_bias_names(CELL_HEAD)[0])
    compare_names(tensors, names, optional, f"an scCello model of {config.n_layers} layers")


def _head_targets(name: str, head: ProjectionHead, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    layer = f"{name}.predictions"
    found = [alias for alias in _bias_names(name) if alias in set(tensors.keys())]
    if not found:
        msg = f"The state dict lacks {_bias_names(name)[0]} (or {_bias_names(name)[1]})."
        raise ValueError(msg)
    if len(found) == 2 and not torch.equal(tensors[found[0]], tensors[found[1]]):
        msg = f"{found[0]} and {found[1]} differ; they must be the same tensor."
        raise ValueError(msg)
    return {
        **weight_and_bias(f"{layer}.dense_1", head.up),
        **weight_and_bias(f"{layer}.layer_norm", head.norm),
        f"{layer}.dense_2.weight": head.down.weight.detach(),
        found[0]: head.down.bias.detach(),
    }

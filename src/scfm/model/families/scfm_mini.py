"""scfm-mini: a small model of our own that comes with the package."""

from __future__ import annotations

from pathlib import Path

from scfm.model.families.geneformer import Geneformer
from scfm.model.registry import register
from scfm.weights import ModelCard

__all__ = ["ScfmMini"]

_FOLDER = Path(__file__).parents[2] / "weights" / "scfm-mini"


@register([ModelCard.read(_FOLDER)])
class ScfmMini(Geneformer):
    """The bundled model: rank value encoding and a BERT as in Geneformer V1, pretrained by ``scripts/scfm_mini.yaml``.

    It is no substitute for a model trained on millions of cells; its page in the documentation gives measured figures.
    """

    family = "scfm_mini"
    published = None
    initial_architecture = {
        "hidden_size": 128,
        "n_layers": 2,
        "n_heads": 2,
        "intermediate_size": 256,
        "max_positions": 1024,
    }
    initial_tokens = ("<pad>", "<mask>")

    @classmethod
    def local_folder(cls, card: ModelCard) -> Path:
        """Folder inside the package."""
        return _FOLDER

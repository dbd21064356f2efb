"""Run by ``benchmarks.marker_genes`` in a process of its own: masked copies of a cell through scCello's own class.

``python upstream_marker_genes.py INPUT OUTPUT CHECKOUT BATCH THREADS [FOLDER]``: a file that torch wrote with ``copies`` and
``tensors``, the file to write, a checkout of scCello, copies at a time, and a folder to import transformers from (4.38 to
4.57). Modules that scCello imports and this path does not use are replaced by empty ones, and so is its Cell Ontology.
"""

from __future__ import annotations

import sys
import time
import types
from typing import Any

UNUSED = ("wandb", "ipdb", "rdflib", "datasets", "hickle", "torchmetrics", "torchmetrics.functional")
N_TYPES = 398


class Empty(types.ModuleType):
    """A module that has every name and a path, so that parts of it can be imported."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


def load(checkout: str, sizes: dict[str, Any], tensors: dict[str, Any]) -> Any:
    """scCello's class with these weights, in evaluation mode and without gradients, as its script has it."""
    import numpy as np
    import transformers.models.bert.modeling_bert  # before modules are replaced that it looks for

    sys.path.insert(0, checkout)
    for name in (*UNUSED, "torchmetrics.functional.classification"):
        sys.modules[name] = Empty(name)
    ontology = types.ModuleType("sccello.src.cell_ontology")
    ontology.get_forbidden_cell_type_contrast = lambda _: np.zeros((N_TYPES, N_TYPES), np.int32)
    ontology.get_hierarchy_cell_type_contrast = lambda _: (np.ones((N_TYPES, N_TYPES), np.int32),)
    import sccello.src

    sys.modules[ontology.__name__] = sccello.src.cell_ontology = ontology
    from sccello.src.model_prototype_contrastive import PrototypeContrastiveForMaskedLM

    config = transformers.BertConfig(**sizes, output_hidden_states=True, tie_word_embeddings=False)
    config.tau, config.data_branch, config.total_logging_steps = 0.01, "frac100", 40
    model = PrototypeContrastiveForMaskedLM(config)
    model.load_state_dict(tensors, strict=False)
    return model.eval().requires_grad_(False)


def main() -> None:
    source, target, checkout, batch, threads, *folder = sys.argv[1:]
    sys.path[:0] = folder
    import torch

    torch.set_num_threads(int(threads))
    given = torch.load(source, weights_only=True)
    model = load(checkout, given["sizes"], given["tensors"])
    batches = given["copies"].split(int(batch))
    model(batches[0])
    began = time.perf_counter()
    vectors = torch.cat([model(part).logits[:, -1] for part in batches])
    torch.save({"seconds": time.perf_counter() - began, "vectors": vectors}, target)


if __name__ == "__main__":
    main()

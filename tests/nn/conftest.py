from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from scfm.nn import BertConfig

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="session")
def peer() -> Callable[..., tuple[Any, BertConfig]]:
    """Build ``transformers.BertForMaskedLM`` with random weights, and the config we read from its config."""
    transformers = pytest.importorskip("transformers")

    def build(seed: int = 0, **sizes: Any) -> tuple[Any, BertConfig]:
        defaults = {
            "vocab_size": 60,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 32,
            "hidden_act": "relu",
            "layer_norm_eps": 1e-12,
            "pad_token_id": 0,
        }
        torch.manual_seed(seed)
        model = transformers.BertForMaskedLM(transformers.BertConfig(**defaults | sizes)).eval()
        with torch.no_grad():  # upstream starts with zero biases, which would hide a forgotten one
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.02)
        return model, BertConfig.from_dict(model.config.to_dict())

    return build

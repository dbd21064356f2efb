"""Small checkpoints in the published layouts, and slow, obvious oracles to compare with."""

from __future__ import annotations

from scfm.testing._checkpoints import write_geneformer
from scfm.testing._oracles import bert_hidden_states, rank_tokens

__all__ = ["bert_hidden_states", "rank_tokens", "write_geneformer"]

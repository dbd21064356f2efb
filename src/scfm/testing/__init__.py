"""Test helpers: the contract of a model, tiny checkpoints in published layouts, and slow reference implementations."""

from __future__ import annotations

from scfm.testing._checkpoints import write_geneformer, write_sccello
from scfm.testing._contract import check_model
from scfm.testing._oracles import bert_hidden_states, rank_tokens
from scfm.testing._perturb import perturb_effects
from scfm.testing._transcriptformer import (
    TranscriptFormerOracle,
    TranscriptFormerScores,
    esm2ce_cell,
    transcriptformer_cell,
    transcriptformer_scores,
    transcriptformer_states,
    transcriptformer_tokens,
    write_transcriptformer,
)

__all__ = [
    "TranscriptFormerOracle",
    "TranscriptFormerScores",
    "bert_hidden_states",
    "check_model",
    "esm2ce_cell",
    "perturb_effects",
    "rank_tokens",
    "transcriptformer_cell",
    "transcriptformer_scores",
    "transcriptformer_states",
    "transcriptformer_tokens",
    "write_geneformer",
    "write_sccello",
    "write_transcriptformer",
]

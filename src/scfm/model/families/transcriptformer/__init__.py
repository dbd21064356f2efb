"""TranscriptFormer (Pearce et al. 2025, doi:10.1101/2025.04.25.650731): a causal transformer over genes and counts."""

from scfm.model.families.transcriptformer.options import TranscriptFormerOptions
from scfm.model.families.transcriptformer.recipe import TranscriptFormer

__all__ = ["TranscriptFormer", "TranscriptFormerOptions"]

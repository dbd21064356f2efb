"""Cards of the published TranscriptFormer checkpoints, and of the ESM-2 baseline that uses their gene vectors."""

from __future__ import annotations

from typing import Any

from scfm.weights import ModelCard

__all__ = ["ESM2CE_CARDS", "SPECIAL_TOKENS", "TRANSCRIPTFORMER_CARDS"]

SOURCE = "https://czi-transcriptformer.s3.amazonaws.com"
PAPER = "10.1101/2025.04.25.650731"
SPECIAL_TOKENS = ("unknown", "[PAD]", "[START]", "[END]", "[RD]", "[CELL]", "[MASK]")
N_LAYERS, WIDTH, GENE_VECTOR_SIZE, MAX_GENES = 12, 2048, 2560, 2047

_CHECKPOINTS: dict[str, dict[str, Any]] = {
    "sapiens": {
        "species": "human",
        "vocab_size": 23_829,
        "n_parameters": 429_000_000,
        "description": "57 million human cells",
    },
    "exemplar": {
        "species": "human, mouse, zebrafish, fruit fly and C. elegans",
        "vocab_size": 110_290,
        "n_parameters": 824_000_000,
        "description": "110 million cells of 5 species",
    },
    "metazoa": {
        "species": "human and 11 other species",
        "vocab_size": 247_388,
        "n_parameters": 1_077_000_000,
        "description": "112 million cells of 12 species from human to malaria parasite",
    },
}


def _card(name: str, values: dict[str, Any], *, baseline: bool) -> ModelCard:
    sizes = (
        {"n_layers": 0, "hidden_size": GENE_VECTOR_SIZE} if baseline else {"n_layers": N_LAYERS, "hidden_size": WIDTH}
    )
    frozen = values["vocab_size"] * GENE_VECTOR_SIZE
    what = "sums of the ESM-2 vectors of the genes, without a network; vocabulary: " if baseline else ""
    return ModelCard(
        id=f"{'esm2ce' if baseline else 'tf'}-{name}",
        family="esm2ce" if baseline else "transcriptformer",
        architecture={"vocab_size": values["vocab_size"], **sizes},
        pooling="cell",
        max_tokens=MAX_GENES + 1,
        special_tokens={token: i for i, token in enumerate(SPECIAL_TOKENS)},
        aliases=() if baseline else (f"transcriptformer-{name}",),
        species=values["species"],
        source=SOURCE,
        source_file=f"weights/tf_{name}.tar.gz",
        license="MIT",
        paper=PAPER,
        description=what + values["description"],
        n_parameters=frozen if baseline else values["n_parameters"],
    )


TRANSCRIPTFORMER_CARDS = tuple(_card(name, values, baseline=False) for name, values in _CHECKPOINTS.items())
ESM2CE_CARDS = tuple(_card(name, values, baseline=True) for name, values in _CHECKPOINTS.items())

"""Folders of TranscriptFormer as their authors publish them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scfm._paths import read_json
from scfm.genes import Vocabulary
from scfm.model.families.transcriptformer.genes import files_of
from scfm.model.published import Dictionaries, Published
from scfm.weights import ModelCard
from scfm.weights.gene_vectors import vector_size

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["TranscriptFormerFolders"]

ASSAYS_FILE = "assay_vocab.json"


class TranscriptFormerFolders(Published):
    """Folders with gene files and assays in ``vocabs``."""

    def recognizes(self, config: Mapping[str, Any]) -> bool:
        """Published files have a section ``model.model_config``."""
        model = config.get("model")
        return isinstance(model, dict) and "model_config" in model

    def read(self, folder: Path, config: Mapping[str, Any], dictionaries: Dictionaries) -> tuple[ModelCard, Vocabulary]:
        """Read config, gene names and assays; the sizes that the config lacks are those of the vocabularies."""
        from scfm.nn import TranscriptFormerConfig

        vocabulary, assays, size = _vocabulary(folder, config, dictionaries)
        sizes = TranscriptFormerConfig.from_dict(
            config, vocab_size=vocabulary.size, n_assays=max(assays.values()) + 1, gene_vector_size=size
        )
        card = ModelCard(
            id=folder.resolve().name,
            family="transcriptformer",
            architecture=sizes.architecture(),
            pooling="cell",
            max_tokens=sizes.max_genes + 1,
            special_tokens=dict(vocabulary.special_tokens),
            aux_tokens={"assay": assays},
        )
        return card, vocabulary

    def read_vocabulary(self, card: ModelCard, dictionaries: Dictionaries) -> Vocabulary:
        """Read the gene names of a registered model from its gene files."""
        return Vocabulary.of_names(
            files_of(None, None, dictionaries).names(), card.special_tokens, species=card.species
        )


def _vocabulary(folder: Path, config: Mapping[str, Any], given: Dictionaries) -> tuple[Vocabulary, dict[str, int], int]:
    """Genes and special tokens, the id of each assay, and the length of gene vectors; no gene vector is read."""
    model = config.get("model")
    if not isinstance(model, dict) or "model_config" not in model:
        msg = f"{folder / 'config.json'} lacks the section model.model_config: it is none of a TranscriptFormer."
        raise ValueError(msg)
    data = model.get("data_config")
    data = data if isinstance(data, dict) else {}
    specials = _strings(data, "special_tokens")
    files = files_of(folder, _strings(data, "esm2_mappings"), given)
    names = [name for name in files.names() if name not in set(specials)]
    near = files.paths[0].parent / ASSAYS_FILE
    path = near if near.exists() else folder / "vocabs" / ASSAYS_FILE
    if not path.exists():
        msg = f"{folder / 'vocabs'} lacks {ASSAYS_FILE}, the assays of the model."
        raise FileNotFoundError(msg)
    assays = read_json(path)
    if "unknown" not in assays or not all(isinstance(i, int) and 0 <= i < 1_000_000 for i in assays.values()):
        msg = f"{path} must give an id from 0 on to every assay, 'unknown' among them."
        raise ValueError(msg)
    vocabulary = Vocabulary.of_names(names, specials, species=files.species)
    return vocabulary, assays, vector_size(files.paths[0])


def _strings(section: Mapping[str, Any], key: str) -> list[str]:
    values = section.get(key)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        msg = f"The model config must list names under model.data_config.{key}, got {values!r}."
        raise ValueError(msg)
    return values

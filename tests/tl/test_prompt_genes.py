"""scfm.tl.prompt_genes: what a causal model expects after some genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import scfm
from scfm.nn import TranscriptFormerHeads

from ..families import IDS, TINY

if TYPE_CHECKING:
    from pathlib import Path

    from scfm.model import FoundationModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FoundationModel:
    return TINY["TranscriptFormer"].load(tmp_path_factory.mktemp("model"))


def test_equals_the_gene_head_after_the_prompt(model: FoundationModel) -> None:
    prompts = {"one": IDS[4:5], "two": [IDS[9], IDS[2]]}
    found = scfm.tl.prompt_genes(model, prompts, count=2, device="cpu")
    assert found.index.tolist() == model.vocabulary.genes.tolist()
    network, heads = model.network(model.n_layers).eval(), TranscriptFormerHeads(model.config)
    heads.load_published(model.tensors)
    token_of = dict(zip(model.vocabulary.genes.tolist(), model.vocabulary.tokens.tolist(), strict=True))
    start = model.card.special_tokens["[START]"]
    cell = scfm.datasets.synthetic(1, len(IDS), genes_per_cell=3)
    cell.var_names = IDS
    with model.session(cell) as session:
        block = next(session.tokens())
    assert block.tokens[0] == start  # of cells whose assay is not known
    for name, genes in prompts.items():
        tokens = torch.tensor([start, *(token_of[gene] for gene in genes)])
        counts = torch.tensor([float(block.values[0]), *[2.0] * len(genes)])
        with torch.inference_mode():
            states = network(tokens, counts, [len(tokens)])[[0, -1]]
            cap = float(model.config.softcap)
            logits = cap * torch.tanh(heads.gene_mlp(states) / cap)
            before, after = torch.log_softmax(logits.double(), dim=1).numpy()
        expected = (after - before)[model.vocabulary.tokens]
        own = np.isin(model.vocabulary.genes, genes)
        assert found[name].isna().to_numpy().tolist() == own.tolist()
        np.testing.assert_allclose(found[name][~own], expected[~own], atol=2e-6)


def test_genes_alone(model: FoundationModel) -> None:
    found = scfm.tl.prompt_genes(model, IDS[:2], device="cpu")
    assert found.columns.tolist() == IDS[:2]


def test_errors(model: FoundationModel, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="does not know ENSG99"):
        scfm.tl.prompt_genes(model, {"a": [IDS[0], "ENSG99"]})
    with pytest.raises(ValueError, match="a are empty or name a gene twice"):
        scfm.tl.prompt_genes(model, {"a": [IDS[0], IDS[0]]})
    with pytest.raises(ValueError, match="names a gene twice, by different names"):
        scfm.tl.prompt_genes(model, {"a": [IDS[0], f"{IDS[0]}.3"]})
    with pytest.raises(ValueError, match="prompts is empty"):
        scfm.tl.prompt_genes(model, [])
    with pytest.raises(ValueError, match="count=0"):
        scfm.tl.prompt_genes(model, IDS[:1], count=0)
    with pytest.raises(TypeError, match="prompts take a causal model"):
        scfm.tl.prompt_genes("scfm-mini", ["LYZ"])

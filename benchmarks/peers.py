"""The peers: what upstream does, written down plainly, with transformers and numpy only."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    Cells = list[NDArray[np.int64]]

# (layers, hidden, heads, ffn, positions, vocabulary), pooling, special tokens, suffix of the dictionary files
MODELS: dict[str, dict[str, Any]] = {
    "V1-10M": {"sizes": (6, 256, 4, 512, 2048, 25426), "pooling": "mean", "special": False, "dictionary": "gc30M"},
    "V2-104M": {"sizes": (12, 768, 12, 3072, 4096, 20275), "pooling": "cls", "special": True, "dictionary": "gc104M"},
}
CLS, EOS = 2, 3


def random_model(name: str) -> Any:
    """``BertForMaskedLM`` of a published shape with random weights, in evaluation mode."""
    import transformers

    layers, hidden, heads, ffn, positions, vocab = MODELS[name]["sizes"]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        max_position_embeddings=positions,
        hidden_act="relu",
        layer_norm_eps=1e-12,
        pad_token_id=0,
    )
    return transformers.BertForMaskedLM(config).eval()


def rank_tokens(adata: AnnData, name: str, dictionaries: Path | None) -> Cells:
    """Rank-value tokens of each cell: genes by count / median, largest first (Theodoris et al. 2023).

    The order does not depend on the total count of the cell. Without dictionaries, every gene gets some token and
    median 1, which makes cells of the right length.
    """
    *_, positions, vocab = MODELS[name]["sizes"]
    special, suffix = MODELS[name]["special"], MODELS[name]["dictionary"]
    if dictionaries is None:
        first = 4 if special else 2
        ids = first + np.arange(adata.n_vars) % (vocab - first)
        medians = np.ones(adata.n_vars)
    else:
        tokens = pickle.loads(next(dictionaries.rglob(f"token_dictionary_{suffix}.pkl")).read_bytes())
        median = pickle.loads(next(dictionaries.rglob(f"gene_median_dictionary_{suffix}.pkl")).read_bytes())
        adata = adata[:, [gene in tokens and gene in median for gene in adata.var_names]]
        ids = np.array([tokens[gene] for gene in adata.var_names])
        medians = np.array([median[gene] for gene in adata.var_names])
    counts = adata.X.tocsr()
    cells = []
    for start, end in zip(counts.indptr[:-1], counts.indptr[1:], strict=True):
        columns = counts.indices[start:end]
        order = np.argsort(-(counts.data[start:end] / medians[columns]), kind="stable")
        ranked = ids[columns][order].astype(np.int64)
        cells.append(np.r_[CLS, ranked[: positions - 2], EOS] if special else ranked[:positions])
    return cells


def upstream_embed(model: Any, cells: Sequence[NDArray[np.int64]], pooling: str, batch_size: int) -> NDArray[Any]:
    """The official procedure: longest first, padded per batch, all hidden states and all logits, second-to-last layer.

    Returns
    -------
    float32, shape (cells, d), in input order.
    """
    rows: list[Any] = [None] * len(cells)
    order = np.argsort([-len(cell) for cell in cells], kind="stable")
    for start in range(0, len(cells), batch_size):
        chosen = order[start : start + batch_size]
        longest = max(len(cells[i]) for i in chosen)
        ids = torch.from_numpy(np.stack([np.pad(cells[i], (0, longest - len(cells[i]))) for i in chosen]))
        mask = torch.arange(longest) < torch.tensor([len(cells[i]) for i in chosen])[:, None]
        with torch.no_grad():
            out = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        hidden = out.hidden_states[-2]
        if pooling == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        for i, row in zip(chosen, pooled.numpy(), strict=True):
            rows[i] = row
    return np.stack(rows)

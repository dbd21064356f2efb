"""Plain numpy versions of the encoder and the network of BERT families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    from scfm.genes import Vocabulary

__all__ = ["bert_hidden_states", "rank_tokens"]


def rank_tokens(
    counts: ArrayLike, tokens: ArrayLike, vocabulary: Vocabulary, max_tokens: int
) -> list[NDArray[np.int32]]:
    """Rank value encoding of a dense matrix, one cell at a time.

    Parameters
    ----------
    counts
        Shape ``(n_cells, n_vars)``.
    tokens
        Token of each column, −1 for none; columns of one token are added up.
    vocabulary
        Gives medians and special tokens.
    max_tokens
        Longest sequence, special tokens included.

    Returns
    -------
    Tokens of each cell, most characteristic gene first, ties in vocabulary order.
    """
    matrix, columns = np.asarray(counts, dtype=np.float64), np.asarray(tokens)
    summed = np.zeros((len(matrix), vocabulary.size))
    for column, token in enumerate(columns):
        if token >= 0:
            summed[:, token] += matrix[:, column]
    specials = vocabulary.special_tokens
    first, last = ([specials[name]] if name in specials else [] for name in ("<cls>", "<eos>"))
    n_kept = max_tokens - len(first) - len(last)
    factors = 1.0 / vocabulary.median_of_token
    encoded = []
    for cell in summed:
        present = np.flatnonzero(cell)
        order = np.argsort(-(cell * factors)[present], kind="stable")
        encoded.append(np.asarray([*first, *present[order][:n_kept], *last], dtype=np.int32))
    return encoded


def bert_hidden_states(
    tokens: ArrayLike, weights: Mapping[str, ArrayLike], config: Mapping[str, Any]
) -> list[NDArray[np.float64]]:
    """All hidden states of one cell in float64, from published weights.

    Parameters
    ----------
    tokens
        Shape ``(n_tokens,)``.
    weights
        Published state dict.
    config
        Published ``config.json``.

    Returns
    -------
    ``n_layers + 1`` arrays of shape ``(n_tokens, d)``; the first is the output of the embedding block.
    """
    ids = np.asarray(tokens)
    w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    eps, heads = config["layer_norm_eps"], config["num_attention_heads"]

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def attention(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        q, k, v = (
            np.stack(np.split(dense(x, f"{name}.self.{part}"), heads, axis=1)) for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.concatenate(list(weights @ v), axis=1)

    prefix = "bert.embeddings."
    x = w[f"{prefix}word_embeddings.weight"][ids]
    for name in ("token_type", "tf_class", "tf_superclass", "expbin"):  # the last three are scCello's
        x = x + w.get(f"{prefix}{name}_embeddings.weight", np.zeros((1, 1)))[0]
    x = norm(x + w[f"{prefix}position_embeddings.weight"][: len(ids)], f"{prefix}LayerNorm")
    states = [x]
    for i in range(config["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{i}"
        x = norm(
            dense(attention(x, f"{layer}.attention"), f"{layer}.attention.output.dense") + x,
            f"{layer}.attention.output.LayerNorm",
        )
        wide = np.maximum(dense(x, f"{layer}.intermediate.dense"), 0)
        x = norm(dense(wide, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")
        states.append(x)
    return states

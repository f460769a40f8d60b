"""What each token contributes to the vector of its text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.tokens.token_batch import positions_of


def token_shares(
    lengths: NDArray[np.int64], pooling: str, prompt_tokens: int = 0
) -> NDArray[np.float32]:
    """Return the share each token has in the vector of its text; all poolings but `max` are sums.

    Args:
        lengths: Tokens of each text, (n,).
        pooling: Name that sentence-transformers has for it; not `max`.
        prompt_tokens: Tokens at the start of every text that have no share.

    Returns:
        Float32 of shape (t,), for the t tokens of all texts.
    """
    size = np.repeat(lengths, lengths)
    position = positions_of(lengths)
    counted = position >= prompt_tokens
    weights: NDArray[np.floating[Any]]
    match pooling:
        case "cls":
            weights = (position == prompt_tokens) * 1.0
        case "lasttoken":
            weights = (counted & (position == size - 1)) * 1.0
        case "weightedmean":
            weights = counted * (position + 1.0)
        case _:
            weights = counted * 1.0
    text = np.repeat(np.arange(len(lengths)), lengths)
    total = np.maximum(np.bincount(text, weights, minlength=len(lengths)), 1e-9)[text]
    if pooling == "mean_sqrt_len_tokens":
        total = np.sqrt(total)
    return (weights / total).astype(np.float32)

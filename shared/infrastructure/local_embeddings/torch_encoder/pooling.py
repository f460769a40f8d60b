"""From the vectors of tokens to those of texts."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from shared.infrastructure.local_embeddings.tokens.shares import token_shares
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch, positions_of

POOLINGS = ("mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean")
"""Names of the poolings, those of sentence-transformers."""


def pooled_rows(lengths: NDArray[np.int64], prompt_tokens: int) -> NDArray[np.int32]:
    """Return the tokens of a maximum, (t,): in the place of one left out, the last of its text."""
    rows = np.arange(int(lengths.sum()), dtype=np.int32)
    if prompt_tokens:
        last = np.repeat(np.cumsum(lengths) - 1, lengths).astype(np.int32)
        rows = np.where(positions_of(lengths) < prompt_tokens, last, rows)
    return rows


def pool(
    tokens: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor, shares: torch.Tensor | None
) -> torch.Tensor:
    """Reduce tokens (t, dim) to texts, in float32.

    Args:
        tokens: Vectors of the tokens; what lies behind the last text is not read.
        rows: Token to read in the place of each, int32 (t,).
        offsets: Where each text begins and the last one ends, int32 (n + 1,).
        shares: Share of each token, float32 (t,); None takes the maximum.

    Returns:
        Vectors (n + 1, dim), float32: those of the texts, then one of what lies behind the last.
    """
    # A bag ends where the next begins, so that an end given as one more beginning bounds the last.
    return functional.embedding_bag(
        rows,
        tokens.float(),
        offsets,
        mode="max" if shares is None else "sum",
        per_sample_weights=shares,
    )


def pool_texts(tokens: torch.Tensor, batch: TokenBatch, pooling: str) -> torch.Tensor:
    """Reduce the tokens of a batch (t, dim), which lie one after another, to texts (n, dim)."""
    is_max = pooling == "max"
    rows = pooled_rows(batch.lengths, batch.prompt_tokens if is_max else 0)
    shares = None if is_max else token_shares(batch.lengths, pooling, batch.prompt_tokens)
    vectors = pool(
        tokens,
        torch.as_tensor(rows, device=tokens.device),
        torch.as_tensor(batch.offsets.astype(np.int32), device=tokens.device),
        None if shares is None else torch.as_tensor(shares, device=tokens.device),
    )
    return vectors[: len(batch)]

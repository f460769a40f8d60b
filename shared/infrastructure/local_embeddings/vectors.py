"""Arithmetic on vectors: pooling outside the model, first dimensions, and lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.config import Pooling
from shared.infrastructure.local_embeddings.tokens.shares import token_shares
from shared.infrastructure.resilience.errors import ConfigurationError

Vectors = NDArray[np.float32]

_SMALLEST_NORM = 1e-12


def pool(
    tokens: Vectors, mask: NDArray[np.int64], pooling: Pooling, prompt_tokens: int = 0
) -> Vectors:
    """Reduce the vectors of tokens to those of texts.

    Args:
        tokens: Vectors of the tokens, float32 of shape (n, s, dim).
        mask: 1 where a text has a token and 0 in the padding, which is on the right; (n, s).
        pooling: How.
        prompt_tokens: Tokens at the start of every text that are left out.

    Returns:
        One vector a text, (n, dim); zero where no token is left.
    """
    rows, lengths = np.arange(len(tokens)), mask.sum(axis=1)
    pooled: Vectors
    match pooling:
        case Pooling.CLS:
            pooled = tokens[rows, np.minimum(prompt_tokens, tokens.shape[1] - 1)]
        case Pooling.LAST_TOKEN:
            pooled = tokens[rows, lengths - 1]
        case Pooling.MAX:
            counted = token_weights(lengths, tokens.shape[1], Pooling.MEAN, prompt_tokens) > 0
            pooled = np.where(counted[:, :, None], tokens, np.float32(-np.inf)).max(axis=1)
        case Pooling.MEAN | Pooling.MEAN_SQRT_LEN | Pooling.WEIGHTED_MEAN:
            weights = token_weights(lengths, tokens.shape[1], pooling, prompt_tokens)
            pooled = (weights[:, None, :] @ tokens)[:, 0]
    pooled[lengths <= prompt_tokens] = 0.0
    return pooled


def token_weights(
    lengths: NDArray[np.int64], width: int, pooling: Pooling, prompt_tokens: int = 0
) -> Vectors:
    """Return the share each token has in the vector of its text, for poolings that are a sum.

    Args:
        lengths: Tokens of each text, (n,).
        width: Tokens of a padded text, s.
        pooling: MEAN, MEAN_SQRT_LEN or WEIGHTED_MEAN.
        prompt_tokens: Tokens at the start of every text that have no share.

    Returns:
        Float32 of shape (n, s); the sum over a text's tokens, each times its share, is its vector.
    """
    weights = np.zeros((len(lengths), width), np.float32)
    real: NDArray[np.bool_] = np.arange(width) < lengths[:, None]
    weights[real] = token_shares(lengths, pooling, prompt_tokens)
    return weights


def shortened(vectors: Vectors, dimensions: int) -> Vectors:
    """Return a view of the first `dimensions` numbers of vectors (n, dim).

    Their lengths change: bring them to 1 afterwards, not before.

    Raises:
        ConfigurationError: The vectors do not have so many.
    """
    check_dimensions(dimensions, vectors.shape[1])
    return vectors[:, :dimensions]


def check_dimensions(dimensions: int, available: int) -> None:
    """Refuse a number of dimensions that the model does not have.

    Raises:
        ConfigurationError: It is below 1 or above `available`.
    """
    if not 1 <= dimensions <= available:
        raise ConfigurationError(
            f"dimensions must be between 1 and the model's {available}, not {dimensions}"
        )


def normalized(vectors: Vectors) -> Vectors:
    """Return vectors (n, dim) scaled to length 1, float32; a zero vector stays zero."""
    # Summed in double precision: there, the square of no float32 overflows or vanishes.
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    norms = np.maximum(np.sqrt(squares), _SMALLEST_NORM).astype(np.float32)
    scaled: Vectors = np.divide(vectors, norms[:, None], dtype=np.float32)
    return scaled

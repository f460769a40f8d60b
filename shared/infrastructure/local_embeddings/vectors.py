"""Arithmetic on vectors: pooling outside the model, and lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.config import Pooling

Vectors = NDArray[np.float32]

_SMALLEST_NORM = np.float32(1e-12)


def pool(tokens: Vectors, mask: NDArray[np.int64], pooling: Pooling) -> Vectors:
    """Reduce token vectors (n, s, dim), padded on the right, to text vectors (n, dim)."""
    pooled: Vectors
    match pooling:
        case Pooling.MEAN:
            weights = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1)
            pooled = (weights.astype(np.float32)[:, None, :] @ tokens)[:, 0]
        case Pooling.CLS:
            pooled = tokens[:, 0]
        case Pooling.MAX:
            pooled = np.where(mask[:, :, None] > 0, tokens, np.float32(-np.inf)).max(axis=1)
        case Pooling.LAST_TOKEN:
            pooled = tokens[np.arange(len(tokens)), mask.sum(axis=1) - 1]
    return pooled


def normalized(vectors: Vectors) -> Vectors:
    """Return vectors (n, dim) scaled to length 1; a zero vector stays zero."""
    norms: Vectors = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return np.divide(vectors, np.maximum(norms, _SMALLEST_NORM), dtype=np.float32)

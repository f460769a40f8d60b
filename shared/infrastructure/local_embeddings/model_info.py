"""What a model says of itself, and what it makes of the vectors that it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shared.infrastructure.local_embeddings.backends import BackendSpec
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig
from shared.infrastructure.local_embeddings.engines import Engines
from shared.infrastructure.local_embeddings.vectors import (
    Vectors,
    check_dimensions,
    normalized,
    shortened,
)


def model_info(
    config: LocalEmbeddingConfig, engines: Engines, workers: int | None
) -> dict[str, Any]:
    """Return facts as plain JSON types; what only loading tells is None before the first."""
    spec, engine = engines.spec, engines.ready
    return {
        "model_name": config.model_name,
        "backend": config.backend.value,
        "loaded": engine is not None,
        "device": spec.device if spec else config.device,
        "device_reason": spec and spec.device_reason,
        "embedding_dimension": spec and spec.dimension,
        "max_length": spec.max_length if spec else config.max_length,
        "pooling": spec.pooling if spec else config.pooling,
        "dtype": spec.dtype if spec else config.dtype,
        "normalize": config.normalize,
        "dimensions": config.dimensions or (spec and spec.dimensions),
        "batch_size": engine.limits.max_rows if engine else config.batch_size,
        "max_batch_tokens": engine.limits.budget.limit if engine else config.max_batch_tokens,
        "batch_tokens_now": engine and engine.limits.budget.current,
        "workers": engine.workers if engine else workers,
        "packed": spec and spec.packed,
        "batch_invariant": spec and spec.batch_invariant,
        "prompts": dict(spec.prompts) if spec else None,
        "truncation_side": spec and spec.truncation_side,
        "default_prompt": spec and spec.default_prompt,
        "fingerprint": spec and spec.fingerprint,
        "model_path": spec and spec.model_path,
        "source": spec and spec.source,
    }


def finisher(
    spec: BackendSpec, config: LocalEmbeddingConfig, dimensions: int | None
) -> Callable[[Vectors], Vectors]:
    """Return what makes a caller's vectors of the model's.

    Raises:
        ConfigurationError: The model does not have so many dimensions.
    """
    if (wanted := dimensions) is None:
        wanted = config.dimensions or spec.dimensions
    scaled = normalized if config.normalize else _unchanged
    if wanted is None:
        return scaled
    check_dimensions(wanted, spec.dimension)
    return lambda vectors: scaled(shortened(vectors, wanted))


def _unchanged(vectors: Vectors) -> Vectors:
    return vectors

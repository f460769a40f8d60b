"""How large a forward pass may be."""

from __future__ import annotations

from dataclasses import dataclass

from shared.infrastructure.local_embeddings.backends import BackendSpec
from shared.infrastructure.local_embeddings.calibration import (
    CalibrationKey,
    calibrated_batch_tokens,
)
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig
from shared.infrastructure.local_embeddings.devices import usable_cpus
from shared.infrastructure.local_embeddings.memory.governor import MemoryGovernor
from shared.infrastructure.local_embeddings.memory.token_budget import TokenBudget

# Tokens of the shortest text: what is between its special tokens.
_FEWEST_TOKENS = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a pass.

    Attributes:
        max_rows: Texts at most.
        budget: Tokens at most, padding included; fewer while memory is short.
        governor: Knows whether memory is short.
    """

    max_rows: int
    budget: TokenBudget
    governor: MemoryGovernor


def limits_of(config: LocalEmbeddingConfig, spec: BackendSpec, governor: MemoryGovernor) -> Limits:
    """Return the bounds of a loaded model's passes: as configured, as measured here, or usual."""
    threads = config.threads or usable_cpus()
    key = CalibrationKey(spec.fingerprint, config.backend, spec.device, spec.dtype, threads)
    tokens = (
        config.max_batch_tokens
        or calibrated_batch_tokens(config.cache_dir, key)
        or spec.batch_tokens
    )
    return Limits(_max_rows(config, spec), TokenBudget(tokens), governor)


def _max_rows(config: LocalEmbeddingConfig, spec: BackendSpec) -> int:
    # A GPU is kept busy by tokens, so that only a bound somebody set is one there.
    if spec.device == "cpu" or "batch_size" in config.model_fields_set:
        return config.batch_size
    return max(config.batch_size, spec.batch_tokens // _FEWEST_TOKENS)

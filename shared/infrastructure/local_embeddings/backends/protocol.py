"""What a local model asks of the library that runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shared.infrastructure.local_embeddings.tokens import TokenBatch
from shared.infrastructure.local_embeddings.vectors import Vectors


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """Facts of a loaded model; they do not change while it is loaded.

    Attributes:
        dimension: Numbers in a vector.
        max_length: Tokens of a text that are read.
        pooling: How token vectors become one.
        dtype: Number format of the arithmetic.
        device: Where it runs.
        batch_invariant: Whether a text's vector is the same, to 1e-5, whatever runs beside it.
        batch_tokens: Tokens in one forward pass, padding included, that run fastest.
        device_reason: Why this device.
        fingerprint: SHA-256 of all that decides a text's vector.
        model_path: Directory of the model.
        source: Where the model was found.
        prompts: Prompts by name that a caller may put before a text.
    """

    dimension: int
    max_length: int
    pooling: str = "mean"
    dtype: str = "float32"
    device: str = "cpu"
    batch_invariant: bool = True
    batch_tokens: int = 1024
    device_reason: str = "as configured"
    fingerprint: str = ""
    model_path: str = ""
    source: str = "directory"
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])


class EmbeddingBackend(Protocol):
    """A loaded model. One thread calls it, so that it needs no lock."""

    @property
    def spec(self) -> BackendSpec:
        """Facts of the model."""
        ...

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        """Return the token ids of each text, cut to `spec.max_length`."""
        ...

    def forward(self, batch: TokenBatch) -> Vectors:
        """Return pooled vectors that are not normalised, float32 of shape (n, dimension)."""
        ...

    def close(self) -> None:
        """Let go of the model's memory; no other method is called after it."""
        ...

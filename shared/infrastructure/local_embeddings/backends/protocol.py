"""What a local model asks of the library that runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.config import TokenizeOptions
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
from shared.infrastructure.local_embeddings.vectors import Vectors


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """Facts of a loaded model; they do not change while it is loaded.

    Attributes:
        dimension: Numbers in a vector.
        max_length: Tokens of a text that are read.
        dimensions: How many of a vector's first numbers the model's authors want; None is all.
        pooling: How token vectors become one.
        dtype: Number format of the arithmetic.
        device: Where it runs.
        batch_invariant: Whether a text's vector is the same, to 1e-5, whatever runs beside it.
        batch_tokens: Tokens in one forward pass, padding included, that run fastest.
        packed: Whether texts of different lengths share a pass without padding.
        concurrent: Whether several threads may run `forward` at once over one copy of the weights.
        device_reason: Why this device.
        fingerprint: SHA-256 of all that decides a text's vector.
        model_path: Directory of the model.
        source: Where the model was found.
        prompts: Prompts by name that a caller may put before a text.
        default_prompt: What is put before a text whose caller names no prompt.
        vocabulary: Token ids are below it; None if that is not known.
        truncation_side: End of a text that is dropped if nobody says which: `left` or `right`.
        token_bytes: Working memory that a pass takes for a token, estimated.
        score_bytes: What it takes besides for a token and each other one that it attends to.
        tokenizes_anywhere: Whether any thread may call `tokenize` at any time, and a short text
            takes it some microseconds.
    """

    dimension: int
    max_length: int
    dimensions: int | None = None
    pooling: str = "mean"
    dtype: str = "float32"
    device: str = "cpu"
    batch_invariant: bool = True
    batch_tokens: int = 1024
    packed: bool = False
    concurrent: bool = True
    device_reason: str = "as configured"
    fingerprint: str = ""
    model_path: str = ""
    source: str = "directory"
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    default_prompt: str = ""
    vocabulary: int | None = None
    truncation_side: str = "right"
    token_bytes: float = 0.0
    score_bytes: float = 0.0
    tokenizes_anywhere: bool = False

    def cost(self, lengths: NDArray[np.int64]) -> Cost:
        """Return what one pass over texts of these lengths takes."""
        if self.packed:
            # Packed attention keeps no scores but a token's own.
            tokens, seen = int(lengths.sum()), 1
        else:
            seen = int(lengths.max(initial=1))
            tokens = len(lengths) * seen
        return Cost(tokens, int(tokens * (self.token_bytes + seen * self.score_bytes)))


class Cost(NamedTuple):
    """What a forward pass takes.

    Attributes:
        tokens: Tokens computed, padding included.
        bytes: Working memory while it runs, estimated; weights not included.
    """

    tokens: int
    bytes: int


class EmbeddingBackend(Protocol):
    """A loaded model.

    One thread at a time calls `tokenize`, unless the spec says `tokenizes_anywhere`, and meanwhile
    others may call `forward`: several at once if the spec says `concurrent`, else one.
    """

    @property
    def spec(self) -> BackendSpec:
        """Facts of the model."""
        ...

    def tokenize(self, texts: Sequence[str], options: TokenizeOptions) -> TokenBatch:
        """Return the token ids of each text, cut to `spec.max_length`.

        Raises:
            InvalidTextError: A text is no valid Unicode, or too long for `Truncation.NONE`.
        """
        ...

    def forward(self, batch: TokenBatch, out: Vectors) -> None:
        """Write the pooled vectors, not normalised, to `out`, float32 of shape (n, dimension)."""
        ...

    def warm_up(self) -> None:
        """Do now what the first passes would else do: compile, capture, fill arenas."""
        ...

    def trim(self) -> None:
        """Give back memory that is kept only for speed; passes may be running."""
        ...

    def close(self) -> None:
        """Let go of the model's memory; no other method is called after it."""
        ...


class TransformerBytes(NamedTuple):
    """Working memory of a float32 transformer, as `BackendSpec` has it."""

    token_bytes: float
    score_bytes: float

    @classmethod
    def of(cls, config: Mapping[str, Any], overhead: float = 1.0) -> TransformerBytes:
        """Return that of a model, from its `config.json`.

        Args:
            config: The configuration.
            overhead: What the library takes, as a multiple of the tensors.
        """
        # The second names are DistilBERT's.
        hidden = int(config.get("hidden_size", config.get("dim", 768)))
        wide = int(config.get("intermediate_size", config.get("hidden_dim", 4 * hidden)))
        heads = int(config.get("num_attention_heads", config.get("n_heads", 12)))
        # A layer's widest moments: query, key and value beside the input, or the feed-forward's
        # wide vectors before and after their activation; and the attention scores before and after
        # softmax.
        return cls(overhead * 4 * (4 * hidden + 2 * wide), overhead * 4 * 2 * heads)

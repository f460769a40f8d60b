"""What the service asks of whatever embeds."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.embedding.options import Item, Reading
from services.embedding.outcome import Outcome
from shared.infrastructure.local_embeddings import Truncation

CANARY = "ready?"
"""Embedded to find out whether a backend is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendFacts:
    """What is known of a backend once it has started; none of it changes until it stops.

    Attributes:
        model_name: Name of the model.
        fingerprint: Hash of all that decides a vector beside the item and its reading: with the
            same one, vectors are the same.
        dimension: Numbers in a vector.
        max_length: Tokens of an item that are read; None if only the server knows.
        truncation: Which end of a long item the model drops by itself.
        prompts: The model's prompts by name.
        default_prompt: Prompt of a call that names none.
        takes_input_type: Whether it is told what an item is for, and applies prompts of its own.
        batch_invariant: Whether a vector is the same whatever is embedded beside it.
        packed: Whether items of different lengths share a batch without padding.
        concurrency: Batches worth having in flight at the same time.
        max_rows: Items in a batch at most.
        max_tokens: Tokens in a batch at most, padding included unless `packed`.
        details: What else there is to tell, as plain JSON types.
    """

    model_name: str
    fingerprint: str
    dimension: int
    max_length: int | None = None
    truncation: Truncation = Truncation.END
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    default_prompt: str = ""
    takes_input_type: bool = False
    batch_invariant: bool = True
    packed: bool = False
    concurrency: int = 1
    max_rows: int = 32
    max_tokens: int = 1024
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An item, ready to be put into a batch.

    Attributes:
        tokens: Tokens the model will read; estimated if only the server can count them.
        payload: The backend's own form of the item.
        identity: The same for items that must give the same vector, such as the bytes of their
            token ids; None if that is not known.
        group: Only items of one group share a batch.
    """

    tokens: int
    payload: object
    identity: bytes | None = None
    group: Hashable = None


class Backend(Protocol):
    """A model somewhere, and all that protects it; queues and caches are not its matter."""

    @property
    def facts(self) -> BackendFacts:
        """What is known of it; from the end of `start` on."""
        ...

    @property
    def is_healthy(self) -> bool:
        """Whether it makes sense to send it items."""
        ...

    async def start(self) -> None:
        """Load what is needed, and prove by embedding a text that it works."""
        ...

    async def stop(self) -> None:
        """Give everything back; `start` may follow."""
        ...

    def prepare_now(
        self, items: Sequence[Item], reading: Reading
    ) -> Sequence[Prepared | Exception] | None:
        """Return what `prepare` would, if that takes some 50 microseconds at most; else None."""
        ...

    async def prepare(
        self, items: Sequence[Item], reading: Reading
    ) -> Sequence[Prepared | Exception]:
        """Return each item ready for a batch, in order, or what is wrong with it."""
        ...

    def token_ids(self, prepared: Prepared) -> NDArray[np.int32]:
        """Return the token ids of a prepared item, special tokens included.

        Raises:
            NotOfferedError: Only a server far away has them.
        """
        ...

    async def embed(self, batch: Sequence[Prepared]) -> Sequence[Outcome]:
        """Return what came of each item, in order; an error raised is what came of all."""
        ...

    async def check_health(self) -> None:
        """Find out whether the backend is well; the answer is in `snapshot`."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """Return `circuit_breaker`, `rate_limiter`, `bulkhead` and `health` as plain JSON types."""
        ...

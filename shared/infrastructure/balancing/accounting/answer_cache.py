"""Answers that were given before, kept for the very same question: the config, and the store."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field

from shared.infrastructure.resilience import MONOTONIC, Clock

# What an entry takes beside its content: its key, the object, its place in the table.
_OVERHEAD_BYTES = 512


class AnswerCacheConfig(BaseModel, frozen=True, extra="forbid"):
    """Which answers are kept, how many, and for how long.

    Attributes:
        max_bytes: Memory for all of them; 64 MiB; above 0. The one unused for longest goes first.
        max_answer_bytes: Largest answer kept; 1 MiB; above 0.
        ttl: Seconds an answer is given again; 3600; above 0.
        temperature_above_zero: Also give the same answer again where the request allows for
            others, as it does when it says nothing of a temperature; False. Embeddings do not
            depend on it.
        tool_calls: Also keep answers that call tools; False.
    """

    max_bytes: int = Field(default=64 * 2**20, gt=0)
    max_answer_bytes: int = Field(default=2**20, gt=0)
    ttl: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3600.0
    temperature_above_zero: bool = False
    tool_calls: bool = False


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer as it is kept.

    Attributes:
        content: Its body.
        media_type: Of the body.
        has_usage: Whether it says how many tokens it cost.
    """

    content: bytes
    media_type: str
    has_usage: bool = True

    @property
    def size_bytes(self) -> int:
        """Memory it takes."""
        return len(self.content) + _OVERHEAD_BYTES


class AnswerCache:
    """Answers by key, bounded in bytes, each for a while; the one unused for longest goes first.

    Args:
        config: How many, and for how long.
        clock: Source of monotonic time.
    """

    def __init__(self, config: AnswerCacheConfig, *, clock: Clock = MONOTONIC) -> None:
        self.config = config
        self._now = clock.now
        self._kept: OrderedDict[bytes, tuple[float, KeptAnswer]] = OrderedDict()
        self._bytes = 0
        self._hits = self._misses = self._evicted = self._expired = 0

    def __len__(self) -> int:
        """Return the number of answers kept."""
        return len(self._kept)

    def get(self, key: bytes) -> KeptAnswer | None:
        """Return the answer kept for a key, if there is one and it is not too old."""
        kept = self._kept.get(key)
        if kept is None:
            self._misses += 1
            return None
        expires_at, answer = kept
        if self._now() >= expires_at:
            self._drop(key)
            self._expired += 1
            self._misses += 1
            return None
        self._kept.move_to_end(key)
        self._hits += 1
        return answer

    def put(self, key: bytes, answer: KeptAnswer) -> bool:
        """Keep an answer in place of the one kept so far; say whether it is not too large."""
        if key in self._kept:
            self._drop(key)
        size, config = answer.size_bytes, self.config
        if len(answer.content) > config.max_answer_bytes or size > config.max_bytes:
            return False
        while self._bytes + size > config.max_bytes:
            self._drop(next(iter(self._kept)))
            self._evicted += 1
        self._kept[key] = (self._now() + config.ttl, answer)
        self._bytes += size
        return True

    def clear(self) -> None:
        """Forget all answers."""
        self._kept.clear()
        self._bytes = 0

    def snapshot(self) -> dict[str, Any]:
        """Return counters as plain JSON types."""
        return {
            "entries": len(self._kept),
            "bytes": self._bytes,
            "max_bytes": self.config.max_bytes,
            "hit_count": self._hits,
            "miss_count": self._misses,
            "evicted_count": self._evicted,
            "expired_count": self._expired,
        }

    def _drop(self, key: bytes) -> None:
        _, answer = self._kept.pop(key)
        self._bytes -= answer.size_bytes

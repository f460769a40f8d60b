"""Texts in the order in which they fit a query."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.embedding.errors import QueueFullError
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.local_embeddings import LocalReranker, RerankerConfig
from shared.infrastructure.resilience import MONOTONIC, BulkheadFullError, Clock, ConfigurationError

_CANARY = "ready?"
# Share of what was measured that a call leaves to those after it.
_MEMORY = 0.8


class _Backlog:
    """The pairs that wait or are being scored, and how long that takes.

    Args:
        clock: Source of monotonic time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._here = 0
        self._done = self._busy = 0.0
        self._since = 0.0

    @property
    def seconds(self) -> float:
        """Seconds until all that is here is done; 0.0 if nothing has been measured yet."""
        return self._here * self._busy / self._done if self._done else 0.0

    @contextlib.contextmanager
    def holding(self, pairs: int) -> Generator[None]:
        """Count pairs while they are here, and measure them if they come to a good end."""
        if not self._here:
            self._since = self._clock.now()
        self._here += pairs
        try:
            yield
            if pairs:
                self._measure(pairs)
        finally:
            self._here -= pairs

    def _measure(self, pairs: int) -> None:
        # Calls that take turns share the time: each counts what has passed since the last end.
        now = self._clock.now()
        self._busy = self._busy * _MEMORY + now - self._since
        self._done = self._done * _MEMORY + pairs
        self._since = now


class Reranker:
    """A cross-encoder, which has breaker and bulkhead of its own.

    Args:
        model: The model; loaded by `start`, unloaded by `stop`.
        max_queue_seconds: Seconds of work that may be ahead of a call, by the pace of the recent
            ones; above 0.
        clock: Source of monotonic time.
    """

    def __init__(
        self,
        model: LocalReranker,
        *,
        max_queue_seconds: float = 4.0,
        clock: Clock = MONOTONIC,
    ) -> None:
        self._model = model
        self._max_queue_seconds = max_queue_seconds
        self._backlog = _Backlog(clock)

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self._model.config.model_name

    async def start(self) -> None:
        """Load the model, and prove by ranking a text that it works.

        Raises:
            ServiceError: It cannot be loaded, or does not work.
        """
        await self._model.load()
        await self._model.rank(_CANARY, [_CANARY])

    async def stop(self) -> None:
        """Finish the calls that are here, and let go of the model."""
        await self._model.unload()

    async def rerank(
        self, query: str, texts: Sequence[str], *, top_n: int | None = None
    ) -> list[tuple[int, float]]:
        """Return the position of each text and its score, the best first.

        Args:
            query: What is asked.
            texts: Those to put in order; of two that fit alike the earlier one comes first.
            top_n: How many to return; None is all.

        Raises:
            ConfigurationError: `top_n` is below 1.
            QueueFullError: Too much is ahead of it; `retry_after` says when that is done.
            ServiceError: As `LocalReranker.rank` does.
        """
        if top_n is not None and top_n < 1:
            raise ConfigurationError(f"top_n must be at least 1, not {top_n}")
        scores = await self._rank(query, texts)
        order = np.argsort(-scores, kind="stable")[:top_n]
        return list(zip(order.tolist(), scores[order].tolist(), strict=True))

    async def _rank(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        ahead = self._backlog.seconds
        if ahead > self._max_queue_seconds:
            raise QueueFullError(
                f"{ahead:.1f} s of work are ahead at the reranker, more than "
                f"{self._max_queue_seconds:g} s",
                retry_after=ahead - self._max_queue_seconds,
            )
        with self._backlog.holding(len(texts)):
            try:
                return await self._model.rank(query, texts)
            except BulkheadFullError as exc:
                raise QueueFullError(str(exc), retry_after=ahead or None) from exc

    def snapshot(self) -> dict[str, Any]:
        """Return facts of the model, its breaker and its bulkhead as plain JSON types."""
        return self._model.get_info()


def configured_reranker(settings: EmbeddingSettings) -> Reranker | None:
    """Return the reranker that settings describe, if they name one."""
    if settings.reranker is None:
        return None
    config = RerankerConfig(
        model_name=settings.reranker,
        device=settings.device,
        threads=settings.threads,
        model_root=settings.model_root,
    )
    return Reranker(LocalReranker(config), max_queue_seconds=settings.max_queue_seconds)

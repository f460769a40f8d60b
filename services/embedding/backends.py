"""What the service embeds with: one protocol, and the model that runs in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from services.embedding.batcher import Outcome
from services.embedding.cache import Embedded
from services.embedding.errors import TextRejectedError
from shared.infrastructure.local_embeddings import (
    InvalidTextError,
    LocalEmbeddingModel,
    NonFiniteVectorError,
)
from shared.infrastructure.resilience import (
    MONOTONIC,
    PLAIN_CALL,
    Clock,
    HealthConfig,
    HealthLayer,
    HealthMonitor,
    HealthStatus,
    Send,
    stack,
)

CANARY = "ready?"
"""Embedded to find out whether a backend is well."""

TEXT_FAULTS = (TextRejectedError, InvalidTextError, NonFiniteVectorError)
"""Errors that a text is to blame for."""


class Backend(Protocol):
    """A model somewhere, and all that protects it; batches and the cache are not its matter.

    Facts of the model are known from `start` on.
    """

    @property
    def model_name(self) -> str:
        """Name of the model."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides a text's vector: with the same one, vectors are the same."""
        ...

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        ...

    @property
    def concurrency(self) -> int:
        """Batches worth having in flight at the same time."""
        ...

    @property
    def is_healthy(self) -> bool:
        """Whether it makes sense to send it texts."""
        ...

    async def start(self) -> None:
        """Load what is needed, and prove by embedding a text that it works."""
        ...

    async def stop(self) -> None:
        """Give everything back; `start` may follow."""
        ...

    async def embed_batch(self, texts: Sequence[str]) -> Sequence[Outcome]:
        """Return what came of each text, in order; an error raised is what came of all."""
        ...

    async def check_health(self) -> None:
        """Find out whether the backend is well; the answer is in `snapshot`."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """Return `circuit_breaker`, `rate_limiter`, `bulkhead` and `health` as plain JSON types."""
        ...


class LocalBackend:
    """A local model, which has breaker and bulkhead of its own, under a health monitor.

    Args:
        model: The model; loaded by `start`, unloaded by `stop`.
        health: How often to check it, and what counts as unhealthy.
        clock: Source of monotonic time.
    """

    def __init__(
        self,
        model: LocalEmbeddingModel,
        *,
        health: HealthConfig | None = None,
        clock: Clock = MONOTONIC,
    ) -> None:
        self._model = model
        self._fingerprint = ""
        self._dimension = 0
        self._monitor = HealthMonitor(self.model_name, self._canary, health, clock=clock)
        self._send: Send[Sequence[str], Sequence[Outcome]] = stack(
            self._run, HealthLayer(self._monitor, clock=clock), semantics=PLAIN_CALL
        )

    @property
    def model_name(self) -> str:
        return self._model.config.model_name

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def dimension(self) -> int:
        return self._dimension

    @property
    def concurrency(self) -> int:
        return 1

    @property
    def is_healthy(self) -> bool:
        return self._monitor.status is not HealthStatus.UNHEALTHY

    async def start(self) -> None:
        await self._model.load()
        info = self._model.get_info()
        self._fingerprint = str(info["fingerprint"])
        self._dimension = int(info["embedding_dimension"])
        await self._canary()
        self._monitor.start()

    async def stop(self) -> None:
        await self._monitor.stop()
        await self._model.unload()

    async def embed_batch(self, texts: Sequence[str]) -> Sequence[Outcome]:
        return await self._send(texts)

    async def check_health(self) -> None:
        await self._monitor.check()

    def snapshot(self) -> dict[str, Any]:
        info = self._model.get_info()
        return {
            "circuit_breaker": {"enabled": True, **info["circuit_breaker"]},
            "rate_limiter": {"enabled": False},
            "bulkhead": {"enabled": True, **info["bulkhead"]},
            "health": self._monitor.snapshot(),
        }

    async def _canary(self) -> None:
        (outcome,) = await self._run([CANARY])
        if isinstance(outcome, Exception):
            raise outcome

    async def _run(self, texts: Sequence[str]) -> Sequence[Outcome]:
        batch = await self._model.embed_batch(texts)
        failed = batch.failures
        # That no text at all could be embedded is evidence against the model.
        if len(failed) == len(texts) and not isinstance(failed[0], TEXT_FAULTS):
            raise failed[0]
        facts = zip(batch.vectors, batch.token_counts, batch.truncated, strict=True)
        return [failed.get(row) or Embedded(*fact) for row, fact in enumerate(facts)]

"""Batch the texts of many callers: whatever waits when the model is idle goes together.

There is no timer: an idle model never waits for a batch to fill, and a busy one lets the next
batch fill by itself. Each text that is waiting or running is computed once, however many callers
want it, and belongs to no caller: one who leaves takes nothing from the others.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from services.embedding.cache import Embedded, EmbeddingCache
from services.embedding.errors import InvalidReplyError, QueueFullError, ServiceStoppedError
from shared.infrastructure.resilience import MONOTONIC, Clock, Send

Outcome = Embedded | Exception
"""What came of one text."""

Texts = Mapping[bytes, str]
"""Texts by their cache keys."""

# How far ahead of the model a long call fills the queue: enough to keep it busy, and little enough
# that a short call behind it does not wait for all of it.
_BATCHES_AHEAD = 4
_FIRST_RETRY_AFTER = 1.0
_BATCHES_REMEMBERED = 10


class BatcherConfig(BaseModel, frozen=True, extra="forbid"):
    """Bounds of a batch and of the queue.

    Attributes:
        max_rows: Texts in a batch; 32; at least 1.
        max_characters: Characters in a batch; 16384; at least 1. A longer text goes alone.
        max_queue: Texts that may wait before new calls are refused; 2048; at least 1.
        concurrency: Batches in flight at the same time; 1; at least 1.
    """

    max_rows: int = Field(default=32, ge=1)
    max_characters: int = Field(default=16_384, ge=1)
    max_queue: int = Field(default=2048, ge=1)
    concurrency: int = Field(default=1, ge=1)


class _Ticket:
    """What a caller waits for: `missing` more outcomes."""

    __slots__ = ("done", "missing", "outcomes")

    def __init__(self, missing: int, outcomes: dict[bytes, Outcome]) -> None:
        self.missing = missing
        self.outcomes = outcomes
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, key: bytes, outcome: Outcome) -> None:
        self.outcomes[key] = outcome
        self.missing -= 1
        if not self.missing and not self.done.done():
            self.done.set_result(None)


class _Job:
    """A text on its way, and those who wait for it."""

    __slots__ = ("key", "text", "tickets")

    def __init__(self, key: bytes, text: str) -> None:
        self.key = key
        self.text = text
        self.tickets: list[_Ticket] = []

    def settle(self, outcome: Outcome) -> None:
        for ticket in self.tickets:
            ticket.settle(self.key, outcome)


class Batcher:
    """Queue, workers and single flight in front of a model.

    Args:
        send: Embeds a batch: one outcome a text, in order. What it raises is the outcome of all.
        cache: Asked before a text is queued, and told of every vector.
        config: Bounds.
        clock: Source of monotonic time.
    """

    def __init__(
        self,
        send: Send[Sequence[str], Sequence[Outcome]],
        cache: EmbeddingCache,
        config: BatcherConfig | None = None,
        *,
        clock: Clock = MONOTONIC,
    ) -> None:
        self.config = config or BatcherConfig()
        self._send = send
        self._cache = cache
        self._clock = clock
        self._queue: OrderedDict[bytes, _Job] = OrderedDict()
        self._running: dict[bytes, _Job] = {}
        self._work_waits = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self._calls = 0
        self._closing = True
        self._joined = 0
        self._sizes: Counter[int] = Counter()
        self._seconds_per_text = 0.0

    def start(self) -> None:
        """Begin to take batches; a second call changes nothing."""
        if not self._closing:
            return
        self._closing = False
        self._work_waits.clear()
        # In a context of their own: the deadline of whoever happens to start them is not theirs.
        self._workers = [
            asyncio.create_task(self._work(), name=f"embed-{n}", context=contextvars.Context())
            for n in range(self.config.concurrency)
        ]

    async def stop(self) -> None:
        """Refuse new calls, finish those that are here, and end the workers.

        If it is cancelled, those that are here fail with `ServiceStoppedError`.
        """
        self._closing = True
        self._work_waits.set()
        try:
            if self._workers:
                await asyncio.wait(self._workers)
        except asyncio.CancelledError:
            for worker in self._workers:
                worker.cancel()
            self._workers = []
            while self._queue:
                self._queue.popitem(last=False)[1].settle(_stopped())
            raise

    async def embed(self, texts: Texts) -> dict[bytes, Outcome]:
        """Return what came of each text.

        A long call goes in windows, shortest texts first, so that texts of one length meet in a
        batch and other callers get their turn in between.

        Raises:
            QueueFullError: Too many texts are waiting; nothing was queued.
            ServiceStoppedError: The batcher is not running.
        """
        self._admit()
        self._calls += 1
        try:
            outcomes: dict[bytes, Outcome] = {}
            for window in self._windows(texts):
                await self._embed_window(window, outcomes)
        finally:
            self._calls -= 1
            if self._closing:
                self._work_waits.set()
        return outcomes

    def snapshot(self) -> dict[str, Any]:
        """Return counters as plain JSON types; `batch_sizes` counts batches by their texts."""
        batches = self._sizes.total()
        texts = sum(size * count for size, count in self._sizes.items())
        return {
            "queue_length": len(self._queue),
            "computing": len(self._running),
            "batch_count": batches,
            "batched_count": texts,
            "average_batch_size": texts / batches if batches else 0.0,
            "batch_sizes": {str(size): count for size, count in sorted(self._sizes.items())},
            "joined_count": self._joined,
            "seconds_per_text": self._seconds_per_text,
        }

    def _admit(self) -> None:
        if self._closing:
            raise _stopped()
        if len(self._queue) >= self.config.max_queue:
            raise QueueFullError(
                f"{len(self._queue)} texts are waiting for the model",
                retry_after=self._time_to_drain(),
            )

    def _time_to_drain(self) -> float:
        if not self._sizes:
            return _FIRST_RETRY_AFTER
        return len(self._queue) * self._seconds_per_text / self.config.concurrency

    def _windows(self, texts: Texts) -> Iterator[Texts]:
        ahead = _BATCHES_AHEAD * self.config.concurrency
        max_rows, max_characters = ahead * self.config.max_rows, ahead * self.config.max_characters
        window: dict[bytes, str] = {}
        characters = 0
        for key, text in sorted(texts.items(), key=lambda item: len(item[1])):
            characters += len(text)
            if window and (len(window) == max_rows or characters > max_characters):
                yield window
                window, characters = {}, len(text)
            window[key] = text
        yield window

    async def _embed_window(self, texts: Texts, outcomes: dict[bytes, Outcome]) -> None:
        if not self._workers:
            raise _stopped()
        jobs: list[_Job] = []
        for key, text in texts.items():
            # Another caller may have had it computed since this one looked.
            known = self._cache.peek(key)
            if known is None:
                jobs.append(self._job(key, text))
            else:
                outcomes[key] = known
        if not jobs:
            return
        ticket = _Ticket(len(jobs), outcomes)
        for job in jobs:
            job.tickets.append(ticket)
        self._work_waits.set()
        try:
            await ticket.done
        except asyncio.CancelledError:
            self._leave(ticket, jobs)
            raise

    def _job(self, key: bytes, text: str) -> _Job:
        job = self._queue.get(key) or self._running.get(key)
        if job is None:
            job = self._queue[key] = _Job(key, text)
        else:
            self._joined += 1
        return job

    def _leave(self, ticket: _Ticket, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            job.tickets.remove(ticket)
            # The job may be over, and another one queued for the same text.
            if not job.tickets and self._queue.get(job.key) is job:
                del self._queue[job.key]

    async def _work(self) -> None:
        while True:
            batch = self._take()
            if batch:
                await self._run(batch)
            elif self._closing and not self._calls:
                return
            else:
                self._work_waits.clear()
                await self._work_waits.wait()

    def _take(self) -> list[_Job]:
        batch: list[_Job] = []
        characters = 0
        while self._queue and len(batch) < self.config.max_rows:
            job = next(iter(self._queue.values()))
            characters += len(job.text)
            if batch and characters > self.config.max_characters:
                break
            batch.append(self._queue.pop(job.key))
        return batch

    async def _run(self, batch: Sequence[_Job]) -> None:
        self._running.update((job.key, job) for job in batch)
        outcomes: Sequence[Outcome] = [_stopped()] * len(batch)
        began = self._clock.now()
        try:
            outcomes = await self._answer(batch)
        except Exception as exc:  # not ours to judge: it is the outcome of everyone in the batch
            outcomes = [exc] * len(batch)
        finally:
            self._count(len(batch), self._clock.now() - began)
            for job, outcome in zip(batch, outcomes, strict=True):
                del self._running[job.key]
                job.settle(outcome)

    async def _answer(self, batch: Sequence[_Job]) -> Sequence[Outcome]:
        outcomes = await self._send([job.text for job in batch])
        if len(outcomes) != len(batch):
            raise InvalidReplyError(f"{len(outcomes)} outcomes for {len(batch)} texts")
        for job, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Embedded):
                self._cache.put(job.key, outcome)
        return outcomes

    def _count(self, texts: int, elapsed: float) -> None:
        self._sizes[texts] += 1
        # A running mean at first, then a moving one.
        weight = 1 / min(_BATCHES_REMEMBERED, self._sizes.total())
        self._seconds_per_text += (elapsed / texts - self._seconds_per_text) * weight


def _stopped() -> ServiceStoppedError:
    return ServiceStoppedError("the embedding service is stopping or has been stopped")

"""A backend of known speed, and jobs that remember what came of them."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from services.embedding.backends.protocol import BackendFacts, Prepared
from services.embedding.options import Lane
from services.embedding.outcome import Embedded, Outcome
from services.embedding.scheduling import Job, Scheduler, SchedulerConfig
from shared.infrastructure.testing import FakeClock

VECTOR = np.ones(4, np.float32)


def facts(**changes: Any) -> BackendFacts:
    known: dict[str, Any] = {"max_rows": 32, "max_tokens": 1024, **changes}
    return BackendFacts(model_name="fake", fingerprint="fake", dimension=4, **known)


class Item:
    """A job, and every outcome it was told."""

    def __init__(
        self, tokens: int = 10, lane: Lane = Lane.DEFAULT, *, group: str = "", **options: Any
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.prepared = Prepared(tokens, self, group=group)
        self.job = Job(self.prepared, self.outcomes.append, lane=lane, **options)

    @property
    def outcome(self) -> Outcome | None:
        assert len(self.outcomes) <= 1
        return self.outcomes[0] if self.outcomes else None


class FakeModel:
    """Takes `a + b * tokens + c * squares` seconds a batch, padding included, on a fake clock."""

    def __init__(
        self, clock: FakeClock, costs: tuple[float, float, float], packed: bool, noise: float
    ) -> None:
        self.clock = clock
        self.costs = costs
        self.noise = noise
        self.random = random.Random(11)
        self.packed = packed
        self.batches: list[list[Item]] = []
        self.running = self.most_running = 0
        self.busy_seconds = 0.0
        self.error: BaseException | None = None

    @property
    def items(self) -> list[Item]:
        return [item for batch in self.batches for item in batch]

    async def run(self, batch: Sequence[Prepared]) -> Sequence[Outcome]:
        lengths = [item.tokens for item in batch]
        if not self.packed:
            lengths = [max(lengths)] * len(lengths)
        a, b, c = self.costs
        seconds = a + b * sum(lengths) + c * sum(length**2 for length in lengths)
        seconds *= self.random.lognormvariate(0.0, self.noise)
        self.batches.append([item.payload for item in batch])  # type: ignore[misc]
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.clock.sleep(seconds)
        finally:
            self.running -= 1
            self.busy_seconds += seconds
        if self.error is not None:
            raise self.error
        return [Embedded(VECTOR * item.tokens, item.tokens, truncated=False) for item in batch]


class Bench:
    """A running scheduler over a fake model, on a clock of its own."""

    def __init__(
        self,
        *,
        costs: tuple[float, float, float] = (0.001, 0.0001, 0.0),
        noise: float = 0.0,
        config: dict[str, Any] | None = None,
        **of_facts: Any,
    ) -> None:
        self.clock = FakeClock()
        self.facts = facts(**of_facts)
        self.model = FakeModel(self.clock, costs, self.facts.packed, noise)
        self.scheduler = Scheduler(
            self.model.run, SchedulerConfig(**(config or {})), clock=self.clock
        )

    async def __aenter__(self) -> Self:
        self.scheduler.start(self.facts)
        return self

    async def __aexit__(self, *_: object) -> None:
        stopping = asyncio.create_task(self.scheduler.stop())
        while not stopping.done():
            await self.clock.advance(10.0)
        await stopping

    def submit(self, *items: Item) -> None:
        self.scheduler.submit([item.job for item in items])

    async def learn(self, seconds: float = 2.0) -> None:
        """Let the scheduler see batches of many sizes, so that it knows the model's speed."""
        lengths = (5, 10, 20, 40, 80, 160)
        for turn in range(60):
            length = lengths[turn % len(lengths)]
            self.submit(*(Item(length, tenant="teacher") for _ in range(1 + turn % 5)))
            await self.clock.advance(seconds)
        self.model.batches.clear()

    async def occupy(self, tokens: int = 1000) -> Item:
        """Keep every slot of the model busy with one item each; return the last."""
        for _ in range(self.facts.concurrency):
            busy = Item(tokens, tenant="busy", group="busy")
            self.submit(busy)
            await self.clock.advance()
        self.model.batches.clear()
        return busy

"""Adaptive bulkhead: find out how many calls at once a service can serve without queueing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel, Field, model_validator

from shared.infrastructure.resilience.bulkhead import Bulkhead, BulkheadConfig
from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.events import NO_LISTENERS, Listeners
from shared.infrastructure.resilience.layer import Inner, Layer, Position, Req, Res, Verdict
from shared.infrastructure.resilience.line_events import LineEvents
from shared.infrastructure.resilience.timeout import within_deadline

# Outcomes that make a round, if not more are in flight: fewer would be an accident.
_ROUND = 10
# Rounds at the limit between two looks at the unloaded latency, and the share of the limit that
# is left to take one.
_ROUNDS_BETWEEN_PROBES = 25
_PROBE_SHARE = 4
# Weight of a round that was far from the limit in the unloaded latency: about 300 calls to 1/e.
_WEIGHT = 1 / 30


class AdaptiveBulkheadConfig(BaseModel, frozen=True, extra="forbid"):
    """Between what bounds the number of calls in flight may move, and how it does.

    Attributes:
        initial_concurrent: Calls in flight to begin with; 20; at least 1.
        min_concurrent: Calls in flight that are always allowed; 1; at least 1.
        max_concurrent: Calls in flight that are never exceeded; 200; at least 1.
        tolerance: How many times the unloaded latency an answer may take before the limit falls;
            1.5; at least 1. The more the latency varies by itself, the more it must be.
        queue: Calls that may wait in the service, and what the limit grows by; 4; at least 1.
        smoothing: Share of the way to its new value that the limit goes at once; 0.5; above 0, at
            most 1.
        max_queue: Calls that may wait for a slot; None (default) is no bound; at least 0.
        max_wait: Seconds a call may wait for a slot; None (default) waits as long as the caller's
            deadline allows.
    """

    initial_concurrent: int = Field(default=20, ge=1)
    min_concurrent: int = Field(default=1, ge=1)
    max_concurrent: int = Field(default=200, ge=1)
    tolerance: float = Field(default=1.5, ge=1, allow_inf_nan=False)
    queue: int = Field(default=4, ge=1)
    smoothing: float = Field(default=0.5, gt=0, le=1)
    max_queue: int | None = Field(default=None, ge=0)
    max_wait: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> AdaptiveBulkheadConfig:
        if not self.min_concurrent <= self.initial_concurrent <= self.max_concurrent:
            raise ValueError(
                "min_concurrent must be at most initial_concurrent, and that at most max_concurrent"
            )
        return self

    def build(
        self,
        *,
        clock: Clock = MONOTONIC,
        name: str = "service",
        listeners: Listeners = NO_LISTENERS,
    ) -> AdaptiveBulkhead:
        """Return the bulkhead this config describes."""
        return AdaptiveBulkhead(self, clock=clock, name=name, listeners=listeners)


@dataclass(slots=True)
class _Round:
    """What came of the calls that began since an instant: under one limit, that is."""

    since: float
    calls: int = 0
    seconds: float = 0.0
    most_in_flight: int = 0

    def add(self, latency: float, in_flight: int) -> bool:
        """Count a call; return whether the round is complete."""
        self.calls += 1
        self.seconds += latency
        self.most_in_flight = max(self.most_in_flight, in_flight)
        return self.calls >= _ROUND and self.calls >= self.most_in_flight


class AdaptiveBulkhead(Bulkhead):
    """A bulkhead whose limit follows the latency: it falls where calls queue in the service.

    Source: the Gradient2 limit of Netflix's concurrency-limits. After a round of calls the limit
    moves towards `limit * gradient + queue`, where the gradient is the unloaded latency by that of
    the round, times `tolerance`, and between 0.5 and 1; it does not grow if less than half of it
    was used. A service that serves C calls at once without delay is so given from C to about
    `tolerance * C + queue` calls, as long as there are that many.

    Two things differ from the source, which drifts away under load that never ends. The limit
    moves once a round, and a round is made of calls that began after the latest move: as many as
    were in flight, and ten at least. And the unloaded latency is not the average of all calls,
    but that of calls that began while half of the slots were free. If there are none for 25
    rounds, and in the beginning, the limit is lowered to a quarter until ten calls have shown it.

    An answer that asks for patience (BUSY), and a failure that took longer than an answer may, as
    a timeout does, take the limit down as the lowest gradient would, once a round. A quick failure
    says nothing about load, and a VOID outcome says nothing at all.

    Args:
        config: Bounds and pace.
        clock: Source of monotonic time.
        name: Service, used in events.
        listeners: Told of every change of the limit, and of calls that wait or are refused.
    """

    def __init__(
        self,
        config: AdaptiveBulkheadConfig | None = None,
        *,
        clock: Clock = MONOTONIC,
        name: str = "service",
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self.bounds = config or AdaptiveBulkheadConfig()
        super().__init__(
            BulkheadConfig(
                max_concurrent=self.bounds.initial_concurrent,
                max_queue=self.bounds.max_queue,
                max_wait=self.bounds.max_wait,
            ),
            clock=clock,
            name=name,
            listeners=listeners,
        )
        self._estimate = float(self.bounds.initial_concurrent)
        self._unloaded: float | None = None
        self._latency: float | None = None
        self._dropped = 0
        self._rounds = 0
        self._probing = True
        self._begin_round()

    def record(self, verdict: Verdict, *, started: float, in_flight: int) -> None:
        """Learn from an outcome; call it before `release`.

        Args:
            verdict: What the outcome says about the service.
            started: Instant at which the call got its slot, on the bulkhead's clock.
            in_flight: Calls in flight at that instant, this one included.
        """
        if started < self._round.since or (self._probing and in_flight > self.limit):
            return
        latency = self.clock.now() - started
        if verdict is Verdict.OK:
            if self._round.add(latency, in_flight):
                self._end_round()
        elif verdict is Verdict.BUSY or (verdict is Verdict.FAILED and self._is_long(latency)):
            self._dropped += 1
            self._move(0.5 * self._estimate)

    def layer(self) -> Layer[Any, Any]:
        return AdaptiveBulkheadLayer(self)

    def snapshot(self) -> dict[str, Any]:
        """Return what every bulkhead does, and the latencies (s), None while they are unknown."""
        return {
            **super().snapshot(),
            "latency": self._latency,
            "unloaded_latency": self._unloaded,
            "dropped_count": self._dropped,
        }

    def _is_long(self, latency: float) -> bool:
        return self._unloaded is None or latency > self.bounds.tolerance * self._unloaded

    def _end_round(self) -> None:
        self._latency = latency = self._round.seconds / self._round.calls
        if self._unloaded is None or self._probing:
            self._unloaded = latency
            self._probing = False
            self._begin_round()
        else:
            self._follow(latency, self._unloaded)

    def _follow(self, latency: float, unloaded: float) -> None:
        goal = self._estimate * self._gradient(latency, unloaded) + self.bounds.queue
        if self._round.most_in_flight < self._estimate / 2:
            goal = min(goal, self._estimate)
            unloaded += _WEIGHT * (latency - unloaded)
        else:
            self._rounds += 1
        self._unloaded = unloaded * 0.95 if unloaded > 2.0 * latency else unloaded
        if self._rounds >= _ROUNDS_BETWEEN_PROBES:
            self._rounds = 0
            self._probing = True
        self._move(goal)

    def _gradient(self, latency: float, unloaded: float) -> float:
        allowed = self.bounds.tolerance * unloaded
        return 1.0 if latency <= allowed else max(0.5, allowed / latency)

    def _move(self, goal: float) -> None:
        moved = self._estimate + self.bounds.smoothing * (goal - self._estimate)
        self._estimate = max(
            float(self.bounds.min_concurrent), min(moved, float(self.bounds.max_concurrent))
        )
        self._begin_round()

    def _begin_round(self) -> None:
        self._round = _Round(self.clock.now())
        limit = int(self._estimate)
        if self._probing:
            limit = max(self.bounds.min_concurrent, limit // _PROBE_SHARE)
        if limit != self.limit:
            self.resize(limit)


@Position.SLOT
class AdaptiveBulkheadLayer:
    """Hold a slot until the answer is over, and tell the bulkhead how long that took.

    Position: that of `BulkheadLayer`, which it replaces.

    Args:
        bulkhead: Shared by all who may overload the same service.
    """

    def __init__(self, bulkhead: AdaptiveBulkhead) -> None:
        self._bulkhead = bulkhead
        self._line = LineEvents(bulkhead.name, "bulkhead", bulkhead.listeners, bulkhead.clock)

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        bulkhead = self._bulkhead
        if not bulkhead.try_acquire():
            max_wait = within_deadline(bulkhead.config.max_wait)
            await self._line.tell(bulkhead.acquire(max_wait=max_wait))
        over = partial(self._over, bulkhead.clock.now(), bulkhead.in_flight)
        try:
            response = await inner.send(request)
        except BaseException as exc:
            over(inner.semantics.judge(exc))
            raise
        return inner.semantics.watch(response, over)

    def _over(self, started: float, in_flight: int, verdict: Verdict) -> None:
        self._bulkhead.record(verdict, started=started, in_flight=in_flight)
        self._bulkhead.release()

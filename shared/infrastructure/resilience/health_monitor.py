"""Health monitor: how a service has been doing, from its traffic and from active checks.

Two memories answer two questions. Totals that fade with time (10 s to 1/e) say how it is now, and
decide the status; the last 100 outcomes say how it has been, and are only reported. A status gets
worse at once, and better slowly: an alarm must not wait, and must not flap.
"""

from __future__ import annotations

import asyncio
import enum
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import ConfigurationError
from shared.infrastructure.resilience.events import NO_LISTENERS, HealthStatusChanged, Listeners
from shared.infrastructure.resilience.histogram import percentile
from shared.infrastructure.resilience.layer import Inner, Position, Req, Res, Verdict
from shared.infrastructure.resilience.timeout import deadline


class HealthStatus(enum.StrEnum):
    """What recent traffic and checks say."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """Answers, but slowly or not always."""
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"
    """Not heard of yet."""


# Bound once: they are read on every call.
_HEALTHY = HealthStatus.HEALTHY
_OK, _FAILED, _VOID = Verdict.OK, Verdict.FAILED, Verdict.VOID
_BADNESS = {HealthStatus.HEALTHY: 0, HealthStatus.DEGRADED: 1, HealthStatus.UNHEALTHY: 2}
# Share of the time constant for which successes are counted before they are weighed.
_CALM = 0.1


class HealthConfig(BaseModel, frozen=True, extra="forbid"):
    """How often to check, what counts as degraded or unhealthy, and what as well again.

    Attributes:
        interval: Seconds between active checks; 30; above 0. One is left out if traffic has
            spoken since the last.
        edge_interval: Seconds between them while failures or successes in a row are about to
            change the status, at most `interval`; 1; above 0. None keeps to `interval`.
        jitter: Share of the interval by which each wait is made longer or shorter at random, so
            that many monitors do not ask at the same moment; 0.1; 0 to 1.
        timeout: Seconds an active check may take; 5; above 0.
        time_constant: Seconds after which an outcome weighs 1/e in error rate and response time;
            10; above 0.
        minimum_calls: Outcomes, by weight, before the error rate alone means unhealthy; 10; at
            least 1.
        unhealthy_after: Failures in a row that mean unhealthy, unless the error rate is below
            `recovered_error_rate`; 3; at least 1.
        unhealthy_error_rate: Error rate from which on a service is unhealthy; 0.5; 0 to 1.
        recovered_error_rate: Error rate below which it no longer is; 0.25; at most
            `unhealthy_error_rate`.
        degraded_error_rate: Error rate from which on a service is degraded; 0.05; 0 to 1.
        degraded_response_time: Mean seconds from which on a service is degraded; 5; above 0.
        healthy_after: Successes in a row without which no status gets better; 2; at least 1.
        dwell: Seconds without which no status gets better; 5; at least 0.
        history: Outcomes remembered for uptime, mean and percentiles; 100; at least 1.
    """

    interval: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    edge_interval: float | None = Field(default=1.0, gt=0, allow_inf_nan=False)
    jitter: float = Field(default=0.1, ge=0, le=1)
    timeout: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    time_constant: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    minimum_calls: int = Field(default=10, ge=1)
    unhealthy_after: int = Field(default=3, ge=1)
    unhealthy_error_rate: float = Field(default=0.5, gt=0, le=1)
    recovered_error_rate: float = Field(default=0.25, gt=0, le=1)
    degraded_error_rate: float = Field(default=0.05, gt=0, le=1)
    degraded_response_time: float = Field(default=5.0, gt=0)
    healthy_after: int = Field(default=2, ge=1)
    dwell: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    history: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _can_leave_what_it_enters(self) -> Self:
        if self.recovered_error_rate > self.unhealthy_error_rate:
            raise ValueError("recovered_error_rate must be at most unhealthy_error_rate")
        return self


class HealthMonitor:
    """Weighs the outcomes of one service and draws the conclusion.

    Args:
        name: Service it watches.
        check: Active check: an awaitable that raises if the service is not well. Without one, only
            recorded traffic counts.
        config: Intervals and thresholds.
        clock: Source of monotonic time.
        rng: Source of jitter.
        listeners: Told when the status changes.
    """

    def __init__(
        self,
        name: str = "service",
        check: Callable[[], Awaitable[object]] | None = None,
        config: HealthConfig | None = None,
        *,
        clock: Clock = MONOTONIC,
        rng: random.Random | None = None,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self.name = name
        self.config = config or HealthConfig()
        self._check = check
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._listeners = listeners
        self._status = HealthStatus.UNKNOWN
        self._changed_at = clock.now()
        self._history: deque[tuple[bool, float]] = deque(maxlen=self.config.history)
        self._recent = _FadingTotals(self.config.time_constant)
        # A success before this instant could change nothing: it is counted here, and weighed later.
        self._calm_until = -math.inf
        self._calm_calls = 0
        self._calm_time = 0.0
        self._failures_in_row = self._successes_in_row = 0
        self._last_error: str | None = None
        self._traffic_at = self._checked_at = -math.inf
        self._skipped = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def status(self) -> HealthStatus:
        """The conclusion from the outcomes so far."""
        return self._status

    def record(self, ok: bool, response_time: float, error: str | None = None) -> None:
        """Take note of one call of ordinary traffic, and the seconds it took, in O(1)."""
        if not 0.0 <= response_time < math.inf:
            raise ConfigurationError(f"response_time must be seconds from 0, not {response_time}")
        now = self._clock.now()
        if ok:
            self.settle(response_time, now, _OK)
        else:
            self._weigh(now, ok=False, response_time=response_time, error=error)
            self._traffic_at = now

    def settle(self, response_time: float, now: float, verdict: Verdict) -> None:
        """Take note of an answer that came after `response_time` seconds, at instant `now`."""
        if verdict is _OK and now < self._calm_until:
            self._history.append((True, response_time))
            self._calm_calls += 1
            self._calm_time += response_time
        elif verdict is _VOID:
            return
        else:
            self._weigh(now, ok=verdict is not _FAILED, response_time=response_time)
        self._traffic_at = now

    async def check(self) -> HealthStatus:
        """Run the active check once and return the status that follows from it."""
        if self._check is None:
            return self._status
        began = self._clock.now()
        error = None
        try:
            async with deadline(self.config.timeout, clock=self._clock):
                await self._check()
        except Exception as exc:
            error = f"{type(exc).__name__}: {exc}"
        now = self._clock.now()
        self._weigh(now, ok=error is None, response_time=now - began, error=error)
        self._checked_at = now
        return self._status

    def start(self) -> None:
        """Check every `interval` seconds, beginning now; a second call changes nothing."""
        # One that is done ran on a loop that has ended.
        if self._check is not None and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run(), name=f"health-{self.name}")

    async def stop(self) -> None:
        """End the checks begun by `start`."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])  # which a cancellation of ours comes through

    def snapshot(self) -> dict[str, Any]:
        """Return status, present and history as plain JSON types; times are seconds."""
        self._end_calm()
        now, count = self._clock.now(), len(self._history)
        times = sorted(time for _, time in self._history)
        heard_at = max(self._traffic_at, self._checked_at)
        return {
            "status": self._status.value,
            "seconds_in_status": now - self._changed_at,
            "error_rate": self._recent.error_rate if count else None,
            "recent_response_time": self._recent.response_time if count else None,
            "response_time": self._history[-1][1] if count else None,
            "average_response_time": sum(times) / count if count else None,
            "response_time_p50": percentile(times, 50) if count else None,
            "response_time_p95": percentile(times, 95) if count else None,
            "consecutive_failures": self._failures_in_row,
            "uptime_percentage": 100.0 * sum(ok for ok, _ in self._history) / count
            if count
            else None,
            "checks": count,
            "skipped_checks": self._skipped,
            "seconds_since_check": now - heard_at if count else None,
            "last_error": self._last_error,
        }

    def _weigh(
        self, now: float, *, ok: bool, response_time: float, error: str | None = None
    ) -> None:
        self._end_calm()
        self._history.append((ok, response_time))
        self._recent.add(now, 1, not ok, response_time)
        self._failures_in_row = 0 if ok else self._failures_in_row + 1
        self._successes_in_row = self._successes_in_row + 1 if ok else 0
        self._last_error = error
        self._move_to(self._conclude(), now)
        is_settled = self._status is _HEALTHY or self._successes_in_row >= self.config.healthy_after
        if ok and is_settled:
            self._calm_until = now + _CALM * self.config.time_constant

    def _end_calm(self) -> None:
        """Weigh what was only counted, as of the last of it."""
        self._calm_until = -math.inf
        if self._calm_calls:
            self._recent.add(self._traffic_at, self._calm_calls, 0, self._calm_time)
            self._calm_calls, self._calm_time = 0, 0.0

    def _conclude(self) -> HealthStatus:
        """Return what the evidence says, had the status no inertia."""
        config, recent = self.config, self._recent
        rate = recent.error_rate
        was_ill = self._status is HealthStatus.UNHEALTHY
        limit = config.recovered_error_rate if was_ill else config.unhealthy_error_rate
        in_row = self._failures_in_row >= config.unhealthy_after
        if (in_row and rate >= config.recovered_error_rate) or (
            recent.calls >= config.minimum_calls and rate >= limit
        ):
            return HealthStatus.UNHEALTHY
        if rate >= config.degraded_error_rate:
            return HealthStatus.DEGRADED
        is_slow = recent.response_time >= config.degraded_response_time
        return HealthStatus.DEGRADED if is_slow else HealthStatus.HEALTHY

    def _move_to(self, status: HealthStatus, now: float) -> None:
        old = self._status
        if status is old:
            return
        if old is not HealthStatus.UNKNOWN and _BADNESS[status] < _BADNESS[old]:
            has_dwelt = now - self._changed_at >= self.config.dwell
            if not has_dwelt or self._successes_in_row < self.config.healthy_after:
                return
        self._status, self._changed_at = status, now
        self._listeners(HealthStatusChanged(self.name, old.value, status.value))

    async def _run(self) -> None:
        while True:
            if self._clock.now() - self._traffic_at < self.config.interval:
                self._skipped += 1
            else:
                await self.check()
            await self._clock.sleep(self._wait())

    def _wait(self) -> float:
        config = self.config
        interval = config.interval
        if config.edge_interval is not None and self._is_changing():
            interval = min(interval, config.edge_interval)
        spread = config.jitter * interval
        return interval + self._rng.uniform(-spread, spread)

    def _is_changing(self) -> bool:
        """Whether the next outcomes may change the status by being like the last."""
        if self._failures_in_row:
            return self._failures_in_row < self.config.unhealthy_after
        return self._status is not _HEALTHY and self._successes_in_row < self.config.healthy_after


class _FadingTotals:
    """Outcomes, failures and seconds, each weighing e^(-age / time constant).

    The quotients are exponentially weighted means, right however irregularly outcomes come.
    """

    def __init__(self, time_constant: float) -> None:
        self._time_constant = time_constant
        self._at = 0.0
        self.calls = self._failures = self._time = 0.0

    @property
    def error_rate(self) -> float:
        return self._failures / self.calls

    @property
    def response_time(self) -> float:
        return self._time / self.calls

    def add(self, now: float, calls: int, failures: int, time: float) -> None:
        kept = math.exp(min(0.0, self._at - now) / self._time_constant)
        self._at = max(self._at, now)
        self.calls = self.calls * kept + calls
        self._failures = self._failures * kept + failures
        self._time = self._time * kept + time


@Position.COUNT
class HealthLayer:
    """Let ordinary traffic speak for the health of the service.

    Position: next to the breaker, below retry, so that an attempt that failed is seen even if the
    next one succeeds. An outcome that says nothing about the service is not recorded.
    """

    def __init__(self, monitor: HealthMonitor, *, clock: Clock = MONOTONIC) -> None:
        self._monitor = monitor
        self._over = monitor.settle
        self._now = clock.now

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        began = self._now()
        try:
            response = await inner.send(request)
        except BaseException as exc:  # a cancellation too may tell of silence
            if inner.semantics.judge(exc) is _FAILED:
                self._monitor.record(False, self._now() - began, type(exc).__name__)
            raise
        # Time to the answer's beginning: how long a body takes depends on its reader.
        answered = self._now()
        return inner.semantics.watch(response, partial(self._over, answered - began, answered))

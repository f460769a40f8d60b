"""Health monitor: how a service has been doing, from its traffic and from active checks."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel, Field

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.events import NO_LISTENERS, HealthStatusChanged, Listeners
from shared.infrastructure.resilience.layer import Inner, Position, Req, Res, Verdict
from shared.infrastructure.resilience.timeout import deadline


class HealthStatus(enum.StrEnum):
    """What the recent checks say."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """Answers, but slowly or not always."""
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"
    """Not checked yet."""


# Bound once: they are read on every call.
_HEALTHY = HealthStatus.HEALTHY
_FAILED, _VOID = Verdict.FAILED, Verdict.VOID


class HealthConfig(BaseModel, frozen=True, extra="forbid"):
    """How often to check, and what counts as degraded or unhealthy.

    Attributes:
        interval: Seconds between active checks; 30; above 0.
        jitter: Share of the interval by which each wait is made longer or shorter at random, so
            that many monitors do not ask at the same moment; 0.1; 0 to 1.
        timeout: Seconds an active check may take; 5; above 0.
        unhealthy_after: Failures in a row that mean unhealthy; 3; at least 1.
        degraded_response_time: Mean seconds over the history from which on a service counts as
            degraded; 5; above 0.
        degraded_uptime: Share of good checks in the history below which a service counts as
            degraded; 0.95; 0 to 1.
        history: Checks remembered; 100; at least 1.
    """

    interval: float = Field(default=30.0, gt=0)
    jitter: float = Field(default=0.1, ge=0, le=1)
    timeout: float = Field(default=5.0, gt=0)
    unhealthy_after: int = Field(default=3, ge=1)
    degraded_response_time: float = Field(default=5.0, gt=0)
    degraded_uptime: float = Field(default=0.95, ge=0, le=1)
    history: int = Field(default=100, ge=1)


class HealthMonitor:
    """Keeps the last checks of one service and draws the conclusion.

    Args:
        name: Service it watches.
        check: Active check: an awaitable that raises if the service is not well. Without one, only
            recorded traffic counts.
        config: Interval and thresholds.
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
        # Read on every call, so not through the model.
        self._history = self.config.history
        self._slow_from = self.config.degraded_response_time
        self._checks: deque[tuple[bool, float]] = deque(maxlen=self._history)
        self._good = 0
        self._total_time = 0.0
        self._failures_in_row = 0
        self._last_error: str | None = None
        self._checked_at: float | None = None
        self._status = HealthStatus.UNKNOWN
        self._task: asyncio.Task[None] | None = None

    @property
    def status(self) -> HealthStatus:
        """The conclusion from the checks so far."""
        return self._status

    def record(self, ok: bool, response_time: float, error: str | None = None) -> None:
        """Take note of one check, or of one call of ordinary traffic, in O(1)."""
        checks = self._checks
        if len(checks) == self._history:
            was_ok, was_time = checks[0]
            self._good -= was_ok
            self._total_time -= was_time
        checks.append((ok, response_time))
        self._good += ok
        self._total_time += response_time
        self._failures_in_row = 0 if ok else self._failures_in_row + 1
        self._last_error = None if ok else error
        self._checked_at = self._clock.now()
        is_slow = self._total_time > self._slow_from * len(checks)
        if ok and self._status is _HEALTHY and not is_slow:
            return  # a quick success changes nothing about a service that is well
        status = self._conclude(is_slow)
        if status is not self._status:
            old, self._status = self._status, status
            self._listeners(HealthStatusChanged(self.name, old.value, status.value))

    async def check(self) -> HealthStatus:
        """Run the active check once and return the status that follows from it."""
        if self._check is None:
            return self._status
        began = self._clock.now()
        try:
            async with deadline(self.config.timeout, clock=self._clock):
                await self._check()
        except Exception as exc:
            self.record(False, self._clock.now() - began, f"{type(exc).__name__}: {exc}")
        else:
            self.record(True, self._clock.now() - began)
        return self._status

    def start(self) -> None:
        """Check every `interval` seconds, beginning now; a second call changes nothing."""
        if self._check is not None and self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"health-{self.name}")

    async def stop(self) -> None:
        """End the checks begun by `start`."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def snapshot(self) -> dict[str, Any]:
        """Return status and history as plain JSON types; times are seconds."""
        count = len(self._checks)
        ago = None if self._checked_at is None else self._clock.now() - self._checked_at
        return {
            "status": self._status.value,
            "response_time": self._checks[-1][1] if count else None,
            "average_response_time": self._total_time / count if count else None,
            "consecutive_failures": self._failures_in_row,
            "uptime_percentage": 100.0 * self._good / count if count else None,
            "checks": count,
            "seconds_since_check": ago,
            "last_error": self._last_error,
        }

    def _conclude(self, is_slow: bool) -> HealthStatus:
        config = self.config
        if self._failures_in_row >= config.unhealthy_after:
            return HealthStatus.UNHEALTHY
        mostly_up = self._good >= config.degraded_uptime * len(self._checks)
        if self._failures_in_row or is_slow or not mostly_up:
            return HealthStatus.DEGRADED
        return HealthStatus.HEALTHY

    async def _run(self) -> None:
        while True:
            await self.check()
            spread = self.config.jitter * self.config.interval
            await self._clock.sleep(self.config.interval + self._rng.uniform(-spread, spread))


@Position.COUNT
class HealthLayer:
    """Let ordinary traffic speak for the health of the service.

    Position: next to the breaker, below retry, so that an attempt that failed is seen even if the
    next one succeeds. An outcome that says nothing about the service is not recorded.
    """

    def __init__(self, monitor: HealthMonitor, *, clock: Clock = MONOTONIC) -> None:
        self._monitor = monitor
        self._clock = clock

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        began = self._clock.now()
        try:
            response = await inner.send(request)
        except Exception as exc:
            if inner.semantics.judge(exc) is Verdict.FAILED:
                self._monitor.record(False, self._clock.now() - began, type(exc).__name__)
            raise
        # Time to the answer's beginning: how long a body takes depends on its reader.
        elapsed = self._clock.now() - began

        def over(verdict: Verdict) -> None:
            if verdict is not _VOID:
                self._monitor.record(verdict is not _FAILED, elapsed)

        return inner.semantics.watch(response, over)

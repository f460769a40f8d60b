"""Adaptive timeout: give up on an attempt when nearly every good answer would have come.

A fixed limit is either so long that a service which hangs holds every caller for its whole length,
or so short that it cuts off good answers on a slow day. This one follows a high percentile of the
latest latencies.

What was cut off was not measured, only bounded from below [such samples are called censored]. Left
out, the limit would measure only what it lets through, and creep down upon itself. So an attempt
that ran into the limit counts as one that takes `maximum`: if more are cut off than the percentile
leaves over, the limit goes up to that, and true latencies are seen again. An attempt that its
caller cancelled counts with the time it had taken, if that is above the percentile, and not at all
otherwise. Nothing but a good answer ever makes the limit shorter.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import AttemptTimeoutError
from shared.infrastructure.resilience.events import NO_LISTENERS, AttemptTimedOut, Listeners
from shared.infrastructure.resilience.histogram import RotatingHistogram
from shared.infrastructure.resilience.layer import Inner, Position, Req, Res, Verdict
from shared.infrastructure.resilience.timeout import TimeLimit

# Bound once: read on every call.
_OK = Verdict.OK
# How often the limit is derived anew while a window passes.
_RENEWALS = 100


class AdaptiveTimeoutConfig(BaseModel, frozen=True, extra="forbid"):
    """How the limit on an attempt follows from the latencies of the latest attempts.

    Attributes:
        maximum: Longest limit, in seconds, and the one until there are enough latencies; required:
            only the caller knows how long an answer is worth waiting for. Above 0.
        minimum: Shortest limit, in seconds; 0.1; above 0, at most `maximum`.
        percentile: Share of good answers that come within the time that is multiplied; 0.99;
            between 0 and 1.
        factor: What that time is multiplied by; 2; at least 1.
        min_samples: Latencies to be seen before the percentile is trusted; 50; at least 1.
        window: Seconds a latency counts for, at most; at least half of them; 300; above 0.
    """

    maximum: float = Field(gt=0, allow_inf_nan=False)
    minimum: float = Field(default=0.1, gt=0)
    percentile: float = Field(default=0.99, gt=0, lt=1)
    factor: float = Field(default=2.0, ge=1, allow_inf_nan=False)
    min_samples: int = Field(default=50, ge=1)
    window: float = Field(default=300.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError("minimum must be at most maximum")
        return self


class AdaptiveTimeout:
    """Derives the limit on an attempt from how long good answers take.

    Args:
        config: Bounds and percentile.
        clock: Source of monotonic time.
    """

    def __init__(self, config: AdaptiveTimeoutConfig, *, clock: Clock = MONOTONIC) -> None:
        self.config = config
        self._clock = clock
        self._latencies = RotatingHistogram(config.window, clock=clock)
        self._percentile: float | None = None
        self._limit = config.maximum
        self._stale_at = -math.inf
        self._expired = 0

    def limit(self) -> float:
        """Return the seconds an attempt that begins now may take."""
        now = self._clock.now()
        if now >= self._stale_at:
            self._renew(now)
        return self._limit

    def record(self, seconds: float) -> None:
        """Note the latency of a good answer."""
        self._latencies.record(seconds)

    def expire(self) -> None:
        """Note an attempt that ran into its limit, and would have taken nobody knows how long."""
        self._expired += 1
        self._latencies.record(self.config.maximum)
        self._stale_at = -math.inf

    def abandon(self, seconds: float) -> None:
        """Note an attempt that was cancelled after `seconds` without an answer."""
        if self._percentile is not None and seconds > self._percentile:
            self._latencies.record(seconds)

    def snapshot(self) -> dict[str, Any]:
        """Return limit and percentile in force and the count of expiries as plain JSON types."""
        return {
            "limit": self.limit(),
            "percentile": self._percentile,
            "expired_count": self._expired,
        }

    def _renew(self, now: float) -> None:
        config = self.config
        found = self._latencies.percentile(config.percentile, config.min_samples)
        self._percentile = found
        if found is None:
            self._limit = config.maximum
        else:
            self._limit = min(max(config.factor * found, config.minimum), config.maximum)
            self._stale_at = now + config.window / _RENEWALS


@Position.ATTEMPT
class AdaptiveTimeoutLayer:
    """Bound one attempt by what the latest attempts took.

    Position: innermost, in place of `AttemptTimeoutLayer`, so that retry may try again and the
    breaker sees the failure. The time that counts is that to the answer's beginning. One layer
    belongs to one kind of request: where short and long ones mix, the long ones set the limit.

    Args:
        config: Bounds and percentile.
        name: Service that is called, used in events.
        clock: Source of monotonic time.
        listeners: Told when an attempt's time is up.
    """

    def __init__(
        self,
        config: AdaptiveTimeoutConfig,
        *,
        name: str = "service",
        clock: Clock = MONOTONIC,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self._timeout = AdaptiveTimeout(config, clock=clock)
        self._name = name
        self._clock = clock
        self._listeners = listeners

    def snapshot(self) -> dict[str, Any]:
        """Return limit and percentile in force (seconds) and how many attempts ran into it."""
        return self._timeout.snapshot()

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        timeout, clock = self._timeout, self._clock
        seconds = timeout.limit()
        limit = TimeLimit(seconds, AttemptTimeoutError, "the attempt", clock)
        began = clock.now()
        try:
            with limit:
                response = await inner.send(request)
        except AttemptTimeoutError:
            if limit.expired:  # and not one within
                timeout.expire()
                self._listeners(AttemptTimedOut(self._name, seconds))
            raise
        except asyncio.CancelledError:
            timeout.abandon(clock.now() - began)
            raise
        if inner.semantics.judge(response) is _OK:
            timeout.record(clock.now() - began)
        return response

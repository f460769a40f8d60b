"""What every rate limiter shares: one line of waiters, reservations, refunds, pauses, advice."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Mapping
from typing import Any

from shared.infrastructure.resilience.clock import Clock
from shared.infrastructure.resilience.errors import ConfigurationError, RateLimitExceededError
from shared.infrastructure.resilience.layer import Verdict
from shared.infrastructure.resilience.limits.headers import read_rate_headers
from shared.infrastructure.resilience.limits.pacing import Pacing
from shared.infrastructure.resilience.limits.reservation import Reservation
from shared.infrastructure.resilience.wait_queue import WaitQueue

TOLERANCE = 1e-9
"""Seconds; sums of floats land a hair beside the exact instant, and nobody waits for that."""


class RateLimiter(abc.ABC):
    """Permits at a limited rate, for waiters in order of arrival.

    Attributes:
        rate: Permits per second in the long run.
        ramp_time: Seconds after a pause during which permits are spread.
        last_granted_at: Instant of the latest grant, on the limiter's clock.
        adapts: Whether `record` changes anything.
    """

    adapts = False

    def __init__(self, clock: Clock, *, rate: float, ramp_time: float) -> None:
        self.clock = clock
        self.rate = rate
        self.ramp_time = ramp_time
        self.last_granted_at = -math.inf
        self._now = clock.now
        self._queue = WaitQueue(self._take, self.refund, clock)
        self._line = self._queue.line
        self._advice = Pacing()
        self._paused_until = -math.inf
        # Neither a pause nor advice is in force from here on: one comparison on the hot path.
        self._free_from = -math.inf
        self._granted = 0.0
        self._refused = 0

    @property
    @abc.abstractmethod
    def capacity(self) -> float:
        """The largest cost that can ever be granted at once."""

    @property
    @abc.abstractmethod
    def utilization(self) -> float:
        """The share of the capacity in use now, 0.0 to 1.0."""

    @abc.abstractmethod
    def most_within(self, seconds: float) -> float:
        """The bound that is kept: no span of `seconds` sees more permits than this."""

    @abc.abstractmethod
    def ramp(self, start: float) -> None:
        """Grant from instant `start` on at the sustained rate, without a burst."""

    @abc.abstractmethod
    def _delay(self, cost: float, now: float) -> float:
        """Return the seconds until `cost` could be granted; 0.0 means now."""

    @abc.abstractmethod
    def _spend(self, cost: float, now: float) -> None:
        """Account for `cost` granted now."""

    @abc.abstractmethod
    def _unspend(self, cost: float, granted_at: float) -> None:
        """Undo `_spend` for `cost` granted at `granted_at`, or latest if that is in the future."""

    def try_acquire(self, cost: float = 1.0) -> bool:
        """Take `cost` if it is there and nobody waits for it; never wait."""
        return not self._line and self._take(cost) == 0.0

    async def acquire(self, cost: float = 1.0, *, max_wait: float | None = None) -> None:
        """Take `cost`, waiting in line if need be.

        Raises:
            RateLimitExceededError: The permit would come later than `max_wait` seconds from now;
                known cases are refused at once, without waiting.
            ConfigurationError: `cost` is not positive, or more than the limiter ever holds.
        """
        # A cost that is too large is never there: only what waits needs the full check.
        if cost > 0.0 and self.try_acquire(cost):
            return
        self._check(cost)
        if max_wait is not None:
            delay = self.delay(self._queue.queued_cost + cost, self._now())
            if delay > max_wait:
                self._refuse(delay)
        if not await self._queue.join(cost, max_wait):
            self._refuse(self.delay(self._queue.queued_cost + cost, self._now()))

    def try_reserve(self, cost: float) -> Reservation | None:
        """Reserve `cost` if it is there and nobody waits for it, else return None.

        Raises:
            ConfigurationError: `cost` is not positive, or more than the limiter ever holds.
        """
        self._check(cost)
        return self._reservation(cost) if self.try_acquire(cost) else None

    async def reserve(self, cost: float, *, max_wait: float | None = None) -> Reservation:
        """Take a permit for an estimated `cost`, to be settled when the true cost is known.

        Raises what `acquire` raises.
        """
        await self.acquire(cost, max_wait=max_wait)
        return self._reservation(cost)

    def refund(self, cost: float = 1.0, *, granted_at: float = math.inf) -> None:
        """Give back a permit that was not used; the next waiter may have it at once.

        Args:
            cost: Permits to give back.
            granted_at: `last_granted_at` as it was when the permit was granted; default: it is
                the latest one.
        """
        self._unspend(cost, granted_at)
        self._advice.unspend(cost)
        self._granted -= cost
        self._queue.pump()

    def pause(self, seconds: float) -> None:
        """Grant nothing for `seconds`, as a service asks for with 429 and Retry-After.

        Afterwards nobody bursts: a token bucket starts empty and fills at its rate, and a sliding
        window spreads its permits evenly over its first window. 0 seconds or less is no pause.
        """
        self.pause_until(self._now() + seconds)

    def pause_until(self, instant: float) -> None:
        """Grant nothing before `instant` of the limiter's clock; see `pause` for what follows."""
        if not instant > max(self._paused_until, self._now()):  # NaN is no pause either
            return
        self._paused_until = instant
        self._free_from = max(instant, self._advice.until)
        self.ramp(instant)
        self._queue.pump()

    def observe(self, headers: Mapping[str, str], *, unit: str = "requests") -> None:
        """Slow down as the headers of an answer advise; they never make the limiter faster.

        A quota that is used up, or Retry-After, pauses everybody. One that might not last until
        its reset, by `most_within`, spaces permits so that it does; the latest answer that names
        a quota counts. Nonsense is ignored. The forms that are read are listed in
        `read_rate_headers`.

        Args:
            headers: Of the answer; names in any case.
            unit: What a permit stands for, where a service has a quota each: `requests` or
                `tokens`.
        """
        advice = read_rate_headers(headers, unit=unit)
        pause = advice.retry_after
        interval = lasts = 0.0
        for quota in advice.quotas:
            if quota.remaining < 1.0:
                pause = max(pause, quota.reset)
            elif quota.remaining < self.most_within(quota.reset):
                interval, lasts = max(
                    (interval, lasts), (quota.reset / quota.remaining, quota.reset)
                )
        if advice.quotas:
            self._follow(interval, lasts)
        self.pause(pause)

    def record(self, verdict: Verdict, *, granted_at: float = math.inf) -> None:  # noqa: B027
        """Learn from what came of a call; a limiter that does not adapt has nothing to learn.

        Args:
            verdict: What the outcome says about the service.
            granted_at: `last_granted_at` as it was when the call's permit was granted; default:
                it is the latest one.
        """

    def delay(self, cost: float, now: float) -> float:
        """Return the seconds until `cost` could be granted if nobody waited; 0.0 means now."""
        delay = self._delay(cost, now)
        if now < self._free_from:
            delay = max(delay, self._paused_until - now, self._advice.delay(cost, now))
        return delay

    def charge(self, cost: float, now: float) -> None:
        """Count `cost` as granted now, be it there or not: what is missing is debt."""
        self._spend(cost, now)
        if now < self._free_from:
            self._advice.spend(cost, now)
        self._granted += cost
        self.last_granted_at = now

    def snapshot(self) -> dict[str, Any]:
        """Return utilisation and counters as plain JSON types."""
        return {
            "utilization": self.utilization,
            "capacity": self.capacity,
            "waiting": len(self._queue),
            "granted": self._granted,
            "refused_count": self._refused,
            "paused_for": max(0.0, self._paused_until - self._now()),
        }

    def _take(self, cost: float) -> float:
        now = self._now()
        delay = self.delay(cost, now)
        if delay > TOLERANCE:
            return delay
        self.charge(cost, now)
        return 0.0

    def _check(self, cost: float) -> None:
        if not 0.0 < cost <= self.capacity:
            raise ConfigurationError(
                f"cost {cost} can never be granted: it must be above 0 and at most {self.capacity}"
            )

    def _reservation(self, cost: float) -> Reservation:
        return Reservation(cost, functools.partial(self._settle, cost, self.last_granted_at))

    def _settle(self, estimate: float, granted_at: float, actual: float) -> None:
        if actual < estimate:
            self.refund(estimate - actual, granted_at=granted_at)
        elif actual > estimate:
            self.charge(actual - estimate, self._now())

    def _follow(self, interval: float, lasts: float) -> None:
        now = self._now()
        if interval > 0.0:
            self._advice.change(interval, now + lasts, now)
        else:
            self._advice.stop()
        self._free_from = max(self._paused_until, self._advice.until)
        self._queue.pump()

    def _refuse(self, delay: float) -> None:
        self._refused += 1
        raise RateLimitExceededError(
            f"the next permit is {delay:.3f} s away, longer than the call can wait",
            retry_after=delay,
        )

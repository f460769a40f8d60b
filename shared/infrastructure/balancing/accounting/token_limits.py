"""How many requests and tokens a minute one host takes: reserved before, settled after.

Each limit is a token bucket that holds one minute's worth and fills evenly. Within any minute, no
more is admitted than what the bucket held and what came in, so at most twice the limit after a
quiet time, and the limit in the long run; what calls cost beyond their estimate is debt, which
those who come next wait off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shared.infrastructure.balancing.accounting.estimate import Estimate
from shared.infrastructure.balancing.accounting.quotas import (
    INPUT,
    OUTPUT,
    REQUESTS,
    TOKENS,
    Quota,
    read_quotas,
)
from shared.infrastructure.balancing.errors import TokenLimitError
from shared.infrastructure.resilience import MONOTONIC, Clock
from shared.infrastructure.resilience.limits import TokenBucket

if TYPE_CHECKING:  # hosts stand on accounting
    from shared.infrastructure.balancing.hosts.config import HostLimits

_MINUTE = 60.0
MOST_OWED = 5.0
"""Bucketfuls that a call costs, and that are owed, at most: a host can count what it wants."""

# Seconds after which what a host said of its limits is forgotten, unless it says it again, and
# after which one call goes all the same to hear what it says now.
_REMEMBERED, _PROBED_AFTER = 300.0, 60.0
# A used up quota that is whole again so much sooner than it would be evenly, is so all at once.
_WINDOWED = 0.75
# Resets shorter than this are rounded too coarsely to derive a rate from.
_TELLING = 1.0

# By what a limit counts, how many permits a call takes, a token read and a token written.
_COUNTS = {REQUESTS: (1, 0, 0), TOKENS: (0, 1, 1), INPUT: (0, 1, 0), OUTPUT: (0, 0, 1)}


class TokenLimits:
    """The limits of one host, shared by all calls to it.

    All is synchronous: between `delay` and `reserve` nobody can come in, unless you await.

    An estimate that is larger than a whole bucket is admitted when the bucket is full, and leaves
    a debt of at most five bucketfuls.

    What the user says holds for good. What the host says holds for five minutes after it said it
    last, and where that alone is in the way, one call a minute goes nonetheless: a host that talks
    nonsense is not lost.

    Args:
        limits: What the user says the host takes; its headers may say less, and where the user
            says nothing, what they say holds.
        clock: Source of monotonic time.
    """

    __slots__ = ("_by_unit", "_clock", "_lines", "_now")

    def __init__(self, limits: HostLimits, *, clock: Clock = MONOTONIC) -> None:
        self._clock = clock
        self._now = clock.now
        self._by_unit = {
            unit: _Line(unit, limit, clock) for unit, limit in _configured(limits).items()
        }
        self._lines = tuple(self._by_unit.values())

    def delay(self, estimate: Estimate) -> float:
        """Return the seconds until the call could go; 0.0 is now."""
        lines = self._lines
        if not lines:
            return 0.0
        now = self._now()
        return max([line.delay(estimate, now) for line in lines])

    def reserve(self, estimate: Estimate) -> TokenReservation:
        """Take what the call will probably cost.

        Raises:
            TokenLimitError: It cannot go now; `retry_after` is the delay.
        """
        delay = self.delay(estimate)
        if delay > 0.0:
            raise TokenLimitError(
                f"the token limits leave room in {delay:.3g} s", retry_after=delay
            )
        now = self._now()
        lines = self._lines
        for line in lines:
            line.take(cost_of(line.unit, estimate.input, estimate.output), now)
        return TokenReservation(lines, estimate, now)

    def observe(self, headers: Mapping[str, str]) -> None:
        """Believe what the headers of an answer say of the host's limits, where it is less.

        Read are `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` and
        `anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-…`, which count by the
        minute; and `x-ratelimit-{limit,remaining,reset}`, whose limit holds until the reset.
        """
        for unit, quota in read_quotas(headers).items():
            line = self._by_unit.get(unit)
            if line is None:
                if not quota.names_rate:
                    continue
                line = self._by_unit[unit] = _Line(unit, None, self._clock)
                self._lines = tuple(self._by_unit.values())
            line.believe(quota, self._now())

    def snapshot(self) -> dict[str, Any]:
        """Return by what is counted: the `limit` a minute, what is `available`, and `named`.

        `available` is below zero in debt; `named` is what the host says is its limit, if it does.
        """
        now = self._now()
        shown = {line.unit: line.snapshot(now) for line in self._lines}
        return {unit: line for unit, line in shown.items() if line}


class TokenReservation:
    """What one call has taken; settled or cancelled once, whichever comes first."""

    __slots__ = ("_granted_at", "_lines", "estimate")

    def __init__(self, lines: tuple[_Line, ...], estimate: Estimate, granted_at: float) -> None:
        self._lines = lines
        self._granted_at = granted_at
        self.estimate = estimate

    def settle(self, input: int, output: int) -> None:  # noqa: A002 - the word for tokens read
        """Charge what it cost: give back what was too much, and owe what was too little."""
        estimate = self.estimate
        for line in self._close():
            reserved = cost_of(line.unit, estimate.input, estimate.output)
            line.settle(reserved, cost_of(line.unit, input, output), self._granted_at)

    def cancel(self) -> None:
        """Give everything back."""
        estimate = self.estimate
        for line in self._close():
            reserved = cost_of(line.unit, estimate.input, estimate.output)
            line.settle(reserved, 0.0, self._granted_at)

    def _close(self) -> tuple[_Line, ...]:
        lines, self._lines = self._lines, ()
        return lines


class _Meter:
    """A bucket that can be in debt, to a bound."""

    __slots__ = ("bucket", "most")

    def __init__(self, rate: float, limit: float, clock: Clock) -> None:
        self.bucket = TokenBucket(rate, max(1, round(limit)), clock=clock)
        self.most = self.bucket.burst * MOST_OWED

    def delay(self, cost: float, now: float) -> float:
        """Return the seconds until the bucket has it; until it is full, if it never can."""
        bucket = self.bucket
        return bucket.delay(min(cost, bucket.burst), now)

    def take(self, cost: float, now: float) -> None:
        """Take permits, be they there or not."""
        allowed = self.available(now) + self.most
        if allowed > 0.0:
            self.bucket.charge(min(cost, self.most, allowed), now)

    def settle(self, reserved: float, cost: float, granted_at: float, now: float) -> None:
        """Charge what it cost in place of what was taken for it."""
        surplus = min(reserved, self.most) - min(cost, self.most)
        if surplus > 0.0:
            self.bucket.refund(surplus, granted_at=granted_at)
        elif surplus < 0.0:
            self.take(-surplus, now)

    def available(self, now: float) -> float:
        """Return the permits in the bucket; below zero, those that are owed."""
        bucket = self.bucket
        return bucket.burst - bucket.delay(bucket.burst, now) * bucket.rate

    def lower(self, level: float, now: float) -> None:
        """Have no more than so many permits."""
        if (surplus := self.available(now) - level) > 0.0:
            self.take(surplus, now)


class _Learned(_Meter):
    """What a host says of one of its limits, as long as it may be believed."""

    __slots__ = ("_forgotten_at", "_probe_at", "limit", "since")

    def __init__(self, rate: float, limit: float, clock: Clock, since: float, now: float) -> None:
        super().__init__(rate, limit, clock)
        self.limit = limit
        self.since = since
        self._forgotten_at = now + _REMEMBERED
        self._probe_at = now + _PROBED_AFTER

    def is_past(self, now: float) -> bool:
        return now >= self._forgotten_at

    def delay(self, cost: float, now: float) -> float:
        return max(0.0, min(super().delay(cost, now), self._probe_at - now))

    def take(self, cost: float, now: float) -> None:
        if now >= self._probe_at:  # whoever comes next waits for what this one hears
            self._probe_at = now + _PROBED_AFTER
        super().take(cost, now)

    def settle(self, reserved: float, cost: float, granted_at: float, now: float) -> None:
        # Of what was taken before it was learned, the host has told what is left.
        if granted_at >= self.since:
            super().settle(reserved, cost, granted_at, now)


class _Line:
    """One limit: what the user says, and what the host says."""

    __slots__ = ("_clock", "_configured", "_learned", "_limit", "unit")

    def __init__(self, unit: str, limit: float | None, clock: Clock) -> None:
        self.unit = unit
        self._limit = limit
        self._clock = clock
        self._configured = None if limit is None else _Meter(limit / _MINUTE, limit, clock)
        self._learned: _Learned | None = None

    def delay(self, estimate: Estimate, now: float) -> float:
        """Return the seconds until both have room for a call."""
        cost = cost_of(self.unit, estimate.input, estimate.output)
        if not cost:
            return 0.0
        delay = 0.0 if self._configured is None else self._configured.delay(cost, now)
        learned = self._learned_by(now)
        return delay if learned is None else max(delay, learned.delay(cost, now))

    def take(self, cost: float, now: float) -> None:
        """Take permits, be they there or not."""
        if cost:
            for meter in self._meters(now):
                meter.take(cost, now)

    def settle(self, reserved: float, cost: float, granted_at: float) -> None:
        """Charge what a call cost in place of what was taken for it."""
        now = self._clock.now()
        for meter in self._meters(now):
            meter.settle(reserved, cost, granted_at, now)

    def believe(self, quota: Quota, now: float) -> None:
        """Have no more than the host says, and no sooner."""
        remaining = quota.remaining
        if quota.names_rate:
            self._learned = self._learn(quota, now)
        elif remaining is not None:
            for meter in self._meters(now):
                meter.lower(remaining, now)

    def snapshot(self, now: float) -> dict[str, Any]:
        meters = self._meters(now)
        if not meters:
            return {}
        learned = self._learned_by(now)
        named = None if learned is None else learned.limit
        limits = [limit for limit in (self._limit, named) if limit is not None]
        available = min(meter.available(now) for meter in meters)
        return {"limit": min(limits), "available": available, "named": named}

    def _learn(self, quota: Quota, now: float) -> _Learned:
        limit, remaining, reset = quota.limit or 1.0, quota.remaining, quota.reset
        before = self._learned_by(now)
        level = min((meter.available(now) for meter in self._meters(now)), default=limit)
        since = now if before is None else before.since
        learned = _Learned(_rate_of(quota, limit, level), limit, self._clock, since, now)
        learned.lower(level if before is not None or level < 0.0 else limit, now)
        if remaining is None:
            return learned
        learned.lower(remaining, now)
        # An empty quota that fills evenly is whole in a minute; a window, when it is over.
        is_window = not quota.is_by_minute or (reset or _MINUTE) < _WINDOWED * _MINUTE
        if remaining < 1.0 and is_window:
            learned.bucket.pause(reset or 0.0)
        return learned

    def _learned_by(self, now: float) -> _Learned | None:
        if self._learned is not None and self._learned.is_past(now):
            self._learned = None
        return self._learned

    def _meters(self, now: float) -> tuple[_Meter, ...]:
        both = self._configured, self._learned_by(now)
        return tuple(meter for meter in both if meter is not None)


def _rate_of(quota: Quota, limit: float, level: float) -> float:
    """Return the permits a second: as many as make the host's quota whole at its reset."""
    reset = quota.reset or 0.0
    if not quota.is_by_minute:
        return limit / max(reset, _TELLING)
    rate, remaining = limit / _MINUTE, quota.remaining
    # Where we have less than the host says, it is our own limit that matters.
    if remaining is None or remaining > level:
        return rate
    used = limit - remaining
    return min(rate, used / reset) if used > 0.0 and reset >= _TELLING else rate


def cost_of(unit: str, read: int, written: int) -> float:
    """Return the permits that a call of so many tokens takes from the limit of `unit`."""
    calls, reads, writes = _COUNTS[unit]
    return float(calls + reads * read + writes * written)


def buckets_of(limits: HostLimits, clock: Clock) -> dict[str, TokenBucket]:
    """Return a bucket of a minute's worth for each limit, by what it counts."""
    return {
        unit: TokenBucket(limit / _MINUTE, max(1, round(limit)), clock=clock)
        for unit, limit in _configured(limits).items()
    }


def _configured(limits: HostLimits) -> dict[str, float]:
    configured = {
        REQUESTS: limits.requests_per_minute,
        TOKENS: limits.tokens_per_minute,
        INPUT: limits.input_tokens_per_minute,
        OUTPUT: limits.output_tokens_per_minute,
    }
    return {unit: limit for unit, limit in configured.items() if limit is not None}

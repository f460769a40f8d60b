"""Token limits that several processes keep together, each with a place in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from shared.infrastructure.balancing.accounting.estimate import Estimate
from shared.infrastructure.balancing.accounting.token_limits import (
    MOST_OWED,
    buckets_of,
    cost_of,
)
from shared.infrastructure.balancing.errors import TokenLimitError
from shared.infrastructure.resilience import MONOTONIC, Clock, RateLimitExceededError
from shared.infrastructure.resilience.limits import Reservation
from shared.infrastructure.resilience.limits.redis_limiter import RedisLimiter
from shared.infrastructure.resilience.limits.redis_store import RedisStore

if TYPE_CHECKING:  # hosts stand on accounting
    from shared.infrastructure.balancing.hosts.config import HostLimits


class CostLimiter(Protocol):
    """What is needed of a limiter: one in Redis, one of this process, or one of your own."""

    @property
    def capacity(self) -> float:
        """The largest cost that can be granted at once."""
        ...

    async def reserve(self, cost: float, *, max_wait: float | None = None) -> Reservation:
        """Take a permit for an estimated cost, waiting in line if need be."""
        ...


class SharedTokenLimits:
    """The limits of one host, or of one key, for all processes that use it.

    Unlike `TokenLimits` it waits, in the line of each limit in turn: requests first, since they
    are cheapest to hold. A call larger than a bucket takes all of it, and owes the rest when it is
    settled.

    Args:
        limiters: By what they count: `requests`, `tokens`, `input-tokens`, `output-tokens`.
        clock: Source of monotonic time.
    """

    def __init__(self, limiters: Mapping[str, CostLimiter], *, clock: Clock = MONOTONIC) -> None:
        self._limiters = dict(limiters)
        self._clock = clock

    @classmethod
    def in_redis(
        cls, name: str, limits: HostLimits, store: RedisStore, *, clock: Clock = MONOTONIC
    ) -> SharedTokenLimits:
        """Keep limits in Redis.

        Args:
            name: Those who give the same name share the limits, and must give the same ones.
            limits: What the host takes a minute.
            store: Where they are shared; while it is away, each process keeps to them by itself.
            clock: Source of monotonic time.
        """
        limiters = {
            unit: RedisLimiter(f"{name}:{unit}", bucket, store)
            for unit, bucket in buckets_of(limits, clock).items()
        }
        return cls(limiters, clock=clock)

    async def reserve(
        self, estimate: Estimate, *, max_wait: float | None = None
    ) -> SharedTokenReservation:
        """Take what a call will probably cost, waiting in line if need be.

        Raises:
            TokenLimitError: It would take longer than `max_wait` seconds; nothing is kept.
            ConfigurationError: See `RedisLimiter.acquire`.
        """
        until = None if max_wait is None else self._clock.now() + max_wait
        taken: dict[str, Reservation] = {}
        try:
            for unit, limiter in self._limiters.items():
                if cost := min(cost_of(unit, *estimate[:2]), limiter.capacity):
                    left = None if until is None else max(0.0, until - self._clock.now())
                    taken[unit] = await limiter.reserve(cost, max_wait=left)
        except BaseException as exc:
            for reservation in taken.values():
                reservation.cancel()
            if isinstance(exc, RateLimitExceededError):
                raise TokenLimitError(
                    "the shared token limits leave no room in time", retry_after=exc.retry_after
                ) from exc
            raise
        capacities = {unit: self._limiters[unit].capacity for unit in taken}
        return SharedTokenReservation(taken, capacities)


class SharedTokenReservation:
    """What one call has taken from all processes; settled or cancelled once."""

    __slots__ = ("_capacities", "_taken")

    def __init__(self, taken: Mapping[str, Reservation], capacities: Mapping[str, float]) -> None:
        self._taken = taken
        self._capacities = capacities

    def settle(self, input: int, output: int) -> None:  # noqa: A002 - the word for tokens read
        """Charge what it cost; the others hear of it with the next exchange."""
        for unit, reservation in self._taken.items():
            cost = cost_of(unit, input, output)
            reservation.commit(min(cost, self._capacities[unit] * MOST_OWED))

    def cancel(self) -> None:
        """Give everything back."""
        for reservation in self._taken.values():
            reservation.cancel()

"""Every limiter against its ideal: who is served, in which order, and at which instant."""

import asyncio
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from shared.infrastructure.resilience import (
    AllOf,
    RateLimiter,
    RateLimitExceededError,
    Reservation,
    SlidingWindow,
    TokenBucket,
)
from tests.property.ideal_limits import (
    Ideal,
    IdealAll,
    IdealBucket,
    IdealLine,
    IdealWindow,
    Waiter,
)
from tests.property.machine import TICK, TimedMachine, thorough

COSTS = st.integers(1, 8)
KINDS = ("bucket", "window", "bucket and window", "nested")


class LimiterMachine(TimedMachine):
    """Callers come, lose patience, are cancelled and settle their permits, in any order."""

    limiter: RateLimiter
    ideal: IdealLine

    def __init__(self) -> None:
        super().__init__()
        self.callers: list[asyncio.Task[Any]] = []
        self.served: list[tuple[int, float]] = []
        self.refused: set[int] = set()
        self.held: list[tuple[float, Reservation]] = []
        self.net_cost = 0.0

    @initialize(kind=st.sampled_from(KINDS))
    def build(self, kind: str) -> None:
        clock = self.clock
        bucket, window = TokenBucket(8.0, 8, clock=clock), SlidingWindow(8, 1.0, clock=clock)
        slow = SlidingWindow(16, 4.0, clock=clock)
        self.bucket = IdealBucket(8.0, 8)
        ideal_window, ideal_slow = IdealWindow(8, 1.0), IdealWindow(16, 4.0)
        pairs: dict[str, tuple[RateLimiter, Ideal]] = {
            "bucket": (bucket, self.bucket),
            "window": (window, ideal_window),
            "bucket and window": (AllOf(bucket, slow), IdealAll(self.bucket, ideal_slow)),
            "nested": (AllOf(AllOf(window), slow), IdealAll(ideal_window, ideal_slow)),
        }
        self.kind = kind
        self.limiter, limit = pairs[kind]
        self.ideal = IdealLine(limit)

    @rule(cost=COSTS)
    def try_without_waiting(self, cost: int) -> None:
        free = not self.ideal.waiters and self.ideal.delay(cost) == 0.0
        reservation = self.limiter.try_reserve(cost)
        assert (reservation is not None) == free
        if reservation is not None:
            self.ideal.limit.take(cost, self.clock.now())
            self.hold(reservation)

    @rule(cost=COSTS, patience=st.none() | st.integers(0, 200))
    def come(self, cost: int, patience: int | None) -> None:
        # Half a tick more, so that nobody leaves at the very instant of being served.
        max_wait = None if patience is None else (patience + 0.5) * TICK
        newcomer = Waiter(len(self.callers), cost)
        if max_wait is not None:
            newcomer.leaves_at = self.clock.now() + max_wait
        is_hopeless = self.ideal.would_serve(newcomer) > newcomer.leaves_at
        self.callers.append(self.start(self.call(newcomer.number, cost, max_wait)))
        if newcomer.number in self.refused:
            assert is_hopeless
        else:
            self.ideal.join(newcomer)

    async def call(self, number: int, cost: int, max_wait: float | None) -> None:
        try:
            reservation = await self.limiter.reserve(cost, max_wait=max_wait)
        except RateLimitExceededError:
            self.refused.add(number)
        else:
            self.served.append((number, self.clock.now()))
            self.hold(reservation)

    @precondition(lambda self: self.ideal.waiters)
    @rule(data=st.data())
    def cancel_a_waiter(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([waiter.number for waiter in self.ideal.waiters]))
        self.cancel(self.callers[number])
        assert self.callers[number].cancelled()
        self.ideal.leave(number)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), quarters=st.integers(0, 6))
    def settle(self, data: st.DataObject, quarters: int) -> None:
        at, reservation = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        surplus, now = reservation.cost * (4 - quarters) / 4, self.clock.now()
        reservation.commit(reservation.cost - surplus)
        reservation.commit(0.0)  # only the first settlement counts
        self.net_cost -= surplus
        if surplus > 0.0:
            self.ideal.limit.give_back(surplus, now, at)
        else:
            self.ideal.limit.take(-surplus, now)
        self.let_pass(0)

    @precondition(lambda self: self.kind == "bucket")
    @rule(ticks=st.integers(1, 100))
    def pause(self, ticks: int) -> None:
        until = self.clock.now() + ticks * TICK
        self.limiter.pause(ticks * TICK)
        if until > self.ideal.paused_until:
            self.ideal.paused_until = until
            self.bucket.empty(until)

    @rule(ticks=st.integers(1, 100))
    def let_pass(self, ticks: int) -> None:
        self.pass_time(ticks * TICK)
        self.ideal.move_to(self.clock.now())

    @invariant()
    def everybody_is_served_in_order_and_at_the_instant_of_the_ideal(self) -> None:
        if hasattr(self, "ideal"):
            assert self.served == self.ideal.served

    @invariant()
    def the_books_balance(self) -> None:
        if hasattr(self, "limiter"):
            snapshot = self.limiter.snapshot()
            assert snapshot["granted"] == self.net_cost
            assert snapshot["waiting"] == len(self.ideal.waiters)
            # One timer for the line, and one for each caller whose patience has an end.
            assert self.clock.pending <= 1 + len(self.ideal.waiters)

    def at_the_end(self) -> None:
        """Everybody has been served or has left, and all permits come back."""
        if not hasattr(self, "limiter"):
            return
        self.let_pass(100_000)
        assert self.served == self.ideal.served
        assert all(caller.done() for caller in self.callers)
        assert self.clock.pending == 0
        assert self.limiter.utilization == 0.0
        assert self.limiter.try_acquire(8)

    def hold(self, reservation: Reservation) -> None:
        self.held.append((self.clock.now(), reservation))
        self.net_cost += reservation.cost


TestLimiterMachine = LimiterMachine.TestCase
TestLimiterMachine.settings = thorough(examples=120, steps=40)

"""Token limits under any order of calls: the books balance, and no minute sees too much."""

import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from shared.infrastructure.balancing.accounting import Estimate, TokenLimits, TokenReservation
from shared.infrastructure.balancing.errors import TokenLimitError
from shared.infrastructure.balancing.hosts.config import HostLimits
from tests.property.machine import TICK, TimedMachine, thorough

SIZES = st.integers(0, 400)
LIMITS = st.none() | st.sampled_from([60.0, 240.0, 960.0])
ALMOST = 1e-6
# Bucketfuls that a call costs at most, and that are owed at most.
MOST = 5.0


class Ideal:
    """One limit as a level that fills evenly, and a log of all that was taken and given back."""

    def __init__(self, limit: float, counts: tuple[int, int, int]) -> None:
        self.capacity = limit
        self.rate = limit / 60.0
        self.level = limit
        self.at = 0.0
        self.log: list[tuple[float, float]] = []
        self._counts = counts

    def cost(self, read: int, written: int) -> float:
        calls, reads, writes = self._counts
        return min(MOST * self.capacity, float(calls + reads * read + writes * written))

    def move_to(self, now: float) -> None:
        self.level = min(self.capacity, self.level + (now - self.at) * self.rate)
        self.at = now

    def take(self, cost: float) -> None:
        cost = min(cost, self.level + MOST * self.capacity)
        self.level = min(self.capacity, self.level - cost)
        self.log.append((self.at, cost))

    def delay(self, cost: float) -> float:
        if not cost:
            return 0.0
        missing = min(cost, self.capacity) - self.level
        return max(0.0, missing / self.rate)

    def check_every_span_before(self, cost: float) -> None:
        """What went since any instant is what the bucket held, and what came in, and one giant."""
        taken = 0.0
        for at, amount in reversed(self.log):
            taken += amount
            most = self.capacity + self.rate * (self.at - at)
            assert taken <= most + max(0.0, cost - self.capacity) + ALMOST


COUNTS = {
    "requests": (1, 0, 0),
    "tokens": (0, 1, 1),
    "input-tokens": (0, 1, 0),
    "output-tokens": (0, 0, 1),
}


class TokenLimitsMachine(TimedMachine):
    """Calls come, cost more or less than estimated, fail, and the host says what is left."""

    limits: TokenLimits

    def __init__(self) -> None:
        super().__init__()
        self.ideals: dict[str, Ideal] = {}
        self.held: list[TokenReservation] = []

    @initialize(requests=LIMITS, tokens=LIMITS, read=LIMITS, written=LIMITS)
    def build(
        self,
        requests: float | None,
        tokens: float | None,
        read: float | None,
        written: float | None,
    ) -> None:
        self.limits = TokenLimits(
            HostLimits(
                requests_per_minute=requests,
                tokens_per_minute=tokens,
                input_tokens_per_minute=read,
                output_tokens_per_minute=written,
            ),
            clock=self.clock,
        )
        given = zip(COUNTS, (requests, tokens, read, written), strict=True)
        self.ideals = {unit: Ideal(limit, COUNTS[unit]) for unit, limit in given if limit}

    def ideal_delay(self, estimate: Estimate) -> float:
        costs = [(ideal, ideal.cost(*estimate[:2])) for ideal in self.ideals.values()]
        return max((ideal.delay(cost) for ideal, cost in costs), default=0.0)

    @rule(read=SIZES, written=SIZES)
    def come(self, read: int, written: int) -> None:
        estimate = Estimate(read, written)
        delay = self.limits.delay(estimate)
        assert delay == pytest.approx(self.ideal_delay(estimate), abs=ALMOST)
        if delay > 0.0:
            with pytest.raises(TokenLimitError) as refused:
                self.limits.reserve(estimate)
            assert refused.value.retry_after == delay
            return
        self.held.append(self.limits.reserve(estimate))
        for ideal in self.ideals.values():
            cost = ideal.cost(read, written)
            ideal.take(cost)
            if cost:
                ideal.check_every_span_before(cost)

    @rule(read=SIZES)
    def a_stampede_comes(self, read: int) -> None:
        """However many come at once, those get in for whom there is room one after another."""
        for _ in range(20):
            if self.limits.delay(Estimate(read, read)) > 0.0:
                return
            self.come(read, read)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), read=SIZES, written=SIZES)
    def settle(self, data: st.DataObject, read: int, written: int) -> None:
        reservation = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        reservation.settle(read, written)
        reservation.cancel()  # only the first counts
        for ideal in self.ideals.values():
            ideal.take(ideal.cost(read, written) - ideal.cost(*reservation.estimate[:2]))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def cancel_a_call(self, data: st.DataObject) -> None:
        reservation = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        reservation.cancel()
        reservation.settle(1000, 1000)
        for ideal in self.ideals.values():
            ideal.take(-ideal.cost(*reservation.estimate[:2]))

    @precondition(lambda self: self.ideals)
    @rule(data=st.data(), left=st.integers(1, 1000))
    def the_host_says_what_is_left(self, data: st.DataObject, left: int) -> None:
        unit = data.draw(st.sampled_from(sorted(self.ideals)))
        self.limits.observe({f"anthropic-ratelimit-{unit}-remaining": str(left)})
        ideal = self.ideals[unit]
        if ideal.level > left:
            ideal.take(ideal.level - left)

    @rule(ticks=st.integers(1, 64 * 90))
    def let_pass(self, ticks: int) -> None:
        self.pass_time(ticks * TICK)
        for ideal in self.ideals.values():
            ideal.move_to(self.clock.now())

    @invariant()
    def the_books_balance(self) -> None:
        if not hasattr(self, "limits"):
            return
        available = {unit: line["available"] for unit, line in self.limits.snapshot().items()}
        levels = {unit: ideal.level for unit, ideal in self.ideals.items()}
        assert available == pytest.approx(levels, abs=1e-3)

    def at_the_end(self) -> None:
        """All that was taken comes back, and every call can go some time."""
        if not hasattr(self, "limits"):
            return
        for reservation in self.held:
            reservation.cancel()
        giant = Estimate(10_000, 10_000)
        assert self.limits.delay(giant) < math.inf
        self.pass_time(100_000.0)
        assert self.limits.delay(giant) == 0.0


TestTokenLimitsMachine = TokenLimitsMachine.TestCase
TestTokenLimitsMachine.settings = thorough(examples=120, steps=40)

"""Whatever waits gives everything back, at whichever of its waits it is interrupted."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from shared.infrastructure.resilience import (
    AttemptTimeoutLayer,
    Bulkhead,
    BulkheadConfig,
    BulkheadLayer,
    CallStats,
    ChainLayer,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerLayer,
    CircuitGate,
    DeadlineLayer,
    EndpointGuard,
    FallbackLayer,
    HealthMonitor,
    HedgeConfig,
    HedgeLayer,
    Keyed,
    KeyedLayer,
    Layer,
    ObserveLayer,
    RateLimitConfig,
    RateLimitLayer,
    RetryBudget,
    RetryBudgetConfig,
    RetryConfig,
    RetryLayer,
    SingleFlight,
    SlidingWindow,
    TokenBucket,
    Verdict,
    remaining_time,
    stack,
)
from shared.infrastructure.resilience.layer import PlainCall
from shared.infrastructure.testing import FakeClock
from tests.property.cancellation import Interruption, Work, interrupt_everywhere

EVERY_WAY = pytest.mark.parametrize("how", list(Interruption), ids=lambda how: how.name.lower())


class Answer:
    """An answer that must be used or discarded, and by one only."""

    def __init__(self, good: bool) -> None:
        self.good = good
        self.discarded = 0


class Semantics(PlainCall):
    """Answers may be bad, and to discard one takes time."""

    def judge(self, outcome: object) -> Verdict:
        if isinstance(outcome, Answer):
            return Verdict.OK if outcome.good else Verdict.FAILED
        return super().judge(outcome)

    async def discard(self, response: Any) -> None:
        response.discarded += 1
        await asyncio.sleep(0)


class Upstream:
    """A service that answers after a while: each call by its plan, the last one for ever."""

    def __init__(self, clock: FakeClock, *plan: tuple[float, bool]) -> None:
        self._clock = clock
        self._plan = plan
        self.calls = self.in_flight = 0
        self.answers: list[Answer] = []

    async def __call__(self, _request: object) -> Answer:
        seconds, good = self._plan[min(self.calls, len(self._plan) - 1)]
        self.calls += 1
        self.in_flight += 1
        try:
            await self._clock.sleep(seconds)
            await asyncio.sleep(0)
        finally:
            self.in_flight -= 1
        answer = Answer(good)
        self.answers.append(answer)
        return answer

    def check(self, outcome: object) -> None:
        assert self.in_flight == 0
        for answer in self.answers:
            assert answer.discarded == (answer is not outcome), "an answer leaks, or is lost"


def over(upstream: Upstream, *layers: Layer[Any, Any]) -> Callable[[object], Any]:
    return stack(upstream, *layers, semantics=Semantics())


async def send(call: Callable[[object], Any]) -> Any:
    answer = await call("x")
    assert remaining_time() is None
    return answer


def after_a_failed_call(breaker: CircuitBreaker, clock: FakeClock) -> None:
    breaker.admit().settle(Verdict.FAILED)
    clock.stall(breaker.config.timeout)


@EVERY_WAY
@pytest.mark.parametrize("kind", ["bucket", "window"])
def test_a_permit_is_spent_by_calls_that_went_and_by_no_other(how: Interruption, kind: str) -> None:
    def build(clock: FakeClock) -> Work:
        limiter = (
            TokenBucket(1.0, 1, clock=clock) if kind == "bucket" else SlidingWindow(1, clock=clock)
        )
        upstream = Upstream(clock, (0.5, True))
        call = over(upstream, RateLimitLayer(limiter))

        def check(_outcome: object) -> None:
            snapshot = limiter.snapshot()
            assert (snapshot["granted"], snapshot["waiting"]) == (upstream.calls, 0)
            assert limiter.try_acquire()

        return Work(lambda: send(call), check, [lambda: send(call)] * 2)

    assert interrupt_everywhere(build, how) > 3


@EVERY_WAY
def test_a_reservation_left_open_is_given_back(how: Interruption) -> None:
    def build(clock: FakeClock) -> Work:
        limiter = TokenBucket(1.0, 4, clock=clock)

        async def reserve(actual: float) -> float:
            with await limiter.reserve(4) as reservation:
                await clock.sleep(1.0)
                reservation.commit(actual)
                await clock.sleep(1.0)
            used.append(actual)
            return actual

        used: list[float] = []

        def check(outcome: object) -> None:
            assert limiter.snapshot()["waiting"] == 0
            assert limiter.utilization == 0.0
            assert limiter.snapshot()["granted"] >= sum(used)
            assert limiter.snapshot()["granted"] in {0.0, 1.0, 2.0, 3.0}

        return Work(lambda: reserve(2), check, [lambda: reserve(1)])

    assert interrupt_everywhere(build, how) > 3


@EVERY_WAY
def test_a_slot_is_given_back(how: Interruption) -> None:
    def build(clock: FakeClock) -> Work:
        bulkhead = Bulkhead(BulkheadConfig(max_concurrent=1, max_wait=30.0), clock=clock)
        upstream = Upstream(clock, (1.0, True))
        call = over(upstream, BulkheadLayer(bulkhead))

        def check(_outcome: object) -> None:
            assert bulkhead.snapshot()["in_flight"] == bulkhead.snapshot()["waiting"] == 0
            assert upstream.in_flight == 0

        return Work(lambda: send(call), check, [lambda: send(call)] * 2)

    assert interrupt_everywhere(build, how) > 3


@EVERY_WAY
def test_a_probe_gives_its_slot_back_and_the_circuit_closes_later(how: Interruption) -> None:
    def build(clock: FakeClock) -> Work:
        config = CircuitBreakerConfig(failure_threshold=1, success_threshold=1, timeout=5.0)
        breaker = CircuitBreaker("x", config, clock=clock)
        after_a_failed_call(breaker, clock)
        call = over(
            Upstream(clock, (1.0, True)), CircuitGate(breaker), CircuitBreakerLayer(breaker)
        )

        def check(_outcome: object) -> None:
            assert breaker.snapshot()["probes_in_flight"] == 0
            clock.stall(1000.0)
            breaker.admit().settle(Verdict.OK)
            assert breaker.state == "closed"

        return Work(lambda: send(call), check)

    assert interrupt_everywhere(build, how) > 1


@EVERY_WAY
def test_a_retry_is_paid_for_if_it_went(how: Interruption) -> None:
    def build(clock: FakeClock) -> Work:
        budget = RetryBudget(RetryBudgetConfig(min_retries_per_second=0), clock=clock)
        upstream = Upstream(clock, (1.0, False), (1.0, False), (1.0, True))
        layer = RetryLayer(RetryConfig(jitter=False), budget=budget, clock=clock)

        def check(outcome: object) -> None:
            upstream.check(outcome)
            assert budget.snapshot()["spent_count"] == max(0, upstream.calls - 1)

        return Work(lambda: send(over(upstream, layer)), check)

    assert interrupt_everywhere(build, how) > 6


@EVERY_WAY
@pytest.mark.parametrize("plan", ["hedge wins", "first wins", "both at once", "all fail"])
def test_every_leg_ends_and_every_answer_is_used_or_discarded(how: Interruption, plan: str) -> None:
    plans = {
        "hedge wins": ((5.0, True), (1.0, True)),
        "first wins": ((2.0, True), (5.0, True)),
        "both at once": ((2.0, True), (1.0, True)),
        "all fail": ((3.0, False), (1.0, False)),
    }

    def build(clock: FakeClock) -> Work:
        budget = RetryBudget(RetryBudgetConfig(min_retries_per_second=0), clock=clock)
        upstream = Upstream(clock, *plans[plan])
        layer = HedgeLayer(HedgeConfig(delay=1.0), budget=budget, clock=clock)

        def check(outcome: object) -> None:
            upstream.check(outcome)
            assert budget.snapshot()["spent_count"] == max(0, upstream.calls - 1)

        return Work(lambda: send(over(upstream, layer)), check)

    assert interrupt_everywhere(build, how) >= 3


@EVERY_WAY
@pytest.mark.parametrize("comes", ["first", "last"])
def test_who_shares_a_computation_gets_it_whoever_else_leaves(
    how: Interruption, comes: str
) -> None:
    def build(clock: FakeClock) -> Work:
        flights = SingleFlight[str, Answer]()
        upstream = Upstream(clock, (1.0, True))
        got: list[Answer] = []

        async def other() -> None:
            if comes == "first":
                await clock.sleep(0.5)
            got.append(await flights.do("k", lambda: upstream("x")))

        def check(_outcome: object) -> None:
            assert (len(flights), upstream.in_flight) == (0, 0)
            if how is not Interruption.THROW:
                assert len(got) == 2
                assert upstream.calls == len(upstream.answers) or comes == "first"

        return Work(lambda: flights.do("k", lambda: upstream("x")), check, [other, other])

    assert interrupt_everywhere(build, how) >= 2


@EVERY_WAY
def test_a_fallback_leaves_no_answer_behind(how: Interruption) -> None:
    def build(clock: FakeClock) -> Work:
        upstream = Upstream(clock, (1.0, False))

        async def instead(_request: object, _outcome: object) -> Answer:
            await clock.sleep(1.0)
            return Answer(True)

        return Work(lambda: send(over(upstream, FallbackLayer(instead))), upstream.check)

    assert interrupt_everywhere(build, how) > 3


@EVERY_WAY
def test_time_limits_leave_no_timer_and_no_deadline_behind(how: Interruption) -> None:
    def build(clock: FakeClock) -> Work:
        upstream = Upstream(clock, (5.0, True), (1.0, True))
        layers = (
            DeadlineLayer(20.0, clock=clock),
            RetryLayer(RetryConfig(jitter=False), clock=clock),
            AttemptTimeoutLayer(2.0, clock=clock),
        )

        async def call() -> Any:
            try:
                return await send(over(upstream, *layers))
            finally:
                assert remaining_time() is None

        return Work(call, upstream.check)

    assert interrupt_everywhere(build, how) > 3


class Whole:
    """A default stack with every part that can hold something, and two calls in its way."""

    def __init__(self, clock: FakeClock, *, hedged: bool, shared: bool) -> None:
        self.clock = clock
        self.shared = shared
        self.upstream = Upstream(clock, (4.0, True), (1.0, False), (3.0, False), (1.0, True))
        self.stats = CallStats()
        self.flights = SingleFlight[str, Answer]()
        self.budget = RetryBudget(RetryBudgetConfig(min_retries_per_second=0), clock=clock)
        breaker = CircuitBreakerConfig(failure_threshold=1, success_threshold=1, timeout=1.0)
        self.guard = EndpointGuard(
            "x",
            health=HealthMonitor("x", clock=clock),
            circuit_breaker=breaker.model_copy(update={"failure_threshold": 5}),
            rate_limit=RateLimitConfig(requests_per_second=1.0),
            bulkhead=BulkheadConfig(max_concurrent=1),
            attempt_timeout=10.0,
            clock=clock,
        )
        repeat: Layer[Any, Any] = (
            HedgeLayer(HedgeConfig(delay=1.0), budget=self.budget, clock=clock)
            if hedged
            else RetryLayer(
                RetryConfig(jitter=False), budget=self.budget, clock=clock, rng=random.Random(1)
            )
        )
        guards = Keyed[Layer[Any, Any]](lambda _key: ChainLayer(*self.guard.layers))
        self.send = over(
            self.upstream,
            FallbackLayer(self.instead),
            ObserveLayer(self.stats, clock=clock),
            DeadlineLayer(60.0, clock=clock),
            repeat,
            KeyedLayer(lambda _request: "host", guards),
        )

    async def instead(self, _request: object, _outcome: object) -> Answer:
        await asyncio.sleep(0)
        return Answer(True)

    async def call(self) -> Answer:
        if self.shared:
            return await self.flights.do("k", lambda: self.send("x"))
        return await send(self.send)

    def check(self, _outcome: object) -> None:
        snapshot = self.guard.snapshot()
        assert snapshot["bulkhead"]["in_flight"] == snapshot["bulkhead"]["waiting"] == 0
        assert snapshot["rate_limiter"]["waiting"] == 0
        assert snapshot["rate_limiter"]["granted"] >= self.upstream.calls
        assert snapshot["circuit_breaker"]["probes_in_flight"] == 0
        assert self.stats.in_flight == self.upstream.in_flight == len(self.flights) == 0
        assert self.budget.snapshot()["spent_count"] <= self.upstream.calls


@EVERY_WAY
@pytest.mark.parametrize("hedged", [True, False], ids=["hedge", "retry"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "alone"])
def test_a_whole_stack_holds_nothing_in_the_end(
    how: Interruption, hedged: bool, shared: bool
) -> None:
    def build(clock: FakeClock) -> Work:
        whole = Whole(clock, hedged=hedged, shared=shared)
        return Work(whole.call, whole.check, [lambda: send(whole.send)] * 2)

    assert interrupt_everywhere(build, how) > 10


def test_the_harness_notices_what_is_left_behind() -> None:
    def forgets_its_timer(clock: FakeClock) -> Work:
        async def call() -> None:
            clock.call_later(1e9, lambda: None)
            await clock.sleep(1.0)

        return Work(call, lambda _outcome: None)

    def swallows(clock: FakeClock) -> Work:
        async def call() -> None:
            try:
                await clock.sleep(1.0)
            except asyncio.CancelledError:
                return

        return Work(call, lambda _outcome: None)

    with pytest.raises(AssertionError, match="a timer is left behind"):
        interrupt_everywhere(forgets_its_timer, Interruption.CANCEL_ASLEEP)
    with pytest.raises(AssertionError, match="swallowed"):
        interrupt_everywhere(swallows, Interruption.CANCEL_WAKING)

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerLayer,
    CircuitOpenError,
    CircuitState,
    Event,
    Listeners,
    Permit,
    Verdict,
    stack,
)
from shared.infrastructure.testing import FakeClock

CONFIG = CircuitBreakerConfig(failure_threshold=3, success_threshold=2, timeout=10.0)


def opened(clock: FakeClock, config: CircuitBreakerConfig = CONFIG) -> CircuitBreaker:
    breaker = CircuitBreaker("orders", config, clock=clock)
    for _ in range(config.failure_threshold):
        breaker.admit().settle(Verdict.FAILED)
    assert breaker.state is CircuitState.OPEN
    return breaker


async def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    breaker = CircuitBreaker("orders", CONFIG, clock=FakeClock())
    for verdict in [Verdict.FAILED, Verdict.FAILED, Verdict.OK, Verdict.FAILED, Verdict.FAILED]:
        breaker.admit().settle(verdict)
    assert breaker.state is CircuitState.CLOSED
    breaker.admit().settle(Verdict.FAILED)
    assert breaker.state is CircuitState.OPEN


async def test_void_and_busy_outcomes_neither_count_nor_break_a_streak() -> None:
    breaker = CircuitBreaker("orders", CONFIG, clock=FakeClock())
    for verdict in [Verdict.FAILED, Verdict.VOID, Verdict.FAILED, Verdict.BUSY]:
        breaker.admit().settle(verdict)
    assert breaker.state is CircuitState.CLOSED
    breaker.admit().settle(Verdict.FAILED)
    assert breaker.state is CircuitState.OPEN


async def test_an_open_circuit_refuses_and_says_when_to_come_back() -> None:
    clock = FakeClock()
    breaker = opened(clock)
    await clock.advance(4.0)
    with pytest.raises(CircuitOpenError) as caught:
        breaker.admit()
    assert caught.value.retry_after == pytest.approx(6.0)
    assert caught.value.service == "orders"
    assert breaker.snapshot()["refused_count"] == 1


async def test_half_open_admits_exactly_as_many_probes_as_configured_out_of_100_at_once() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(
        failure_threshold=1, success_threshold=5, timeout=1.0, half_open_max_calls=3
    )
    breaker = opened(clock, config)
    await clock.advance(1.0)
    reached = 0
    release = asyncio.Event()

    async def slow(_request: str) -> str:
        nonlocal reached
        reached += 1
        await release.wait()
        return "ok"

    send = stack(slow, CircuitBreakerLayer(breaker), semantics=PLAIN_CALL)
    calls = asyncio.gather(*(send("x") for _ in range(100)), return_exceptions=True)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert reached == 3
    release.set()
    outcomes = await calls
    assert outcomes.count("ok") == 3
    assert sum(isinstance(outcome, CircuitOpenError) for outcome in outcomes) == 97


async def test_no_more_probes_are_admitted_than_successes_are_missing() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(success_threshold=1, half_open_max_calls=10, timeout=1.0)
    breaker = opened(clock, config)
    await clock.advance(1.0)
    breaker.admit()
    with pytest.raises(CircuitOpenError, match="every probe is taken"):
        breaker.admit()


async def test_enough_successful_probes_close_it_and_one_failed_probe_opens_it_again() -> None:
    clock = FakeClock()
    breaker = opened(clock)
    await clock.advance(10.0)
    breaker.admit().settle(Verdict.OK)
    assert breaker.state is CircuitState.HALF_OPEN
    breaker.admit().settle(Verdict.FAILED)
    assert breaker.state is CircuitState.OPEN
    await clock.advance(20.0)
    breaker.admit().settle(Verdict.OK)
    breaker.admit().settle(Verdict.OK)
    assert breaker.state is CircuitState.CLOSED


async def test_an_outcome_from_before_the_last_transition_is_ignored() -> None:
    clock = FakeClock()
    breaker = CircuitBreaker("orders", CONFIG, clock=clock)
    stale_success, stale_failure = breaker.admit(), breaker.admit()
    for _ in range(3):
        breaker.admit().settle(Verdict.FAILED)
    await clock.advance(10.0)
    probe = breaker.admit()
    stale_success.settle(Verdict.OK)
    stale_failure.settle(Verdict.FAILED)
    assert breaker.state is CircuitState.HALF_OPEN
    assert breaker.snapshot()["stale_outcome_count"] == 2
    probe.settle(Verdict.OK)
    breaker.admit().settle(Verdict.OK)
    assert breaker.state is CircuitState.CLOSED


async def test_a_cancelled_probe_gives_its_slot_back_and_decides_nothing() -> None:
    clock = FakeClock()
    breaker = opened(clock)
    await clock.advance(10.0)

    async def hang(_request: str) -> str:
        return await asyncio.get_running_loop().create_future()

    send = stack(hang, CircuitBreakerLayer(breaker), semantics=PLAIN_CALL)

    async def call() -> str:
        return await send("x")

    probe = asyncio.create_task(call())
    await asyncio.sleep(0)
    assert breaker.snapshot()["probes_in_flight"] == 1
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert breaker.state is CircuitState.HALF_OPEN
    assert breaker.snapshot()["probes_in_flight"] == 0
    breaker.admit()


async def test_twenty_cancelled_calls_do_not_open_a_closed_circuit() -> None:
    breaker = CircuitBreaker("orders", CONFIG, clock=FakeClock())
    for _ in range(20):
        breaker.admit().settle(PLAIN_CALL.judge(asyncio.CancelledError()))
    assert breaker.state is CircuitState.CLOSED


async def test_a_probe_that_never_ends_loses_its_lease_and_counts_as_failed() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(failure_threshold=1, timeout=1.0, probe_lease=5.0)
    breaker = opened(clock, config)
    await clock.advance(1.0)
    hung = breaker.admit()
    await clock.advance(5.0)
    with pytest.raises(CircuitOpenError):
        breaker.admit()
    assert breaker.snapshot()["state"] == "open"
    hung.settle(Verdict.OK)
    await clock.advance(2.0)
    assert breaker.admit().is_probe


async def test_settling_a_probe_twice_counts_once() -> None:
    clock = FakeClock()
    breaker = opened(clock)
    await clock.advance(10.0)
    probe = breaker.admit()
    probe.settle(Verdict.OK)
    probe.settle(Verdict.OK)
    assert breaker.state is CircuitState.HALF_OPEN


async def test_the_gate_question_takes_no_permit() -> None:
    clock = FakeClock()
    breaker = opened(clock)
    with pytest.raises(CircuitOpenError):
        breaker.check()
    await clock.advance(10.0)
    breaker.check()
    breaker.check()
    assert breaker.snapshot()["probes_in_flight"] == 0


async def test_every_transition_is_told_and_a_broken_listener_hurts_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Event] = []

    def broken(_event: Event) -> None:
        raise RuntimeError("sink is down")

    clock = FakeClock()
    breaker = CircuitBreaker(
        "orders", CONFIG, clock=clock, listeners=Listeners([broken, told.append])
    )
    for _ in range(3):
        breaker.admit().settle(Verdict.FAILED)
    await clock.advance(10.0)
    breaker.admit().settle(Verdict.FAILED)
    assert [(event.old, event.new) for event in told] == [
        ("closed", "open"),
        ("open", "half_open"),
        ("half_open", "open"),
    ]
    assert len(caplog.records) == 1


class BreakerMachine(RuleBasedStateMachine):
    """Calls begin, end and are forgotten in any order while time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.config = CircuitBreakerConfig(
            failure_threshold=2,
            success_threshold=2,
            timeout=5.0,
            half_open_max_calls=2,
            probe_lease=7.0,
        )
        self.breaker = CircuitBreaker("x", self.config, clock=self.clock)
        self.permits: list[tuple[Permit, float]] = []

    @rule()
    def begin(self) -> None:
        state = self.breaker.state
        try:
            permit = self.breaker.admit()
        except CircuitOpenError:
            assert state is not CircuitState.CLOSED
        else:
            assert state is not CircuitState.OPEN
            self.permits.append((permit, self.clock.now()))

    @precondition(lambda self: self.permits)
    @rule(data=st.data(), verdict=st.sampled_from(list(Verdict)))
    def end(self, data: st.DataObject, verdict: Verdict) -> None:
        index = data.draw(st.integers(0, len(self.permits) - 1))
        permit, _ = self.permits.pop(index)
        before = self.breaker.snapshot()
        permit.settle(verdict)
        if verdict in {Verdict.VOID, Verdict.BUSY}:
            after = self.breaker.snapshot()
            assert after["state"] == before["state"]
            assert after["failure_count"] == before["failure_count"]
            assert after["probe_successes"] == before["probe_successes"]

    @rule(seconds=st.floats(0.1, 8.0))
    def wait(self, seconds: float) -> None:
        asyncio.run(self.clock.advance(seconds))

    @invariant()
    def probes_stay_within_the_limit(self) -> None:
        assert self.breaker.snapshot()["probes_in_flight"] <= self.config.half_open_max_calls

    @invariant()
    def an_open_circuit_admits_again_in_time(self) -> None:
        retry_after = self.breaker.snapshot()["retry_after"]
        assert retry_after is None or retry_after <= self.config.max_timeout


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)

"""A circuit breaker under calls that end in any way, late, or never, while time passes."""

import random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared.infrastructure.resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    CircuitState,
    CircuitStateChanged,
    Event,
    Listeners,
    Permit,
    Verdict,
)
from shared.infrastructure.testing import FakeClock
from tests.property.machine import thorough


class BreakerMachine(RuleBasedStateMachine):
    """Knows which calls are under way, and in which period of the breaker each began."""

    @initialize(
        probes=st.integers(1, 3),
        successes=st.integers(1, 3),
        slow_after=st.sampled_from([None, 4.0]),
        ramp=st.sampled_from([0.0, 6.0]),
    )
    def build(self, probes: int, successes: int, slow_after: float | None, ramp: float) -> None:
        self.clock = FakeClock(0.0)
        self.config = CircuitBreakerConfig(
            failure_threshold=2,
            minimum_calls=4,
            success_threshold=successes,
            timeout=5.0,
            max_timeout=20.0,
            half_open_max_calls=probes,
            probe_lease=7.0,
            slow_call_duration=slow_after,
            ramp_up=ramp,
        )
        self.period = 0
        self.moves: list[tuple[str, str]] = []
        self.breaker = CircuitBreaker(
            "x",
            self.config,
            clock=self.clock,
            rng=random.Random(7),
            listeners=Listeners([self.moved]),
        )
        self.calls: list[tuple[Permit, int, float]] = []

    def moved(self, event: Event) -> None:
        assert isinstance(event, CircuitStateChanged)
        self.period += 1
        self.moves.append((event.old, event.new))

    def probes(self) -> int:
        """Return the probes of this period whose lease still runs."""
        now = self.clock.now()
        return sum(
            permit.is_probe and period == self.period and now < began + 7.0
            for permit, period, began in self.calls
        )

    @rule()
    def begin(self) -> None:
        state, refused = self.breaker.state, self.breaker.snapshot()["refused_count"]
        try:
            permit = self.breaker.admit()
        except CircuitOpenError:
            assert self.breaker.snapshot()["refused_count"] == refused + 1
            assert state is not CircuitState.CLOSED or self.config.ramp_up or self.period
            return
        assert state is not CircuitState.OPEN
        assert permit.is_probe == (state is CircuitState.HALF_OPEN)
        self.calls.append((permit, self.period, self.clock.now()))
        if permit.is_probe:
            assert self.probes() <= self.config.half_open_max_calls

    @precondition(lambda self: getattr(self, "calls", None))
    @rule(data=st.data(), verdict=st.sampled_from(list(Verdict)))
    def end(self, data: st.DataObject, verdict: Verdict) -> None:
        index = data.draw(st.integers(0, len(self.calls) - 1))
        permit, began_in, _ = self.calls.pop(index)
        before, period = self.breaker.snapshot(), self.period
        permit.settle(verdict)
        after = self.breaker.snapshot()
        changed = {key for key in before if before[key] != after[key]}
        if began_in != period:
            assert changed <= {"stale_outcome_count"}, "a late outcome counted"
        elif verdict in {Verdict.VOID, Verdict.BUSY}:
            assert changed <= {"probes_in_flight"}, "an outcome that says nothing counted"
        elif verdict is Verdict.FAILED and permit.is_probe:
            assert after["state"] == "open"

    @precondition(lambda self: getattr(self, "calls", None))
    @rule(verdict=st.sampled_from(list(Verdict)))
    def end_twice(self, verdict: Verdict) -> None:
        permit, _, _ = self.calls.pop()
        if permit.is_probe:
            permit.settle(Verdict.VOID)
            before = self.breaker.snapshot()
            permit.settle(verdict)
            after = self.breaker.snapshot()
            assert {key for key in before if before[key] != after[key]} <= {"stale_outcome_count"}
        else:
            permit.settle(Verdict.VOID)

    @rule(quarters=st.integers(1, 40))
    def let_pass(self, quarters: int) -> None:
        self.clock.stall(quarters / 4)

    @invariant()
    def it_is_never_open_for_longer_than_it_may(self) -> None:
        if hasattr(self, "breaker"):
            retry_after = self.breaker.snapshot()["retry_after"]
            assert retry_after is None or 0.0 <= retry_after <= self.config.max_timeout
            assert self.breaker.snapshot()["probes_in_flight"] <= self.config.half_open_max_calls

    @invariant()
    def it_moves_only_along_the_lines(self) -> None:
        lines = {
            ("closed", "open"),
            ("open", "half_open"),
            ("half_open", "open"),
            ("half_open", "closed"),
        }
        assert set(getattr(self, "moves", ())) <= lines

    def teardown(self) -> None:
        """Let the service be healthy: whatever came before, it closes in bounded time."""
        if not hasattr(self, "breaker"):
            return
        self.calls.clear()  # the probes under way never end; their leases do
        deadline = self.clock.now() + 2 * (self.config.probe_lease + self.config.max_timeout) + 10.0
        answered_in_a_row = 0
        while answered_in_a_row < 50:
            assert self.clock.now() < deadline, "it never closes although the service is well"
            try:
                self.breaker.admit().settle(Verdict.OK)
                answered_in_a_row += 1
            except CircuitOpenError:
                answered_in_a_row = 0
                self.clock.stall(0.25)
        assert self.breaker.state is CircuitState.CLOSED


TestBreakerProperties = BreakerMachine.TestCase
TestBreakerProperties.settings = thorough(examples=120, steps=40)


def test_a_circuit_that_watches_time_takes_calls_again_once_it_has_closed() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(
        failure_threshold=1, success_threshold=1, timeout=1.0, slow_call_duration=4.0
    )
    breaker = CircuitBreaker("x", config, clock=clock)
    breaker.admit().settle(Verdict.FAILED)
    clock.stall(1.0)
    breaker.admit().settle(Verdict.OK)
    assert not breaker.admit().is_probe

"""A circuit breaker at the very instants, counts and draws where its behaviour turns."""

import random

import pytest

from shared.infrastructure.resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    CircuitState,
    CircuitStateChanged,
    Event,
    Listeners,
    Verdict,
)
from shared.infrastructure.testing import FakeClock

OK, FAILED = Verdict.OK, Verdict.FAILED


class Draws(random.Random):
    """Draws what it is told to: a share of any range."""

    def __init__(self, share: float) -> None:
        super().__init__(0)
        self.share = share

    def random(self) -> float:
        return self.share

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.share


def tripped(config: CircuitBreakerConfig, clock: FakeClock, share: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker("orders", config, clock=clock, rng=Draws(share))
    for _ in range(config.failure_threshold):
        breaker.admit().settle(FAILED)
    return breaker


def test_a_fresh_breaker_reports_nothing_but_its_state() -> None:
    assert CircuitBreaker(clock=FakeClock()).snapshot() == {
        "state": "closed",
        "failure_count": 0,
        "failure_threshold": 5,
        "window_calls": 0,
        "window_failures": 0,
        "window_slow_calls": 0,
        "probes_in_flight": 0,
        "probe_successes": 0,
        "failed_rounds": 0,
        "opened_count": 0,
        "would_open_count": 0,
        "refused_count": 0,
        "stale_outcome_count": 0,
        "seconds_in_state": 0.0,
        "retry_after": None,
    }


def test_every_counter_counts_what_it_names() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(failure_threshold=2, timeout=10.0, half_open_max_calls=2)
    breaker = CircuitBreaker("orders", config, clock=clock, rng=Draws(1.0))
    late = breaker.admit()
    breaker.admit().settle(OK)
    breaker.admit().settle(FAILED)
    snapshot = breaker.snapshot()
    assert (snapshot["failure_count"], snapshot["failure_threshold"]) == (1, 2)
    assert (snapshot["window_calls"], snapshot["window_failures"]) == (2, 1)
    clock.stall(16.0)
    breaker.admit().settle(FAILED)
    clock.stall(4.0)
    for refused in (1, 2):
        with pytest.raises(CircuitOpenError):
            breaker.admit()
        assert breaker.snapshot()["refused_count"] == refused
    late.settle(OK)
    snapshot = breaker.snapshot()
    assert (snapshot["state"], snapshot["opened_count"]) == ("open", 1)
    assert (snapshot["seconds_in_state"], snapshot["retry_after"]) == (4.0, 6.0)
    assert (snapshot["stale_outcome_count"], snapshot["failed_rounds"]) == (1, 0)
    clock.stall(6.0)
    probes = [breaker.admit(), breaker.admit()]
    assert breaker.snapshot()["probes_in_flight"] == 2
    probes[0].settle(OK)
    assert breaker.snapshot()["probe_successes"] == 1
    probes[1].settle(FAILED)
    snapshot = breaker.snapshot()
    assert (snapshot["opened_count"], snapshot["failed_rounds"]) == (2, 1)
    assert (snapshot["probes_in_flight"], snapshot["probe_successes"]) == (0, 0)
    assert snapshot["retry_after"] == 20.0


def test_it_is_half_open_from_the_very_instant_its_time_is_over() -> None:
    clock = FakeClock()
    breaker = tripped(CircuitBreakerConfig(timeout=8.0), clock)
    clock.stall(7.5)
    assert breaker.state is CircuitState.OPEN
    assert breaker.refuses_all
    clock.stall(0.5)
    assert breaker.state is CircuitState.HALF_OPEN
    assert breaker.snapshot()["retry_after"] == 0.0
    assert not breaker.refuses_all
    assert breaker.admit().is_probe


def test_a_lease_ends_at_the_very_instant_it_is_due() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(failure_threshold=1, timeout=1.0, probe_lease=8.0)
    breaker = tripped(config, clock)
    clock.stall(1.0)
    breaker.admit()
    clock.stall(7.5)
    with pytest.raises(CircuitOpenError, match="every probe is taken"):
        breaker.admit()
    clock.stall(0.5)
    with pytest.raises(CircuitOpenError, match="keeps failing"):
        breaker.admit()
    assert breaker.snapshot()["failed_rounds"] == 1


@pytest.mark.parametrize(
    ("rounds", "shortest", "longest"), [(0, 8, 8), (1, 8, 16), (2, 16, 32), (3, 25, 50)]
)
def test_each_failed_round_doubles_the_time_open_half_of_it_at_random(
    rounds: int, shortest: float, longest: float
) -> None:
    config = CircuitBreakerConfig(timeout=8.0, max_timeout=50.0)
    assert config.open_time(rounds, Draws(0.0)) == shortest
    assert config.open_time(rounds, Draws(1.0)) == longest


def test_a_bound_below_the_first_time_open_leaves_that_as_it_is() -> None:
    config = CircuitBreakerConfig(timeout=8.0, max_timeout=2.0)
    assert {config.open_time(rounds, Draws(0.0)) for rounds in range(4)} == {8.0}


def test_the_service_may_ask_for_an_instant_up_to_the_bound_and_never_for_less() -> None:
    clock = FakeClock(100.0)
    config = CircuitBreakerConfig(timeout=8.0, max_timeout=50.0)
    breaker = CircuitBreaker("orders", config, clock=clock)
    breaker.open_until(120.0)
    assert breaker.snapshot()["retry_after"] == 20.0
    breaker.open_until(110.0)
    assert breaker.snapshot()["retry_after"] == 20.0
    breaker.open_for(30.0)
    assert breaker.snapshot()["retry_after"] == 30.0
    breaker.open_for(1e9)
    assert breaker.snapshot()["retry_after"] == 50.0
    assert breaker.snapshot()["opened_count"] == 1
    again = CircuitBreaker("orders", config, clock=clock)
    again.open_for(1e9)
    assert again.snapshot()["retry_after"] == 50.0
    long = CircuitBreaker("x", CircuitBreakerConfig(timeout=80.0, max_timeout=50.0), clock=clock)
    long.open_for(1e9)
    assert long.snapshot()["retry_after"] == 80.0


def test_half_open_may_be_opened_again_by_the_service_too() -> None:
    clock = FakeClock()
    breaker = tripped(CircuitBreakerConfig(timeout=8.0), clock)
    clock.stall(8.0)
    breaker.check()
    breaker.open_for(20.0, "maintenance")
    assert breaker.state is CircuitState.OPEN
    assert breaker.snapshot()["retry_after"] == 20.0


def ramping(clock: FakeClock, share: float) -> CircuitBreaker:
    config = CircuitBreakerConfig(
        failure_threshold=1, success_threshold=1, timeout=8.0, ramp_up=10.0
    )
    breaker = tripped(config, clock, share)
    clock.stall(8.0)
    breaker.admit().settle(OK)
    assert breaker.state is CircuitState.CLOSED
    return breaker


@pytest.mark.parametrize(
    ("after", "share"), [(0.0, 0.1), (0.5, 0.1), (2.5, 0.25), (5.0, 0.5), (7.5, 0.75)]
)
def test_a_ramp_lets_a_share_through_that_grows_from_a_tenth(after: float, share: float) -> None:
    clock = FakeClock()
    refusing = ramping(clock, share)
    clock.stall(after)
    with pytest.raises(CircuitOpenError, match="little by little"):
        refusing.admit()
    clock = FakeClock()
    admitting = ramping(clock, share - 0.001)
    clock.stall(after)
    assert not admitting.admit().is_probe


def test_a_ramp_is_over_at_its_very_end_and_calls_share_a_permit_again() -> None:
    clock = FakeClock()
    breaker = ramping(clock, 0.999)
    clock.stall(10.0)
    breaker.admit().settle(OK)
    assert breaker.admit() is breaker.admit()


def test_a_permit_of_a_ramp_counts_like_any_other() -> None:
    clock = FakeClock()
    breaker = ramping(clock, 0.0)
    breaker.admit().settle(FAILED)
    assert breaker.state is CircuitState.OPEN
    assert breaker.snapshot()["failed_rounds"] == 0


def test_calls_of_a_closed_circuit_share_a_permit_unless_time_is_watched() -> None:
    breaker = CircuitBreaker("x", clock=FakeClock())
    assert breaker.admit() is breaker.admit()
    watching = CircuitBreaker("x", CircuitBreakerConfig(slow_call_duration=1.0), clock=FakeClock())
    assert watching.admit() is not watching.admit()


def test_slow_calls_count_from_the_very_duration_on() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(slow_call_duration=2.0, minimum_calls=4, failure_rate=None)
    breaker = CircuitBreaker("x", config, clock=clock)
    for seconds, slow in [(1.5, 0), (2.0, 1), (3.0, 2)]:
        permit = breaker.admit()
        clock.stall(seconds)
        permit.settle(OK)
        assert breaker.snapshot()["window_slow_calls"] == slow
    assert breaker.snapshot()["window_calls"] == 3
    assert breaker.state is CircuitState.CLOSED


def test_a_rate_counts_from_the_minimum_of_calls_on_and_from_its_very_share() -> None:
    config = CircuitBreakerConfig(failure_threshold=99, failure_rate=0.5, minimum_calls=4)
    for verdicts, state in [
        ([FAILED, FAILED, FAILED], CircuitState.CLOSED),
        ([OK, OK, FAILED, FAILED], CircuitState.OPEN),
        ([OK, OK, OK, FAILED], CircuitState.CLOSED),
    ]:
        breaker = CircuitBreaker("x", config, clock=FakeClock())
        for verdict in verdicts:
            breaker.admit().settle(verdict)
        assert breaker.state is state


def test_every_move_is_told_with_its_reason() -> None:
    told: list[Event] = []
    clock = FakeClock()
    config = CircuitBreakerConfig(failure_threshold=2, success_threshold=1, timeout=8.0)
    breaker = CircuitBreaker(
        "orders", config, clock=clock, rng=Draws(0.0), listeners=Listeners([told.append])
    )
    breaker.admit().settle(FAILED)
    breaker.admit().settle(FAILED)
    clock.stall(8.0)
    breaker.admit().settle(FAILED)
    clock.stall(8.0)
    breaker.admit().settle(OK)
    breaker.open_for(1.0)
    breaker.force_open()
    breaker.disable()
    breaker.metrics_only()
    breaker.reset()
    moves = [event for event in told if isinstance(event, CircuitStateChanged)]
    assert {move.service for move in moves} == {"orders"}
    assert [(move.old, move.new, move.reason) for move in moves] == [
        ("closed", "open", "2 failures in a row"),
        ("open", "half_open", "open time is over"),
        ("half_open", "open", "a probe failed"),
        ("open", "half_open", "open time is over"),
        ("half_open", "closed", "1 probes succeeded"),
        ("closed", "open", "the service asked for it"),
        ("open", "forced_open", "switched by hand"),
        ("forced_open", "disabled", "switched by hand"),
        ("disabled", "metrics_only", "switched by hand"),
        ("metrics_only", "closed", "switched by hand"),
    ]


def test_metrics_only_counts_what_would_have_opened_it_and_begins_anew_each_time() -> None:
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=2), clock=FakeClock())
    breaker.metrics_only()
    for failures, would_open in [(1, 0), (2, 1), (3, 1), (4, 2)]:
        breaker.admit().settle(FAILED)
        assert breaker.snapshot()["would_open_count"] == would_open, failures
    assert breaker.state is CircuitState.METRICS_ONLY
    assert breaker.snapshot()["opened_count"] == 0


def test_disabled_it_counts_nothing() -> None:
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=1), clock=FakeClock())
    breaker.disable()
    for verdict in Verdict:
        breaker.admit().settle(verdict)
    breaker.check()
    snapshot = breaker.snapshot()
    assert (snapshot["state"], snapshot["window_calls"]) == ("disabled", 0)
    assert (snapshot["failure_count"], snapshot["stale_outcome_count"]) == (0, 0)


def test_to_reset_forgets_the_rounds_that_failed() -> None:
    clock = FakeClock()
    breaker = tripped(CircuitBreakerConfig(failure_threshold=1, timeout=8.0), clock)
    clock.stall(8.0)
    breaker.admit().settle(FAILED)
    assert breaker.snapshot()["failed_rounds"] == 1
    breaker.reset()
    assert breaker.snapshot()["failed_rounds"] == 0
    assert not breaker.admit().is_probe


def test_closing_begins_the_rounds_anew() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(failure_threshold=1, success_threshold=1, timeout=8.0)
    breaker = tripped(config, clock, share=1.0)
    for verdict, wait in [(FAILED, 16.0), (OK, None), (FAILED, 8.0), (FAILED, 16.0)]:
        clock.stall(breaker.snapshot()["retry_after"] or 0.0)
        breaker.admit().settle(verdict)
        assert breaker.snapshot()["retry_after"] == wait
        if verdict is OK:
            assert breaker.snapshot()["failed_rounds"] == 0


def test_a_success_leaves_room_for_as_many_probes_as_are_still_missing() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(
        failure_threshold=1, success_threshold=2, timeout=8.0, half_open_max_calls=3
    )
    breaker = tripped(config, clock)
    clock.stall(8.0)
    breaker.admit().settle(OK)
    breaker.admit()
    with pytest.raises(CircuitOpenError, match="every probe is taken"):
        breaker.admit()


def test_what_has_left_the_window_is_not_reported_although_nothing_came_after_it() -> None:
    clock = FakeClock()
    breaker = CircuitBreaker("x", CircuitBreakerConfig(window_seconds=8.0), clock=clock)
    breaker.admit().settle(OK)
    assert breaker.snapshot()["window_calls"] == 1
    clock.stall(100.0)
    assert breaker.snapshot()["window_calls"] == 0


def test_without_a_name_it_guards_the_service() -> None:
    assert CircuitBreaker(clock=FakeClock()).name == "service"


def test_a_ramp_may_begin_in_the_first_second_of_a_clock() -> None:
    clock = FakeClock(0.0)
    config = CircuitBreakerConfig(
        failure_threshold=1, success_threshold=1, timeout=0.5, ramp_up=10.0
    )
    breaker = tripped(config, clock, share=0.9)
    clock.stall(0.5)
    breaker.admit().settle(OK)
    with pytest.raises(CircuitOpenError, match="little by little"):
        breaker.admit()

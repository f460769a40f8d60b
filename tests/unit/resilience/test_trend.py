import itertools
import math
import random
from typing import Any

import pytest
from pydantic import ValidationError

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
from shared.infrastructure.resilience.trend import Trend, TrendConfig
from shared.infrastructure.testing import FakeClock

# Rules that are never met, so that only a trend can open the circuit.
NO_RULES: dict[str, Any] = {"failure_threshold": 1000, "failure_rate": None}


def trend(minimum_waiting: int = 5, **options: float) -> Trend:
    return Trend(TrendConfig(**options), minimum_waiting)


def play(subject: Trend, rates: list[float], every: float = 0.1, seed: int = 1) -> float | None:
    """Play a call each `every` seconds with these error rates; return when it was enough."""
    rng = random.Random(seed)
    for number, rate in enumerate(rates):
        if rng.random() >= rate:
            subject.succeed(0.1)
        elif subject.fail(object(), number * every):
            return number * every
    return None


def answered(subject: Trend, latency: float = 0.1, times: int = 100) -> None:
    """Let calls be answered, with some scatter."""
    rng = random.Random(7)
    for _ in range(times):
        subject.succeed(latency * math.exp(rng.gauss(0.0, 0.5)))


def hang(subject: Trend, *begins: float) -> None:
    for begun in begins:
        subject.begin(object(), begun)


def test_a_rise_of_errors_is_enough_before_half_of_the_calls_fail() -> None:
    ramp = [0.0] * 200 + [number / 600 for number in range(600)]
    at = play(trend(), ramp)
    assert at is not None
    assert 0.1 < ramp[round(at / 0.1)] < 0.4


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.05])
def test_errors_at_a_steady_low_rate_are_never_enough(rate: float) -> None:
    assert play(trend(), [rate] * 50_000) is None


def test_what_is_usual_is_learned() -> None:
    steady = [0.1] * 3_000 + [0.2] * 6_000
    assert play(trend(), [*steady, *[0.2] * 3_000]) is None
    assert play(trend(), [0.0] * 3_000 + [0.4] * 300) is not None
    slowly = [number / 100_000 for number in range(30_000)]
    assert play(trend(), [*[0.0] * 30_000, *slowly]) is None


def test_a_burst_of_failures_is_not_a_rise_however_dense_it_is() -> None:
    burst = [0.0] * 200 + [0.9] * 40 + [0.0] * 400
    assert play(trend(), burst, every=0.05) is None
    assert play(trend(lasting=0.5), burst, every=0.05) is not None


def test_a_rise_begins_anew_once_the_failures_have_been_made_good() -> None:
    subject = trend()
    for number in range(12):
        assert subject.fail(object(), number * 0.1) is None
    answered(subject, times=200)
    for number in range(12):
        assert subject.fail(object(), 1000.0 + number * 0.1) is None
    reason = subject.fail(object(), 1004.0)
    assert reason == "failures have been on the rise for 4.0 s"


def test_calls_that_nobody_answers_are_enough_once_that_is_unusual() -> None:
    subject = trend()
    answered(subject)
    hang(subject, 10.0, 10.1, 10.2, 10.3, 10.4)
    assert subject.silence(12.9) is None
    assert subject.silence(13.1) == "none of 5 calls was answered in 3.1 s"


def test_one_answer_breaks_the_silence() -> None:
    subject = trend()
    answered(subject)
    hang(subject, 10.0, 10.1, 10.2, 10.3, 10.4)
    subject.succeed(2.0)
    hang(subject, 12.0, 12.1, 12.2, 12.3)
    assert subject.silence(30.0) is None
    hang(subject, 12.4)
    assert subject.silence(30.0) is not None


def test_a_few_calls_that_hang_are_no_silence() -> None:
    subject = trend(minimum_waiting=3)
    answered(subject)
    calls = [object() for _ in range(4)]
    for call in calls:
        subject.begin(call, 10.0)
    subject.forget(calls[0])
    subject.fail(calls[1], 20.0)
    assert subject.silence(100.0) is None


def test_a_service_that_is_slow_by_nature_may_be_silent_for_longer() -> None:
    subject = trend()
    answered(subject, latency=10.0)
    hang(subject, *(10.0 + number / 10 for number in range(20)))
    assert subject.silence(30.0) is None
    assert subject.silence(45.0) is not None


def test_the_first_latencies_count_in_full() -> None:
    subject = trend()
    answered(subject, latency=10.0, times=20)
    hang(subject, *(10.0 + number / 10 for number in range(20)))
    assert subject.silence(30.0) is None


def test_one_call_that_hangs_is_not_enough_however_steady_the_service_is() -> None:
    subject = trend()
    for _ in range(100):
        subject.succeed(2.0)
    hang(subject, 10.0, 16.0, 16.1, 16.2, 16.3)
    assert subject.silence(16.3) is None
    assert subject.silence(17.5) is None
    assert subject.silence(24.0) is not None
    assert subject.silence(1e9) is not None


def test_silence_that_the_usual_latencies_explain_is_not_enough() -> None:
    scattered = trend()
    for latency in itertools.islice(itertools.cycle([0.02, 50.0]), 200):
        scattered.succeed(latency)
    hang(scattered, 10.0, 10.1, 10.2, 10.3, 10.4)
    assert scattered.silence(14.0) is None
    assert scattered.silence(2000.0) is not None


def test_silence_means_nothing_before_some_answers_were_seen() -> None:
    subject = trend()
    answered(subject, times=19)
    hang(subject, 10.0, 10.1, 10.2, 10.3, 10.4)
    assert subject.silence(100.0) is None


def test_after_a_failure_the_latency_is_learned_anew_and_the_error_rate_is_not() -> None:
    subject = trend()
    answered(subject, times=100)
    play(subject, [0.2] * 3_000)
    subject.clear()
    hang(subject, 10.0, 10.1, 10.2, 10.3, 10.4)
    assert subject.silence(100.0) is None
    assert play(subject, [0.2] * 1_000, seed=2) is None


@pytest.mark.parametrize("option", ["lasting", "evidence"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_options_that_make_no_sense_are_refused(option: str, value: float) -> None:
    with pytest.raises(ValidationError):
        TrendConfig(**{option: value})


class Setup:
    """A breaker that is opened by trends alone."""

    def __init__(self, prediction: TrendConfig | None = None, **options: Any) -> None:
        self.clock = FakeClock()
        self.told: list[Event] = []
        self.breaker = CircuitBreaker(
            "db",
            CircuitBreakerConfig(prediction=prediction, **{**NO_RULES, **options}),
            clock=self.clock,
            listeners=Listeners([self.told.append]),
        )

    @property
    def reason(self) -> str:
        changes = [event for event in self.told if isinstance(event, CircuitStateChanged)]
        return changes[-1].reason

    async def call(self, outcomes: str, takes: float = 0.1) -> None:
        """Make calls one after the other: `.` is answered, `x` fails, `-` is cancelled."""
        verdicts = {".": Verdict.OK, "x": Verdict.FAILED, "-": Verdict.VOID}
        for outcome in outcomes:
            permit = self.breaker.admit()
            await self.clock.advance(takes)
            permit.settle(verdicts[outcome])

    async def begin(self, calls: int) -> list[Permit]:
        permits = []
        for _ in range(calls):
            permits.append(self.breaker.admit())
            await self.clock.advance(0.1)
        return permits


async def test_by_default_no_trend_opens_a_circuit_and_calls_share_a_permit() -> None:
    setup = Setup()
    assert setup.breaker.admit() is setup.breaker.admit()
    await setup.call("." * 50 + "x" * 200)
    assert setup.breaker.state is CircuitState.CLOSED


async def test_a_rise_of_errors_opens_the_circuit_before_a_rule_is_met() -> None:
    setup = Setup(TrendConfig())
    await setup.call("." * 50)
    with pytest.raises(CircuitOpenError):
        await setup.call(".xx" * 40)
    assert "on the rise" in setup.reason


async def test_a_service_that_hangs_opens_the_circuit_before_a_call_has_failed() -> None:
    setup = Setup(TrendConfig(), failure_threshold=5)
    await setup.call("." * 50)
    hanging = await setup.begin(10)
    await setup.clock.advance(2.5)
    with pytest.raises(CircuitOpenError):
        setup.breaker.check()
    assert setup.reason == "none of 10 calls was answered in 3.5 s"
    for permit in hanging:
        permit.settle(Verdict.FAILED)
    assert setup.breaker.snapshot()["stale_outcome_count"] == 10


async def test_calls_that_were_cancelled_are_not_missed() -> None:
    setup = Setup(TrendConfig(), failure_threshold=5)
    await setup.call("." * 50)
    for permit in await setup.begin(10):
        permit.settle(Verdict.VOID)
    await setup.clock.advance(60.0)
    setup.breaker.check()
    assert setup.breaker.state is CircuitState.CLOSED


async def test_a_service_that_comes_back_slower_is_not_taken_for_dead_again() -> None:
    setup = Setup(TrendConfig(), failure_threshold=5, success_threshold=1)
    await setup.call("." * 50)
    await setup.begin(10)
    await setup.clock.advance(5.0)
    with pytest.raises(CircuitOpenError):
        setup.breaker.check()
    await setup.clock.advance(60.0)
    await setup.call(".", takes=6.0)
    for _ in range(30):
        permits = await setup.begin(10)
        await setup.clock.advance(5.0)
        for permit in permits:
            permit.settle(Verdict.OK)
    assert setup.breaker.state is CircuitState.CLOSED


async def test_slow_calls_and_trends_go_together() -> None:
    setup = Setup(TrendConfig(), failure_threshold=5, slow_call_duration=1.0, minimum_calls=100)
    await setup.call("." * 30)
    await setup.begin(6)
    await setup.clock.advance(1.5)
    setup.breaker.check()
    assert setup.breaker.snapshot()["window_slow_calls"] == 6
    await setup.clock.advance(2.0)
    with pytest.raises(CircuitOpenError):
        setup.breaker.check()
    assert "was answered" in setup.reason


async def test_slow_calls_that_fail_in_the_end_are_a_rise_of_errors_too() -> None:
    setup = Setup(TrendConfig(), slow_call_duration=1.0, slow_call_rate=1.0)
    await setup.call("." * 30)
    for _ in range(20):
        permit = setup.breaker.admit()
        await setup.clock.advance(1.2)
        if setup.breaker.state is CircuitState.CLOSED:
            setup.breaker.check()
        permit.settle(Verdict.FAILED)
        if setup.breaker.state is CircuitState.OPEN:
            break
    assert "on the rise" in setup.reason

"""What an adaptive bulkhead learns from latencies at the very bounds, and when it looks again."""

import pytest

from shared.infrastructure.resilience import AdaptiveBulkhead, AdaptiveBulkheadConfig, Verdict
from shared.infrastructure.testing import FakeClock


def play(bulkhead: AdaptiveBulkhead, verdict: Verdict, latency: float, used: int) -> None:
    """Play a call that began when `used` slots were taken, and took `latency` seconds."""
    clock = bulkhead.clock
    assert isinstance(clock, FakeClock)
    started = clock.now()
    clock.stall(latency)
    bulkhead.record(verdict, started=started, in_flight=used)


def play_round(bulkhead: AdaptiveBulkhead, latency: float, used: int) -> None:
    """Play as many successes as make a round while at most ten are in flight."""
    for _ in range(10):
        play(bulkhead, Verdict.OK, latency, used)


@pytest.fixture
def bulkhead() -> AdaptiveBulkhead:
    """A bulkhead of 20, which it never exceeds, that knows an unloaded latency of one second."""
    made = AdaptiveBulkhead(AdaptiveBulkheadConfig(max_concurrent=20), clock=FakeClock())
    play_round(made, 1.0, 5)
    assert made.limit == 20
    return made


def test_what_it_has_learnt_is_unknown_before_the_first_round() -> None:
    bulkhead = AdaptiveBulkhead(AdaptiveBulkheadConfig(initial_concurrent=8), clock=FakeClock())
    assert bulkhead.snapshot() == {
        "in_flight": 0,
        "max_concurrent": 2,
        "waiting": 0,
        "refused_count": 0,
        "latency": None,
        "unloaded_latency": None,
        "dropped_count": 0,
    }


def test_a_round_moves_the_unloaded_latency_only_below_half_of_the_limit(
    bulkhead: AdaptiveBulkhead,
) -> None:
    play_round(bulkhead, 1.6, 10)
    assert bulkhead.snapshot()["latency"] == pytest.approx(1.6)
    assert bulkhead.snapshot()["unloaded_latency"] == 1.0
    play_round(bulkhead, 1.6, 2)
    assert bulkhead.snapshot()["unloaded_latency"] == pytest.approx(1.0 + 0.6 / 30)


@pytest.mark.parametrize(("latency", "unloaded"), [(0.5, 1.0), (0.25, 0.95)])
def test_under_load_only_less_than_half_of_the_unloaded_latency_brings_it_down(
    bulkhead: AdaptiveBulkhead, latency: float, unloaded: float
) -> None:
    play_round(bulkhead, latency, 10)
    assert bulkhead.snapshot()["unloaded_latency"] == unloaded


@pytest.mark.parametrize(("latency", "dropped"), [(1.5, 0), (1.625, 1)])
def test_a_failure_that_took_as_long_as_an_answer_may_says_nothing_about_load(
    bulkhead: AdaptiveBulkhead, latency: float, dropped: int
) -> None:
    play(bulkhead, Verdict.FAILED, latency, 10)
    assert bulkhead.snapshot()["dropped_count"] == dropped


def test_every_25_rounds_at_the_limit_it_looks_at_the_unloaded_latency_anew(
    bulkhead: AdaptiveBulkhead,
) -> None:
    for _ in range(3):
        for _ in range(25):
            assert bulkhead.limit == 20
            play_round(bulkhead, 1.0, 10)
        assert bulkhead.limit == 5
        play_round(bulkhead, 1.0, 5)


def test_a_bulkhead_may_begin_at_its_bounds_and_have_a_single_slot() -> None:
    config = AdaptiveBulkheadConfig(initial_concurrent=1, max_concurrent=1)
    assert AdaptiveBulkhead(config, clock=FakeClock()).limit == 1

"""How much each failure and each missing answer counts, to a billionth, and from when on."""

import itertools
import math
from statistics import NormalDist

import pytest

from shared.infrastructure.resilience.trend import Trend, TrendConfig

# Just less evidence than there is is enough, and just more is not.
AROUND = pytest.mark.parametrize(("beside", "is_enough"), [(-1e-9, True), (1e-9, False)])


def trend(minimum_waiting: int = 1, **options: float) -> Trend:
    return Trend(TrendConfig(**{"lasting": 1.0, **options}), minimum_waiting)


def failure_at(usual_rate: float) -> float:
    """Return the evidence of a failure: how much likelier twelve times the odds make it."""
    odds = 12.0 * usual_rate / (1.0 - usual_rate)
    return math.log(odds / (1.0 + odds) / usual_rate)


def wait_of(seconds: float, *, median: float, deviation: float) -> float:
    """Return the evidence of a wait if latencies are log-normal."""
    return -math.log(
        NormalDist(math.log(median), deviation).cdf(2.0 * math.log(median) - math.log(seconds))
    )


def fail_twice(subject: Trend) -> str | None:
    """Return what the second of two failures, a second apart, is enough for."""
    assert subject.fail(object(), 10.0) is None
    return subject.fail(object(), 11.0)


def answer(subject: Trend, *latencies: float) -> None:
    for latency in latencies:
        subject.succeed(latency)


@AROUND
def test_a_failure_of_a_new_service_counts_as_if_one_in_twenty_failed(
    beside: float, is_enough: bool
) -> None:
    subject = trend(evidence=2 * failure_at(0.05) + beside)
    assert (fail_twice(subject) is not None) is is_enough


@AROUND
def test_the_usual_rate_begins_with_a_hundred_good_outcomes_and_outlasts_the_evidence(
    beside: float, is_enough: bool
) -> None:
    subject = trend(evidence=failure_at(25 / 125) + failure_at(26 / 126) + beside)
    for _ in range(25):
        subject.fail(object(), 0.0)
    subject.clear()
    assert (fail_twice(subject) is not None) is is_enough


def test_evidence_that_is_just_enough_is_enough() -> None:
    probe = trend(evidence=1000.0)
    fail_twice(probe)
    assert fail_twice(trend(evidence=probe._score)) is not None


@AROUND
@pytest.mark.parametrize(
    ("latencies", "waits", "evidence"),
    [
        ([1.0], 4.0, wait_of(4.0, median=1.0, deviation=math.sqrt(0.1))),
        ([1.0, 100.0], 40.0, wait_of(40.0, median=10.0, deviation=math.log(10.0))),
    ],
    ids=["steady", "scattered"],
)
def test_a_wait_counts_by_how_unlikely_the_first_twenty_answers_make_it(
    latencies: list[float], waits: float, evidence: float, beside: float, is_enough: bool
) -> None:
    subject = trend(evidence=evidence + beside)
    answer(subject, *itertools.islice(itertools.cycle(latencies), 20))
    subject.begin(object(), 10.0)
    subject.begin(object(), 10.0 + waits)  # has only just begun, and counts for nothing
    assert (subject.silence(10.0 + waits) is not None) is is_enough


def test_a_wait_that_is_just_unlikely_enough_is_enough() -> None:
    probe = trend()
    answer(probe, *[1.0] * 20)
    subject = trend(evidence=probe._surprise(4.0))
    answer(subject, *[1.0] * 20)
    subject.begin(object(), 10.0)
    assert subject.silence(14.0) is not None


def test_a_service_that_answers_in_no_time_is_found_silent_within_a_second() -> None:
    subject = trend(lasting=0.5)
    answer(subject, *[0.1] * 20)
    subject.begin(object(), 10.0)
    assert subject.silence(10.0 + 0.25) is None
    assert subject.silence(10.0 + 0.5) == "none of 1 calls was answered in 0.5 s"


def test_one_quick_answer_hardly_changes_what_is_usual() -> None:
    subject = trend(evidence=1.0)
    answer(subject, *[10.0] * 40, 0.1)
    subject.begin(object(), 10.0)
    assert subject.silence(30.0) is None
    assert subject.silence(60.0) is not None

"""Windows against a recount of the very outcomes they were told."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.infrastructure.resilience.windows import CountWindow, OutcomeWindow, TimeWindow

SLICES = 4
# What happens, how many slices later: a success, any outcome, a look, or a fresh start.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["succeed", "record", "advance", "clear"]),
        st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 3.0, 4.0, 5.0, 9.0]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=40,
)
Outcome = tuple[float, bool, bool]


def totals(window: OutcomeWindow) -> tuple[int, int, int]:
    return window.calls, window.failures, window.slow


def recount(outcomes: list[Outcome]) -> tuple[int, int, int]:
    return (
        len(outcomes),
        sum(failed for _, failed, _ in outcomes),
        sum(slow for _, _, slow in outcomes),
    )


def tell(window: OutcomeWindow, step: str, now: float, failed: bool, slow: bool) -> list[Outcome]:
    """Do a step on a window; return the outcomes that it adds."""
    if step == "succeed":
        window.succeed(now)
        return [(now, False, False)]
    if step == "record":
        window.record(now, failed=failed, slow=slow)
        return [(now, failed, slow)]
    if step == "clear":
        window.clear()
    return []


@pytest.mark.parametrize("slice_length", [0.125, 1.0, 8.0])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(steps=STEPS)
def test_a_time_window_holds_the_last_slices_whole_to_the_very_edge(
    slice_length: float, steps: list[tuple[str, float, bool, bool]]
) -> None:
    window = TimeWindow(SLICES * slice_length, SLICES)
    assert totals(window) == (0, 0, 0)
    now, outcomes = 0.0, list[Outcome]()
    for step, slices, failed, slow in steps:
        now += slices * slice_length
        added = tell(window, step, now, failed, slow)
        outcomes = [] if step == "clear" else [*outcomes, *added]
        window.advance(now)
        newest = now // slice_length
        outcomes = [one for one in outcomes if newest - one[0] // slice_length < SLICES]
        assert totals(window) == recount(outcomes)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(steps=STEPS)
def test_successes_alone_are_forgotten_slice_by_slice_too(
    steps: list[tuple[str, float, bool, bool]],
) -> None:
    window = TimeWindow(1.0, SLICES)
    now, outcomes = 0.0, list[Outcome]()
    for _, slices, _, _ in steps:
        now += slices / SLICES
        outcomes += tell(window, "succeed", now, False, False)
    window.advance(now)
    newest = now // 0.25
    assert totals(window) == recount([one for one in outcomes if newest - one[0] // 0.25 < SLICES])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(steps=STEPS, size=st.integers(1, 6))
def test_a_count_window_holds_the_last_outcomes_whatever_the_time(
    steps: list[tuple[str, float, bool, bool]], size: int
) -> None:
    window = CountWindow(size)
    assert totals(window) == (0, 0, 0)
    now, outcomes = 0.0, list[Outcome]()
    for step, seconds, failed, slow in steps:
        now += seconds
        added = tell(window, step, now, failed, slow)
        outcomes = [] if step == "clear" else [*outcomes, *added][-size:]
        window.advance(now)
        assert totals(window) == recount(outcomes)

"""Which calls count as evidence while they run, once they have ended, and after a fresh start."""

from shared.infrastructure.resilience.trip_rules import TripConfig, TripRules

SLOW = TripConfig(slow_call_duration=2.0, failure_threshold=3, minimum_calls=4, slow_call_rate=0.5)


def begun(rules: TripRules, *names: str, now: float = 0.0) -> None:
    for name in names:
        rules.begin(name, now)


def test_a_call_that_runs_is_slow_from_the_very_duration_on_and_has_not_failed() -> None:
    rules = TripRules(SLOW)
    begun(rules, "a")
    assert rules.overdue(1.5) is None
    assert rules.window.calls == 0
    assert rules.overdue(2.0) is None
    assert (rules.window.calls, rules.window.slow, rules.window.failures) == (1, 1, 0)
    rules.overdue(9.0)
    assert rules.window.calls == 1


def test_a_call_that_was_taken_back_is_never_overdue() -> None:
    rules = TripRules(SLOW)
    begun(rules, "a", "b")
    rules.forget("a")
    rules.overdue(5.0)
    assert rules.window.slow == 1


def test_a_fresh_start_forgets_what_was_counted_and_what_runs() -> None:
    rules = TripRules(SLOW)
    begun(rules, "a", "b")
    assert rules.end("a", 1.0, failed=True) is None
    rules.clear()
    assert (rules.window.calls, rules.failures_in_row) == (0, 0)
    rules.overdue(5.0)
    assert rules.window.calls == 0


def test_enough_calls_that_hang_are_a_reason() -> None:
    rules = TripRules(SLOW)
    begun(rules, "a", "b", "c", "d")
    assert rules.overdue(2.0) == "4 of the last 4 calls were slow"
    assert rules.overdue(2.5) is None  # nothing new


def test_a_success_ends_the_row_also_where_time_is_watched() -> None:
    rules = TripRules(SLOW)
    begun(rules, "a", "b", "c", "d")
    for name in "ab":
        assert rules.end(name, 0.5, failed=True) is None
    assert rules.end("c", 0.5, failed=False) is None
    assert rules.failures_in_row == 0
    assert rules.end("d", 0.5, failed=True) is not None  # 3 of 4 failed
    assert rules.failures_in_row == 1


def test_a_call_that_was_counted_as_slow_counts_in_the_row_when_it_ends() -> None:
    rules = TripRules(SLOW)
    begun(rules, "a", "b", "c")
    assert rules.overdue(3.0) is None
    assert rules.end("a", 3.0, failed=True) is None
    assert rules.end("b", 3.0, failed=True) is None
    assert rules.failures_in_row == 2
    assert rules.end("c", 3.0, failed=True) == "3 failures in a row"
    assert rules.window.calls == 3


def test_a_late_success_ends_the_row_and_is_no_reason() -> None:
    rules = TripRules(SLOW)
    begun(rules, "a", "b", "c", "d")
    rules.end("a", 1.0, failed=True)
    assert rules.overdue(3.0) is not None
    assert rules.end("b", 3.0, failed=False) is None
    assert rules.failures_in_row == 0


def test_a_late_failure_finds_no_reason_in_what_has_left_the_window() -> None:
    rules = TripRules(SLOW)
    begun(rules, "a", "b", "c", "d")
    assert rules.overdue(2.0) is not None
    assert rules.end("a", 500.0, failed=True) is None
    assert rules.window.calls == 0

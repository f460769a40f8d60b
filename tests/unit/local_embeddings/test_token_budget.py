import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.infrastructure.local_embeddings.memory.token_budget import TokenBudget
from shared.infrastructure.resilience.errors import ConfigurationError


def test_a_failure_lowers_the_budget_and_successes_bring_it_back():
    budget = TokenBudget(1000)
    budget.lower(budget.current)
    assert budget.current == 700
    budget.on_success()
    assert budget.current == 720
    for _ in range(14):
        budget.on_success()
    assert budget.current == 1000
    budget.on_success()
    assert budget.current == 1000


def test_the_last_step_ends_at_the_limit():
    budget = TokenBudget(1000)
    budget.lower(1415)
    assert budget.current == 990
    budget.on_success()
    assert budget.current == 1000


def test_failure_upon_failure_ends_at_the_floor():
    budget = TokenBudget(1000, floor=64)
    for _ in range(20):
        budget.lower(budget.current)
    assert budget.current == 64


def test_a_small_budget_climbs_back_though_a_step_is_less_than_a_token():
    budget = TokenBudget(8)
    budget.lower(8)
    for _ in range(20):
        budget.on_success()
    assert budget.current == 8


def test_a_long_text_that_ran_alone_does_not_lower_the_budget_of_others():
    budget = TokenBudget(512)
    budget.lower(5000)
    assert budget.current == 512


def test_relief_lowers_it_without_a_failure():
    budget = TokenBudget(1000)
    budget.relieve()
    assert budget.current == 700


@pytest.mark.parametrize(
    "arguments",
    [
        {"limit": 0},
        {"limit": 8, "floor": 0},
        {"limit": 8, "floor": 9},
        {"limit": 8, "decrease": 1.0},
        {"limit": 8, "decrease": 0.0},
        {"limit": 8, "increase": 0.0},
    ],
)
def test_a_budget_that_could_not_move_is_refused(arguments):
    with pytest.raises(ConfigurationError):
        TokenBudget(**arguments)


@settings(deadline=None, derandomize=True)
@given(
    limit=st.integers(1, 10_000),
    before=st.integers(0, 6),
    failures=st.integers(1, 8),
    order=st.randoms(use_true_random=False),
    successes=st.integers(0, 8),
)
def test_passes_cut_by_one_budget_lower_it_once(limit, before, failures, order, successes):
    once, often = TokenBudget(limit), TokenBudget(limit)
    for budget in (once, often):
        for _ in range(before):
            budget.lower(budget.current)
    allowed = often.current
    # Passes that went well in between may only add what they add.
    events = ["failure"] * (failures - 1) + ["success"] * successes
    order.shuffle(events)
    once.lower(allowed)
    often.lower(allowed)
    for event in events:
        if event == "failure":
            often.lower(allowed)
        else:
            often.on_success()
    assert once.current <= often.current <= limit
    for _ in range(successes):
        once.on_success()
    assert often.current <= once.current


@settings(deadline=None, derandomize=True)
@given(
    limit=st.integers(1, 5000),
    floor=st.integers(1, 64),
    steps=st.lists(st.one_of(st.none(), st.integers(1, 6000)), max_size=60),
)
def test_a_budget_stays_between_floor_and_limit_and_below_what_failed(limit, floor, steps):
    floor = min(floor, limit)
    budget = TokenBudget(limit, floor=floor)
    for failed in steps:
        before = budget.current
        if failed is None:
            budget.on_success()
            assert budget.current >= before
        else:
            budget.lower(failed)
            assert budget.current <= max(floor, failed * 0.7)
        assert floor <= budget.current <= limit


def test_threads_that_fail_together_lower_it_once():
    budget = TokenBudget(1000)
    together = threading.Barrier(8)

    def fail() -> None:
        allowed = budget.current
        together.wait()
        budget.lower(allowed)

    threads = [threading.Thread(target=fail) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.current == 700

"""What a retry budget counts, and what it says of itself."""

from shared.infrastructure.resilience import RetryBudget, RetryBudgetConfig
from shared.infrastructure.testing import FakeClock


def test_an_attempt_that_was_given_back_was_not_spent() -> None:
    budget = RetryBudget(clock=FakeClock())
    assert budget.try_acquire()
    assert budget.try_acquire(throttled=True)
    assert budget.snapshot()["spent_count"] == 2
    budget.refund(throttled=True)
    assert budget.snapshot()["spent_count"] == 1
    assert budget.tokens == 90.0


def test_a_retry_has_full_cost_unless_the_service_asked_for_patience() -> None:
    budget = RetryBudget(RetryBudgetConfig(cost=8, throttle_cost=3), clock=FakeClock())
    assert (budget.cost(), budget.cost(throttled=True)) == (8, 3)


def test_it_says_its_size_in_a_few_words() -> None:
    assert RetryBudget(clock=FakeClock()).describe() == "budget 100 tokens"

"""A retry budget never spends more than its docstring says, over any span of time."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared.infrastructure.resilience import RetryBudget, RetryBudgetConfig
from shared.infrastructure.testing import FakeClock
from tests.property.machine import TICK, thorough


class SpendingMachine(RuleBasedStateMachine):
    """Retries of full cost, successes and refunds, noted with their instants."""

    @initialize(
        capacity=st.sampled_from([8, 32, 128]),
        refund=st.sampled_from([0.0, 0.5, 2.0]),
        floor=st.sampled_from([0.0, 0.25, 2.0]),
    )
    def build(self, capacity: float, refund: float, floor: float) -> None:
        self.clock = FakeClock(0.0)
        self.config = RetryBudgetConfig(
            capacity=capacity,
            cost=8,
            throttle_cost=4,
            success_refund=refund,
            min_retries_per_second=floor,
        )
        self.budget = RetryBudget(self.config, clock=self.clock)
        self.history: list[tuple[float, int, int]] = []  # instant, retries, successes
        self.unsent: list[int] = []

    @rule()
    def retry(self) -> None:
        before = self.budget.tokens
        granted = self.budget.try_acquire()
        assert granted == (before >= 8)
        if granted:
            self.unsent.append(len(self.history))
            self.history.append((self.clock.now(), 1, 0))

    @precondition(lambda self: self.unsent)
    @rule()
    def give_back(self) -> None:
        index = self.unsent.pop()
        self.budget.refund()
        self.history[index] = (self.history[index][0], 0, 0)

    @rule(count=st.integers(1, 20))
    def succeed(self, count: int) -> None:
        for _ in range(count):
            self.budget.succeed()
        self.history.append((self.clock.now(), 0, count))

    @rule(ticks=st.integers(1, 1000))
    def let_pass(self, ticks: int) -> None:
        self.clock._now += ticks * TICK

    @invariant()
    def tokens_stay_within_the_capacity(self) -> None:
        if hasattr(self, "budget"):
            assert 0.0 <= self.budget.tokens <= self.config.capacity

    def teardown(self) -> None:
        for first, (begin, _, _) in enumerate(getattr(self, "history", [])):
            retries = successes = 0
            for at, retried, succeeded in self.history[first:]:
                retries, successes = retries + retried, successes + succeeded
                config = self.config
                earned = config.capacity + successes * config.success_refund
                floor = (at - begin) * config.min_retries_per_second
                assert retries <= earned / config.cost + floor + 1e-9


TestSpendingMachine = SpendingMachine.TestCase
TestSpendingMachine.settings = thorough(examples=80, steps=40)

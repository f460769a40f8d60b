"""Retry budget: how much more than the offered load an origin may see, all callers together.

A limit on each call does not help a service that is down: three retries a call are four times the
load, at the worst moment. The budget is the retry quota of the AWS SDKs (tokens that a retry
costs and a success pays back in small coin) with the floor of Finagle's budget (a trickle that
flows whatever happens, so that a quiet client can still retry).
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, model_validator

from shared.infrastructure.resilience.clock import MONOTONIC, Clock


class RetryBudgetConfig(BaseModel, frozen=True, extra="forbid"):
    """What a retry costs, and what pays for it.

    The defaults allow, in the long run, one retry for ten successful calls and one a second on
    top; ten retries may go at once after a quiet time.

    Attributes:
        capacity: Tokens of a full budget; 100; at least the dearer of the two costs.
        cost: Tokens for a retry after a failure, and for a hedge; 10; above 0.
        throttle_cost: Tokens for a retry after an answer that asks for patience (HTTP 429), which
            is cheap to give; 5; above 0.
        success_refund: Tokens that a successful call pays in; 1; at least 0.
        min_retries_per_second: Retries of full cost that time alone pays for; 1; at least 0.
    """

    capacity: float = Field(default=100.0, gt=0)
    cost: float = Field(default=10.0, gt=0)
    throttle_cost: float = Field(default=5.0, gt=0)
    success_refund: float = Field(default=1.0, ge=0)
    min_retries_per_second: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _one_retry_must_fit(self) -> RetryBudgetConfig:
        if self.capacity < max(self.cost, self.throttle_cost):
            raise ValueError("capacity must be at least cost and throttle_cost: no retry would fit")
        return self


class RetryBudget:
    """Tokens for the retries and hedges of one origin; share one among all layers that call it.

    In any span of T seconds with S successes at most
    `(capacity + S * success_refund) / cost + T * min_retries_per_second` retries of full cost go.

    Args:
        config: Costs and income.
        clock: Source of monotonic time.
    """

    def __init__(
        self, config: RetryBudgetConfig | None = None, *, clock: Clock = MONOTONIC
    ) -> None:
        self.config = config or RetryBudgetConfig()
        self._clock = clock
        # Bound once: both are read at every successful call.
        self._capacity = self.config.capacity
        self._success_refund = self.config.success_refund
        self._tokens = self._capacity
        self._income = self.config.min_retries_per_second * self.config.cost
        self._paid_until = clock.now()
        self._spent = 0
        self._refused = 0

    @property
    def tokens(self) -> float:
        """Tokens left, from 0.0 to the capacity."""
        now = self._clock.now()
        self._add((now - self._paid_until) * self._income)
        self._paid_until = now
        return self._tokens

    def try_acquire(self, *, throttled: bool = False) -> bool:
        """Pay for one more attempt if there is enough left; call it when the attempt is scheduled.

        Paid later, after the wait, any number of calls could wait at the same time.
        """
        cost = self.cost(throttled=throttled)
        if self.tokens < cost:
            self._refused += 1
            return False
        self._tokens -= cost
        self._spent += 1
        return True

    def refund(self, *, throttled: bool = False) -> None:
        """Take back the payment for an attempt that was never sent."""
        self._spent -= 1
        self._add(self.cost(throttled=throttled))

    def cost(self, *, throttled: bool = False) -> float:
        """Return the tokens that one more attempt costs."""
        return self.config.throttle_cost if throttled else self.config.cost

    def succeed(self) -> None:
        """Pay in for a successful call."""
        if self._tokens < self._capacity:
            self._add(self._success_refund)

    def describe(self) -> str:
        """Say the size in a few words."""
        return f"budget {self._capacity:g} tokens"

    def snapshot(self) -> dict[str, Any]:
        """Return tokens and counters as plain JSON types."""
        return {
            "tokens": self.tokens,
            "capacity": self.config.capacity,
            "spent_count": self._spent,
            "refused_count": self._refused,
        }

    def _add(self, tokens: float) -> None:
        self._tokens = min(self._capacity, self._tokens + tokens)


def budget_of(
    given: RetryBudget | RetryBudgetConfig | None, *, clock: Clock = MONOTONIC
) -> RetryBudget | None:
    """Return a budget that is given as such, or a new one from its config."""
    return RetryBudget(given, clock=clock) if isinstance(given, RetryBudgetConfig) else given

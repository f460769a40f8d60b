"""When a call is late, and whether a hedge may go."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, Field

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.events import (
    NO_LISTENERS,
    BudgetSpent,
    HedgeSkipped,
    Listeners,
)
from shared.infrastructure.resilience.histogram import RotatingHistogram
from shared.infrastructure.resilience.retry_budget import RetryBudget


class HedgeConfig(BaseModel, frozen=True, extra="forbid"):
    """When a request is sent again although the first may still be answered.

    Attributes:
        delay: Seconds without an answer after which a hedge is sent, and again before each
            further one; at least 0. None (default) follows `percentile` of the latest latencies.
        max_hedges: Requests after the first; 1; at least 1.
        percentile: Share of calls that answer before a hedge would go; 0.95; between 0 and 1.
        min_samples: Latencies to be seen before the percentile is trusted; 20; at least 1. Until
            then nothing is hedged.
        window: Seconds a latency counts for, at most; at least half of them; 60; above 0.
        busy_pause: Seconds without hedges after an answer that asks for patience (HTTP 429) and
            does not say for how long; 1; at least 0.
    """

    delay: float | None = Field(default=None, ge=0)
    max_hedges: int = Field(default=1, ge=1)
    percentile: float = Field(default=0.95, gt=0, lt=1)
    min_samples: int = Field(default=20, ge=1)
    window: float = Field(default=60.0, gt=0)
    busy_pause: float = Field(default=1.0, ge=0)

    def describe(self) -> str:
        """Say the main numbers in a few words."""
        hedges = f"{self.max_hedges} hedge{'s' if self.max_hedges > 1 else ''}"
        late = f"p{self.percentile * 100:g}" if self.delay is None else f"{self.delay:g} s"
        return f"{hedges} after {late}"


class HedgePolicy:
    """Decide when a call is late and whether a hedge may go.

    Args:
        config: Delay and number of hedges.
        name: Service, used in events.
        budget: Pays for hedges, and for the retries of all who call the same origin; None is
            unlimited.
        pays_in: Whether good answers pay into the budget; False below a layer that pays in itself.
        may_hedge: Says whether there is room for a hedge of a request now; None (default) is
            whenever the service has not asked for patience.
        clock: Source of monotonic time.
        listeners: Told of hedges that are paid for or skipped.

    Attributes:
        config: As given.
        name: As given.
        listeners: As given.
    """

    def __init__(
        self,
        config: HedgeConfig,
        *,
        name: str = "service",
        budget: RetryBudget | None = None,
        pays_in: bool = True,
        may_hedge: Callable[[Any], bool] | None = None,
        clock: Clock = MONOTONIC,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self.config = config
        self.name = name
        self.listeners = listeners
        self._budget = budget
        self._income = budget if pays_in else None
        self._may_hedge = may_hedge
        self._clock = clock
        self._latencies = RotatingHistogram(config.window, clock=clock)
        self._late: float | None = None
        self._known = self._stale_after = 0
        self._paused_until = self._stale_at = -math.inf
        self._hedged = self._won = self._skipped = 0

    def delay(self) -> float | None:
        """Return the seconds after which an answer is late, None as long as that is unknown."""
        config, now = self.config, self._clock.now()
        if config.delay is not None:
            return config.delay
        # Kept until there are 2 % more latencies: to look it up takes longer than all else here.
        if self._known >= self._stale_after or now >= self._stale_at:
            self._late = self._latencies.percentile(config.percentile, config.min_samples)
            self._stale_after = self._known + min(self._known // 50, 100)
            self._stale_at = now + config.window / 100
        return self._late

    def try_hedge(self, request: object) -> bool:
        """Count and pay for one hedge, unless there is no room for it or the budget is spent."""
        is_busy = self._is_busy(request)
        if is_busy or (self._budget is not None and not self._budget.try_acquire()):
            self._skipped += 1
            self.listeners(HedgeSkipped(self.name, "busy" if is_busy else "budget"))
            return False
        if self._budget is not None:
            self.listeners(BudgetSpent(self.name, self._budget.cost(), self._budget.tokens))
        self._hedged += 1
        return True

    def take_back(self) -> None:
        """Take back a hedge that was never sent."""
        self._hedged -= 1
        if self._budget is not None:
            self._budget.refund()

    def hold_off(self, seconds: float | None = None) -> None:
        """Send no hedge for `seconds`, as the service asked; None is `busy_pause`."""
        pause = self.config.busy_pause if seconds is None else seconds
        self._paused_until = max(self._paused_until, self._clock.now() + pause)

    def succeed(self, elapsed: float, *, hedge_won: bool) -> None:
        """Note a good answer, `elapsed` seconds after the first request.

        If a hedge won, that is less than what the first would have taken, and yet a fair sample:
        both lie above the delay, so the percentile the delay follows is the same.
        """
        self._latencies.record(elapsed)
        self._known += 1
        self._won += hedge_won
        if self._income is not None:
            self._income.succeed()

    def snapshot(self) -> dict[str, Any]:
        """Return the delay in force and the counters as plain JSON types."""
        return {
            "delay": self.delay(),
            "hedged_count": self._hedged,
            "won_count": self._won,
            "skipped_count": self._skipped,
        }

    def _is_busy(self, request: object) -> bool:
        if self._may_hedge is not None:
            return not self._may_hedge(request)
        return self._clock.now() < self._paused_until

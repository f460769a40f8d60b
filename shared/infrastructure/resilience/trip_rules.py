"""When there is enough evidence against a service: failures in a row, a rate, or a trend."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Self

from pydantic import BaseModel, Field, model_validator

from shared.infrastructure.resilience.trend import Trend, TrendConfig
from shared.infrastructure.resilience.windows import CountWindow, OutcomeWindow, TimeWindow


class TripConfig(BaseModel, frozen=True, extra="forbid"):
    """What counts as enough evidence; whichever rule is met first.

    Failures in a row catch a service that is gone, also at low traffic; the rates catch one that
    fails every other call, or answers too slowly.

    Attributes:
        failure_threshold: Failures in a row that are enough; 5; at least 1.
        failure_rate: Share of failures in the window that is enough; 0.5; None leaves the rule out.
        slow_call_duration: Seconds from which on a call is slow, also while it still runs; None
            (default) leaves slowness out.
        slow_call_rate: Share of slow calls in the window that is enough; 0.8.
        minimum_calls: Calls in the window before a rate means anything; 20; at least 1.
        window_seconds: Length of the window; 30; above 0.
        window_calls: Make the window this many calls long instead; None (default).
        prediction: Trends that are enough before any of these rules is met; None (default) leaves
            prediction out.
    """

    failure_threshold: int = Field(default=5, ge=1)
    failure_rate: float | None = Field(default=0.5, gt=0, le=1)
    slow_call_duration: float | None = Field(default=None, gt=0)
    slow_call_rate: float = Field(default=0.8, gt=0, le=1)
    minimum_calls: int = Field(default=20, ge=1)
    window_seconds: float = Field(default=30.0, gt=0)
    window_calls: int | None = Field(default=None, ge=1)
    prediction: TrendConfig | None = None

    @model_validator(mode="after")
    def _rates_can_be_met(self) -> Self:
        if self.window_calls is not None and self.window_calls < self.minimum_calls:
            raise ValueError("window_calls must be at least minimum_calls, or no rate ever counts")
        return self

    def window(self) -> OutcomeWindow:
        """Return an empty window of the kind described."""
        if self.window_calls is not None:
            return CountWindow(self.window_calls)
        return TimeWindow(self.window_seconds)


class TripRules:
    """Collects evidence and says when it is enough.

    Args:
        config: What is enough.

    Attributes:
        window: Outcomes the rates are taken over.
        failures_in_row: Failures since the last success.
        watches_time: Whether calls must be announced by `begin`.
    """

    def __init__(self, config: TripConfig) -> None:
        self._config = config
        self._running: OrderedDict[object, float] = OrderedDict()
        self.window = config.window()
        self.failures_in_row = 0
        self._slow_from = config.slow_call_duration or math.inf
        self._trend = (
            Trend(config.prediction, config.failure_threshold) if config.prediction else None
        )
        self.watches_time = config.slow_call_duration is not None or self._trend is not None

    def begin(self, call: object, now: float) -> None:
        """Take note that a call begins."""
        self._running[call] = now
        if self._trend is not None:
            self._trend.begin(call, now)

    def forget(self, call: object) -> None:
        """Take a call back that came to nothing."""
        self._running.pop(call, None)
        if self._trend is not None:
            self._trend.forget(call)

    def end(self, call: object, now: float, *, failed: bool) -> str | None:
        """Count a call that has ended; return why it is enough, if it is."""
        if not self.watches_time:
            return self._count(now, failed=failed, slow=False)
        began = self._running.pop(call, None)
        foreboding = self._foresee(call, now, began, failed=failed)
        if began is None:  # counted while it ran
            return self._count_late(now, failed=failed) or foreboding
        return self._count(now, failed=failed, slow=now - began >= self._slow_from) or foreboding

    def overdue(self, now: float) -> str | None:
        """Count calls that run for too long as slow already; return why it is enough, if it is."""
        found = False
        while self._running:
            call, began = next(iter(self._running.items()))
            if now - began < self._slow_from:
                break
            del self._running[call]
            self.window.record(now, failed=False, slow=True)
            found = True
        reason = self._reason(now) if found else None
        return reason or (self._trend.silence(now) if self._trend is not None else None)

    def clear(self) -> None:
        """Begin anew."""
        self._running.clear()
        if self._trend is not None:
            self._trend.clear()
        self.window.clear()
        self.failures_in_row = 0

    def _foresee(
        self, call: object, now: float, began: float | None, *, failed: bool
    ) -> str | None:
        if self._trend is None:
            return None
        if failed:
            return self._trend.fail(call, now)
        self._trend.succeed(None if began is None else now - began)
        return None

    def _count(self, now: float, *, failed: bool, slow: bool) -> str | None:
        self.window.record(now, failed=failed, slow=slow)
        if failed:
            self.failures_in_row += 1
        else:
            self.failures_in_row = 0
            if not slow:
                return None
        return self._reason(now)

    def _count_late(self, now: float, *, failed: bool) -> str | None:
        self.failures_in_row = self.failures_in_row + 1 if failed else 0
        return self._reason(now) if failed else None

    def _reason(self, now: float) -> str | None:
        config, window = self._config, self.window
        if self.failures_in_row >= config.failure_threshold:
            return f"{self.failures_in_row} failures in a row"
        window.advance(now)
        if window.calls < config.minimum_calls:
            return None
        if (
            config.failure_rate is not None
            and window.failures >= config.failure_rate * window.calls
        ):
            return f"{window.failures} of the last {window.calls} calls failed"
        if window.slow >= config.slow_call_rate * window.calls:
            return f"{window.slow} of the last {window.calls} calls were slow"
        return None

"""Even spacing for a while, on top of whatever else limits a rate."""

from __future__ import annotations

import math


class Pacing:
    """Until an instant, let `cost` go `cost * interval` seconds after what went before it.

    Nothing is stored up: after a quiet time the next permit is still one interval away from the
    one behind it.

    Attributes:
        until: Instant at which the spacing ends, in seconds of the limiter's clock.
    """

    __slots__ = ("_interval", "_last", "until")

    def __init__(self) -> None:
        self._interval = 0.0
        self._last = -math.inf
        self.until = -math.inf

    def start(self, last: float, interval: float, until: float) -> None:
        """Space permits `interval` seconds apart until `until`, as if one had gone at `last`."""
        self._last = last
        self._interval = interval
        self.until = until

    def change(self, interval: float, until: float, now: float) -> None:
        """Space by `interval` from here on; what has gone already still counts."""
        self.start(self._last if now < self.until else now, interval, until)

    def stop(self) -> None:
        """End the spacing."""
        self.until = -math.inf

    def delay(self, cost: float, now: float) -> float:
        """Return the seconds until `cost` may go."""
        return max(0.0, min(self._last + cost * self._interval, self.until) - now)

    def spend(self, cost: float, now: float) -> None:
        """Account for `cost` that goes now."""
        self._last = max(self._last + cost * self._interval, now)

    def unspend(self, cost: float) -> None:
        """Undo `spend` of `cost`."""
        self._last -= cost * self._interval

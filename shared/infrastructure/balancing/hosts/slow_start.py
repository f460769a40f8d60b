"""Slow start: a host that is new, or back, gets a growing share of its weight."""

from __future__ import annotations

import math

# The share grows in so many steps, from the least one on.
_STEPS, _LEAST = 20, 0.1


class SlowStart:
    """The share of its weight that a host has.

    Args:
        seconds: Over which it grows; 0 is at once.
    """

    __slots__ = ("_began", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether the share is whole."""
        return self._began is None

    def begin(self, now: float) -> None:
        """Begin with the least share."""
        if self._seconds > 0.0:
            self._began = now

    def share(self, now: float) -> tuple[float, float]:
        """Return the share as of `now`, above 0 and at most 1, and the instant it grows next."""
        if self._began is None:
            return 1.0, math.inf
        step = int((now - self._began) / self._seconds * _STEPS)
        if step >= _STEPS:
            self._began = None
            return 1.0, math.inf
        return max(_LEAST, step / _STEPS), self._began + (step + 1) * self._seconds / _STEPS

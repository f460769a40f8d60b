"""How long a host takes to answer: a mean that believes bad news at once."""

from __future__ import annotations

import math

# Seconds after which what was observed weighs 1/e.
_TAU = 10.0


class PeakEWMA:
    """A peak-sensitive, exponentially weighted moving average whose weights decay with time.

    It rises at once to whatever is above it, and falls slowly: a host that has become slow is
    noticed by its first slow answer. While nothing is observed it fades, so that a host that once
    was slow gets another chance. Source: Finagle, `PeakEwma.scala`.

    Args:
        tau: Seconds after which an observation weighs 1/e.
    """

    __slots__ = ("_at", "_tau", "_value")

    def __init__(self, tau: float = _TAU) -> None:
        self._tau = tau
        self._value: float | None = None
        self._at = 0.0

    def observe(self, seconds: float, now: float) -> None:
        """Take note of an answer that took `seconds`, at instant `now`."""
        value = self._value
        if value is None or seconds > value:
            self._value = seconds
        else:
            kept = math.exp((self._at - now) / self._tau)
            self._value = value * kept + seconds * (1.0 - kept)
        self._at = now

    def read(self, now: float) -> float | None:
        """Return the mean as of `now`; None before the first answer."""
        if self._value is None:
            return None
        return self._value * math.exp((self._at - now) / self._tau)

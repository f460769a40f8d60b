"""What happens inside the layers, as values; whoever wants to log or count them listens."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CircuitStateChanged:
    """A circuit breaker moved from one state to another."""

    service: str
    old: str
    new: str
    reason: str


@dataclass(frozen=True, slots=True)
class RetryScheduled:
    """An attempt failed and another one follows after `delay` seconds."""

    service: str
    attempt: int
    delay: float
    cause: str


@dataclass(frozen=True, slots=True)
class HealthStatusChanged:
    """A health monitor changed its mind about a service."""

    service: str
    old: str
    new: str


Event = CircuitStateChanged | RetryScheduled | HealthStatusChanged


class Listener(Protocol):
    """Anything that takes an event; it runs inside the call, so it must not block."""

    def __call__(self, event: Event, /) -> None:
        """Take note of `event`."""
        ...


class Listeners:
    """A fixed set of listeners that cannot hurt the call: an error in one is logged once."""

    __slots__ = ("_broken", "_listeners")

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self._listeners = tuple(listeners)
        self._broken: set[int] = set()

    def __call__(self, event: Event) -> None:
        for index, listener in enumerate(self._listeners):
            try:
                listener(event)
            except Exception:
                if index not in self._broken:
                    self._broken.add(index)
                    _log.warning(
                        "listener %r failed; further failures stay silent", listener, exc_info=True
                    )


NO_LISTENERS = Listeners()

"""How a host stands: whether it may be called, and when that may change."""

from __future__ import annotations

import enum
import math
from typing import NamedTuple


class HostState(enum.StrEnum):
    """What a host is good for at the moment; a later one is worse."""

    READY = "ready"
    SLOW_START = "slow_start"
    """Ready, and new or just back: its share grows to its weight."""
    THROTTLED = "throttled"
    """It asked for patience."""
    HALF_OPEN = "half_open"
    """It kept failing, and is probed."""
    OPEN = "open"
    """It keeps failing."""
    MISSING = "missing"
    """It does not know the model, in spite of what was said."""
    DOWN = "down"
    """Its active checks fail."""
    MISCONFIGURED = "misconfigured"
    """It refuses its key."""
    DRAINING = "draining"
    """It ends the calls it has, and gets no new ones."""
    DISABLED = "disabled"
    """It gets no calls, until told otherwise."""


BADNESS = {state: badness for badness, state in enumerate(HostState)}
"""Which of two states is the worse one."""


WELL = frozenset({HostState.READY, HostState.SLOW_START})
"""States in which a host may be called."""

ILL = frozenset({HostState.HALF_OPEN, HostState.OPEN, HostState.DOWN})
"""States that speak of a host's failures; too many at once speak of our own trouble."""

AWAY = frozenset({HostState.DISABLED, HostState.DRAINING})
"""States in which a host is not there, because somebody said so."""


CALLABLE = frozenset(
    {HostState.READY, HostState.SLOW_START, HostState.HALF_OPEN, HostState.MISSING}
)
"""States in which a host takes calls; where one model is missing, it takes those for others."""


class Standing(NamedTuple):
    """The state of a host, for one model.

    Attributes:
        state: As it is now.
        until: Instant at which it changes, if nothing happens; `inf` if only an event changes it.
    """

    state: HostState
    until: float = math.inf


SHOWN = {HostState.HALF_OPEN: HostState.OPEN, HostState.MISSING: HostState.READY}
"""How states are shown that only the hosts themselves tell apart."""

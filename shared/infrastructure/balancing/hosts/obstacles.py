"""Why a host cannot have a call: what is looked at only where a call cannot be placed at once."""

from __future__ import annotations

import math
from typing import NamedTuple

from shared.infrastructure.balancing.accounting import Estimate
from shared.infrastructure.balancing.call import Call
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.balancing.hosts.host import Host
from shared.infrastructure.balancing.hosts.standing import HostState

_STATES: dict[HostState, tuple[str, Fault | None]] = {
    HostState.DISABLED: ("it is disabled", None),
    HostState.DRAINING: ("it is draining", None),
    HostState.MISCONFIGURED: ("it refused its key", Fault.MISCONFIGURED),
    HostState.DOWN: ("its active checks fail", Fault.BROKEN),
    HostState.MISSING: ("it does not know the model", Fault.NO_MODEL),
    HostState.THROTTLED: ("it asked for patience", Fault.THROTTLED),
    HostState.OPEN: ("its circuit is open", Fault.BROKEN),
}
# Seconds after which to look again at a host that is being probed: the probe may end any moment.
_A_PROBE = 0.1


class Obstacle(NamedTuple):
    """Why a host cannot have a call now.

    Attributes:
        reason: In a few words.
        seconds: Until it is gone; 0.0 if that may be any moment, None if nobody knows.
        is_worth_waiting: Whether a call may wait for that in line.
        is_for_good: Whether it stays for the rest of the call.
        fault: What went wrong there, if that is what keeps the call away.
    """

    reason: str
    seconds: float | None = None
    is_worth_waiting: bool = False
    is_for_good: bool = False
    fault: Fault | None = None


def obstacle_of(host: Host, call: Call, estimate: Estimate, now: float) -> Obstacle | None:
    """Return why a host cannot have an attempt of a call now; None if it can."""
    return _of_call(host, call) or _of_state(host, call, now) or _of_room(host, estimate)


def _of_call(host: Host, call: Call) -> Obstacle | None:
    config, facts = host.config, call.facts
    if not config.serves(facts.model):
        return Obstacle(f"it does not serve {facts.model!r}", is_for_good=True)
    if not config.can(facts.needs):
        return Obstacle(f"it has not all of {', '.join(sorted(facts.needs))}", is_for_good=True)
    if not call.may_try(host.name):
        return Obstacle("it was asked already", is_for_good=True)
    return None


def _of_state(host: Host, call: Call, now: float) -> Obstacle | None:
    state, until = host.standing(call.facts.model, now)
    if state is HostState.THROTTLED and host.is_ramping(call.facts.model, now):
        return Obstacle("its pause is just over, and others came before", 0.0, True)
    if state in _STATES:
        seconds = None if until == math.inf else until - now
        reason, fault = _STATES[state]
        return Obstacle(reason, seconds, state is HostState.THROTTLED, fault=fault)
    if state is HostState.HALF_OPEN and not host.admits(call.facts.model):
        reason = "its circuit is half-open, and is being probed"
        return Obstacle(reason, _A_PROBE, True, fault=Fault.BROKEN)
    return None


def _of_room(host: Host, estimate: Estimate) -> Obstacle | None:
    if host.in_flight >= host.room:
        return Obstacle(f"it is full: {host.in_flight} calls in flight", 0.0, True)
    if host.takes(estimate):
        return None
    delay = host.tokens.delay(estimate)
    return Obstacle("its token limits are used up", delay, True, fault=Fault.THROTTLED)

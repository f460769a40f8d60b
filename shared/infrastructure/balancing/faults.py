"""The error table: what kinds of failure there are, and what each asks for.

A row says whether the same host may be asked again, whether another host or another model may do
better, and what the failure says about the host.
"""

from __future__ import annotations

import enum
import sys
from typing import NamedTuple

from shared.infrastructure.resilience import Verdict


class Fault(enum.StrEnum):
    """Why an attempt gave no answer."""

    BROKEN = "broken"
    """Connect or reset, 500, 502, 504, an answer that is none, a stream cut short."""
    OVERLOADED = "overloaded"
    """503, 529, or an error that says so."""
    THROTTLED = "throttled"
    """429: patience is asked for."""
    SILENT = "silent"
    """No first token, no further token, or too few of them."""
    MISCONFIGURED = "misconfigured"
    """401, 402, 403, quota spent: this host with this key."""
    NO_MODEL = "no_model"
    """404: this model at this host."""
    CONTEXT_WINDOW = "context_window"
    """Longer than the model can read."""
    CONTENT_FILTER = "content_filter"
    """Forbidden by a policy."""
    REJECTED = "rejected"
    """Any other 4xx: the request itself is wrong."""
    OURS = "ours"
    """Our own doing: a full connection pool, a refusal, a cancellation, a deadline."""


class Rule(NamedTuple):
    """A row of the table.

    Attributes:
        other_host: Another host of the same model may do better, at once.
        same_host: Times the same host may be asked again within the call, when no other is left.
        other_model: A fallback model may do better.
        verdict: What it says about the host, for its breaker and its health.
    """

    other_host: bool
    same_host: int
    other_model: bool
    verdict: Verdict


# As often as the call has attempts left: the others come first each time, if there are any.
_WHILE_ALLOWED = sys.maxsize

RULES: dict[Fault, Rule] = {
    Fault.BROKEN: Rule(True, _WHILE_ALLOWED, True, Verdict.FAILED),
    Fault.OVERLOADED: Rule(True, _WHILE_ALLOWED, True, Verdict.FAILED),
    Fault.THROTTLED: Rule(True, 2, True, Verdict.BUSY),
    Fault.SILENT: Rule(True, 0, True, Verdict.FAILED),
    Fault.MISCONFIGURED: Rule(True, 0, True, Verdict.VOID),
    Fault.NO_MODEL: Rule(True, 0, True, Verdict.VOID),
    Fault.CONTEXT_WINDOW: Rule(False, 0, True, Verdict.OK),
    Fault.CONTENT_FILTER: Rule(False, 0, True, Verdict.OK),
    Fault.REJECTED: Rule(False, 0, False, Verdict.OK),
    Fault.OURS: Rule(False, 0, False, Verdict.VOID),
}


def is_good(fault: Fault | None) -> bool:
    """Say whether a host did as it should: it answered, or the fault is the request's."""
    return fault is None or RULES[fault].verdict is Verdict.OK

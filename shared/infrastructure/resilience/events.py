"""What the layers decide and notice, as values.

Whoever wants to log or count all of it listens, see `Listeners`; whoever wants to know what became
of one call traces it, see `trace`. Both get the same events.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was decided or noticed; `str()` says it in a few words.

    All fields are plain JSON types.

    Attributes:
        kind: Stable, machine-readable name of the kind of event.
        service: What it is about, by the name its layer was given.
    """

    kind: ClassVar[str] = "event"
    service: str

    def to_dict(self) -> dict[str, Any]:
        """Return the event as plain JSON types."""
        fields = dataclasses.fields(self)
        return {"event": self.kind, **{field.name: getattr(self, field.name) for field in fields}}


@dataclass(frozen=True, slots=True)
class CircuitStateChanged(Event):
    """A circuit breaker moved from one state to another."""

    kind: ClassVar[str] = "circuit_state_changed"
    old: str
    new: str
    reason: str

    def __str__(self) -> str:
        return f"circuit {self.old} -> {self.new}: {self.reason}"


@dataclass(frozen=True, slots=True)
class HealthStatusChanged(Event):
    """A health monitor changed its mind about a service."""

    kind: ClassVar[str] = "health_status_changed"
    old: str
    new: str

    def __str__(self) -> str:
        return f"health {self.old} -> {self.new}"


@dataclass(frozen=True, slots=True)
class CallRefused(Event):
    """A layer refused a call: nothing was sent.

    Attributes:
        by: Code of the error that the caller gets: `circuit_open`, `rate_limit_exceeded`, ….
        retry_after: Seconds after which another try makes sense, if known.
    """

    kind: ClassVar[str] = "call_refused"
    by: str
    retry_after: float | None = None

    def __str__(self) -> str:
        wait = "" if self.retry_after is None else f", for {self.retry_after:.3g} s"
        return f"refused: {self.by}{wait}"


@dataclass(frozen=True, slots=True)
class CallQueued(Event):
    """A call got its permit or its slot after `waited` seconds in line."""

    kind: ClassVar[str] = "call_queued"
    behind: str
    waited: float

    def __str__(self) -> str:
        return f"waited {self.waited:.3g} s for the {self.behind}"


@dataclass(frozen=True, slots=True)
class LimiterPaused(Event):
    """A service asked for patience, so that nobody gets a permit for `seconds`."""

    kind: ClassVar[str] = "limiter_paused"
    seconds: float

    def __str__(self) -> str:
        return f"rate limiter paused for {self.seconds:.3g} s"


@dataclass(frozen=True, slots=True)
class BulkheadResized(Event):
    """A bulkhead lets more or fewer calls in flight than before."""

    kind: ClassVar[str] = "bulkhead_resized"
    old: int
    new: int

    def __str__(self) -> str:
        return f"bulkhead {self.old} -> {self.new} calls"


@dataclass(frozen=True, slots=True)
class DeadlineExceeded(Event):
    """The `seconds` that a caller gave to a whole call were over."""

    kind: ClassVar[str] = "deadline_exceeded"
    seconds: float

    def __str__(self) -> str:
        return f"the deadline of {self.seconds:.3g} s passed"


@dataclass(frozen=True, slots=True)
class AttemptTimedOut(Event):
    """An attempt took longer than the `seconds` it may."""

    kind: ClassVar[str] = "attempt_timed_out"
    seconds: float

    def __str__(self) -> str:
        return f"attempt timed out after {self.seconds:.3g} s"


@dataclass(frozen=True, slots=True)
class AttemptEnded(Event):
    """An attempt of a call that took, or would have needed, more than one.

    Attributes:
        attempt: Its number, from 1.
        verdict: What it says about the service: "ok", "failed", "busy" or "void".
        outcome: The answer or the error in a few words.
    """

    kind: ClassVar[str] = "attempt_ended"
    attempt: int
    verdict: str
    outcome: str

    def __str__(self) -> str:
        return f"attempt {self.attempt} {self.verdict}: {self.outcome}"


DelayReason = Literal["backoff", "retry_after", "at_once"]
"""Why a retry waits as long as it does: its own delay, the service's wish, or another host."""

_DELAYS: dict[DelayReason, str] = {
    "backoff": "backoff",
    "retry_after": "the service asked for it",
    "at_once": "another host is free",
}


@dataclass(frozen=True, slots=True)
class RetryScheduled(Event):
    """An attempt failed and another one follows after `delay` seconds.

    Attributes:
        attempt: Number of the attempt that failed, from 1.
        delay: Seconds until the next.
        cause: What became of the attempt, in a few words.
        reason: What the delay goes by.
    """

    kind: ClassVar[str] = "retry_scheduled"
    attempt: int
    delay: float
    cause: str
    reason: DelayReason = "backoff"

    def __str__(self) -> str:
        return f"retry in {self.delay:.3g} s: {_DELAYS[self.reason]}"


GiveUpReason = Literal[
    "attempts",
    "stop",
    "deadline",
    "retry_after",
    "budget",
    "not_repeatable",
    "busy",
    "refused",
    "void",
]
"""Why a failed call was not sent again; `RetryGivenUp` says each in words."""

_GIVE_UPS: dict[GiveUpReason, str] = {
    "attempts": "no attempt is left",
    "stop": "the stop condition of the config is met",
    "deadline": "the deadline would pass during the wait",
    "retry_after": "the service asked for a longer wait than allowed",
    "budget": "the retry budget is spent",
    "not_repeatable": "the request must not be sent twice",
    "busy": "an answer that asks for patience is not retried",
    "refused": "we refused the next attempt ourselves",
    "void": "another attempt would not help",
}


@dataclass(frozen=True, slots=True)
class RetryGivenUp(Event):
    """A call failed and is not sent again.

    Attributes:
        attempt: Number of the last attempt, from 1.
        reason: Why.
    """

    kind: ClassVar[str] = "retry_given_up"
    attempt: int
    reason: GiveUpReason

    def __str__(self) -> str:
        return f"gave up: {_GIVE_UPS[self.reason]}"


@dataclass(frozen=True, slots=True)
class BudgetSpent(Event):
    """A retry or a hedge was paid for with `cost` tokens, which leaves `tokens`."""

    kind: ClassVar[str] = "budget_spent"
    cost: float
    tokens: float

    def __str__(self) -> str:
        return f"paid {self.cost:g} of the retry budget, {self.tokens:.3g} left"


@dataclass(frozen=True, slots=True)
class HedgeSent(Event):
    """No answer came within `delay` seconds, so the request was sent once more.

    Attributes:
        attempt: Number of the new request, from 2.
        delay: Seconds since the one before it.
    """

    kind: ClassVar[str] = "hedge_sent"
    attempt: int
    delay: float

    def __str__(self) -> str:
        return f"hedge sent as attempt {self.attempt}: no answer within {self.delay:.3g} s"


@dataclass(frozen=True, slots=True)
class HedgeSettled(Event):
    """A call that was hedged is over.

    Attributes:
        attempt: Number of the request whose outcome the caller gets, from 1.
        won: Whether that is a good answer to a hedge.
    """

    kind: ClassVar[str] = "hedge_settled"
    attempt: int
    won: bool

    def __str__(self) -> str:
        return f"hedge {'won' if self.won else 'lost'}: the caller gets attempt {self.attempt}"


@dataclass(frozen=True, slots=True)
class HedgeSkipped(Event):
    """An answer is late, and yet no hedge is sent.

    Attributes:
        reason: The retry budget is spent, or the service has asked for patience.
    """

    kind: ClassVar[str] = "hedge_skipped"
    reason: Literal["budget", "busy"]

    def __str__(self) -> str:
        why = "the retry budget is spent" if self.reason == "budget" else "the service is busy"
        return f"no hedge: {why}"


@dataclass(frozen=True, slots=True)
class FallbackUsed(Event):
    """A fallback is asked, because of `cause`."""

    kind: ClassVar[str] = "fallback_used"
    cause: str

    def __str__(self) -> str:
        return f"fallback used: {self.cause}"


@dataclass(frozen=True, slots=True)
class FlightJoined(Event):
    """A caller waits for a computation that was under way, with `waiters` callers in all."""

    kind: ClassVar[str] = "flight_joined"
    waiters: int

    def __str__(self) -> str:
        return f"joined a computation under way, {self.waiters} wait for it"


@dataclass(frozen=True, slots=True)
class LimiterStoreChanged(Event):
    """The store in which processes share their rate limits was lost, or is there again.

    Attributes:
        available: Whether limits are shared from now on.
        reason: What became of the exchange that showed it, in a few words.
    """

    kind: ClassVar[str] = "limiter_store_changed"
    available: bool
    reason: str

    def __str__(self) -> str:
        now = "shared again" if self.available else "kept by each process for itself"
        return f"rate limits are {now}: {self.reason}"


class Listener(Protocol):
    """Anything that takes an event; it runs inside the call, so it must not block."""

    def __call__(self, event: Event, /) -> None:
        """Take note of `event`."""
        ...


call_listener: ContextVar[Listener | None] = ContextVar("call_listener", default=None)
"""Told of what becomes of the call in force, besides those who listen to every call."""


class Listeners:
    """A fixed set of listeners that cannot hurt the call: an error in one is logged once."""

    __slots__ = ("_broken", "_listeners")

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self._listeners = tuple(listeners)
        self._broken: set[int] = set()

    @property
    def has_audience(self) -> bool:
        """Whether anybody would hear an event now; what is frequent makes one only then."""
        return bool(self._listeners) or call_listener.get() is not None

    def __call__(self, event: Event) -> None:
        tracing = call_listener.get()
        if tracing is not None:
            tracing(event)
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

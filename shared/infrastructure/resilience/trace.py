"""The trace of one call: every decision on its way, in order, with its time.

A trace is a listener of a single call. It costs nothing where nothing is decided: a call that
succeeds at its first attempt, without waiting for anything, has no entries.
"""

from __future__ import annotations

from contextvars import Token
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.events import Event, Listener, call_listener

_MAX_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """One decision.

    Attributes:
        at: Seconds since the trace began.
        event: What was decided.
    """

    at: float
    event: Event

    def __str__(self) -> str:
        return f"{self.at:8.3f} s  {self.event.service}: {self.event}"

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain JSON types."""
        return {"at": self.at, **self.event.to_dict()}


class Trace:
    """What was decided on the way of one call; `str()` tells it line by line.

    It keeps the first 1000 entries and counts the rest. After the end of its call it stays as it
    is, whatever a request that lost a race may still do.

    Args:
        outer: Traces that get every entry too.
        clock: Source of monotonic time.

    Attributes:
        dropped: Entries that were not kept.
        outcome: "done", or the error that ended the call; None while it is under way.
    """

    def __init__(self, *outer: Listener, clock: Clock = MONOTONIC) -> None:
        self.dropped = 0
        self.outcome: str | None = None
        self._outer = list(outer)
        self._clock = clock
        self._began = clock.now()
        self._elapsed = 0.0
        self._entries: list[TraceEntry] = []

    @property
    def entries(self) -> tuple[TraceEntry, ...]:
        """The decisions so far, oldest first."""
        return tuple(self._entries)

    @property
    def elapsed(self) -> float:
        """Seconds from the beginning to the end of the call, or to now while it is under way."""
        return self._elapsed if self.outcome else self._clock.now() - self._began

    def __call__(self, event: Event) -> None:
        for listener in self._outer:
            listener(event)
        if self.outcome is not None:
            return
        if len(self._entries) < _MAX_ENTRIES:
            self._entries.append(TraceEntry(self._clock.now() - self._began, event))
        else:
            self.dropped += 1

    def pass_on(self, listener: Listener) -> None:
        """Give every entry from here on to `listener` too."""
        self._outer.append(listener)

    def end(self, error: BaseException | None = None) -> None:
        """Take no more entries."""
        self._elapsed = self.elapsed
        self.outcome = "done" if error is None else f"{type(error).__name__}: {error}"

    def __str__(self) -> str:
        lines = [str(entry) for entry in self._entries]
        if self.dropped:
            lines.append(f"{'…':>10}  {self.dropped} more")
        lines.append(f"{self.elapsed:8.3f} s  {self.outcome or 'under way'}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as plain JSON types; times are seconds."""
        return {
            "outcome": self.outcome,
            "elapsed": self.elapsed,
            "dropped": self.dropped,
            "entries": [entry.to_dict() for entry in self._entries],
        }


def current_trace() -> Trace | None:
    """Return the innermost trace in force, or None if the call is not traced."""
    listener = call_listener.get()
    return listener if isinstance(listener, Trace) else None


class trace_call:  # noqa: N801 - a context manager, named like `deadline`
    """Trace what is called inside a `with` block.

    Blocks may be nested; the outer trace gets what the inner one gets. Clients of this SDK trace
    each call themselves: see `ServiceError.trace`, and `response.extensions["trace"]`.

    Args:
        clock: Source of monotonic time.
    """

    def __init__(self, *, clock: Clock = MONOTONIC) -> None:
        self._clock = clock
        self._trace: Trace | None = None
        self._token: Token[Listener | None] | None = None

    def __enter__(self) -> Trace:
        outer = call_listener.get()
        self._trace = Trace(*([outer] if outer else []), clock=self._clock)
        self._token = call_listener.set(self._trace)
        return self._trace

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None and self._trace is not None:
            call_listener.reset(self._token)
            self._trace.end(exc)

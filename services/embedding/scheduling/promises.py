"""Retry-After that holds: a refused call is given a place in the future, and finds it free.

Whoever is refused books as much time as it will take, behind what is booked already, and is told
when that begins. A call that comes back then is known by its identity, and goes before newcomers.
What is never called for is forgotten, and the more often that happens, to calls that were told to
wait as long, the less is booked for them; what had been booked for more is free again.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Hashable

# A server says when in whole seconds, and a client may add a little: so late may one be.
_GRACE = 2.0
_EARLY = 0.01  # clocks and timers differ by that much
# Times the seconds of a call that it books: were the model a little slower than it is thought to
# be, a long line of promises would be more than it can do. Newcomers take what is left over.
_MARGIN = 1.1
_SETTLING = 0.05  # weight of one promise in the share of those that are kept
_LEAST_SHARE = 0.05
_ALIKE = 2.0  # seconds within which calls are alike in their patience
_KINDS = 64
_HORIZON = 60.0  # seconds; there are no places later than that
# Seconds that may be booked for more than are expected: what is known of the patience of callers
# is as old as the waits they were told. With half of it, one of three who came back came in vain.
_DOUBT = 8.0
_MAX_PROMISES = 65_536


class _Promise:
    __slots__ = ("call", "due", "is_open", "kind", "seconds")

    def __init__(self, call: Hashable, kind: _Kind, due: float, seconds: float) -> None:
        self.call = call
        self.kind = kind
        self.due = due
        self.seconds = seconds
        self.is_open = True


class _Kind:
    """Promises to calls that were told to wait about as long.

    Attributes:
        shorter: The kind that waits a little less long.
        kept_share: Share of them that were called for, of late; None before any was due.
        count: Those that are open.
        seconds: What those take of the model.
    """

    __slots__ = ("count", "kept_share", "seconds", "shorter")

    def __init__(self, shorter: _Kind | None) -> None:
        self.shorter = shorter
        self.kept_share: float | None = None
        self.count = 0
        self.seconds = 0.0

    @property
    def share(self) -> float:
        """Share that will be called for: who waits longer is no more patient, while unknown."""
        kind: _Kind | None = self
        while kind is not None and kind.kept_share is None:
            kind = kind.shorter
        known = None if kind is None else kind.kept_share
        return 1.0 if known is None else max(_LEAST_SHARE, known)

    def open(self, seconds: float) -> None:
        """Count a promise of so many seconds."""
        self.count += 1
        self.seconds += seconds

    def close(self, seconds: float, *, kept: bool) -> None:
        """Count a promise no more, and remember whether it was called for."""
        self.count -= 1
        # Sums of floats drift: nothing promised is nothing outstanding.
        self.seconds = max(0.0, self.seconds - seconds) if self.count else 0.0
        share = self.share
        self.kept_share = share + _SETTLING * (kept - share)


class Promises:
    """Places in the future of one lane, a minute of them at most."""

    def __init__(self) -> None:
        self._kinds: list[_Kind] = []
        self._line: list[tuple[float, int, _Promise]] = []  # by when they are due, or were at first
        self._serial = itertools.count()
        self._by_call: dict[Hashable, deque[_Promise]] = {}
        self._booked_until = 0.0

    def __len__(self) -> int:
        return sum(kind.count for kind in self._kinds)

    @property
    def outstanding(self) -> float:
        """Seconds of the model that are promised, and not called for yet."""
        return sum(kind.seconds for kind in self._kinds if kind.count)

    def is_due(self, call: Hashable, now: float) -> bool:
        """Return whether a call was told to come by now."""
        self._forget(now)
        held = self._by_call.get(call)
        return held is not None and held[0].due <= now + _EARLY

    def redeem(self, call: Hashable) -> None:
        """Let a call that was admitted give back its place, if it has one."""
        held = self._by_call.get(call)
        if held is not None:
            self._close(held[0], kept=True)

    def make(
        self, call: Hashable, seconds: float, earliest: float, now: float, *, distinct: bool
    ) -> float:
        """Book a place; return the time it begins.

        Where all places are taken, the time when there may be one again, without a promise.

        Args:
            call: What the call is known by when it comes back.
            seconds: Time it takes of the model.
            earliest: Time before which there is no place.
            now: Time of the clock.
            distinct: Whether a call that is known by the same is the same call: one that comes
                too early keeps its place.
        """
        held = self._by_call.get(call) if distinct else None
        if held is not None:
            promise = held[0]
            if promise.due <= now + _EARLY:  # it came in time, and in vain
                promise.due = earliest
            return promise.due
        due = max(earliest, min(self._booked_until, earliest + self._expected_seconds()))
        latest = max(earliest, now + _HORIZON)
        if due > latest or len(self._line) >= _MAX_PROMISES:
            return min(due, latest)
        kind = self._kind(due - now)
        self._booked_until = due + _MARGIN * seconds * kind.share
        kind.open(seconds)
        promise = _Promise(call, kind, due, seconds)
        heapq.heappush(self._line, (due, next(self._serial), promise))
        self._by_call.setdefault(call, deque()).append(promise)
        return due

    def _expected_seconds(self) -> float:
        """Return the seconds that will be called for, as far as is known, and a few more."""
        if not self._by_call:
            return 0.0
        known = sum(kind.seconds * kind.share for kind in self._kinds if kind.count)
        return _MARGIN * known + _DOUBT

    def _kind(self, wait: float) -> _Kind:
        number = min(int(wait / _ALIKE), _KINDS - 1)
        while len(self._kinds) <= number:
            self._kinds.append(_Kind(self._kinds[-1] if self._kinds else None))
        return self._kinds[number]

    def _forget(self, now: float) -> None:
        line = self._line
        while line and (not line[0][2].is_open or line[0][0] + _GRACE < now):
            due, _, promise = line[0]
            if promise.is_open and promise.due > due:
                heapq.heapreplace(line, (promise.due, next(self._serial), promise))
                continue
            heapq.heappop(line)
            if promise.is_open:
                self._close(promise, kept=False)

    def _close(self, promise: _Promise, *, kept: bool) -> None:
        promise.is_open = False
        held = self._by_call[promise.call]
        held.remove(promise)
        if not held:
            del self._by_call[promise.call]
        promise.kind.close(promise.seconds, kept=kept)

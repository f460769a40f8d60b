"""One first-come line for room at any of several hosts."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from shared.infrastructure.resilience import Clock
from shared.infrastructure.resilience.clock import TimerHandle

# Seconds between two looks at what is due, however soon it is said to be.
_LEAST_WAIT = 0.001
# Share of its patience by which who waits for a refill must have it: until then others go before.
_RIPE = 0.75


class Claim(Protocol):
    """What a place in the line is exchanged for."""

    def withdraw(self) -> None:
        """Give it back unused."""
        ...


T = TypeVar("T", bound=Claim)
T_co = TypeVar("T_co", bound=Claim, covariant=True)


class Want(Protocol[T_co]):
    """What somebody waits for.

    Attributes:
        key: What it has in common with others that can go to the same hosts.
        size: Of those, one that is smaller may fit where this one does not; 0.0 is the least.
    """

    @property
    def key(self) -> Hashable: ...

    @property
    def size(self) -> float: ...

    def take(self) -> T_co | None:
        """Take room if there is any."""
        ...

    def due(self) -> float:
        """Return the seconds after which there may be room though nothing happens; inf: never."""
        ...

    def refill(self) -> float:
        """Return the seconds after which its size fits, if nobody goes before it; inf: never."""
        ...

    def hopeless(self, patience: float, /) -> Exception | None:
        """Return the error of a wait that cannot end well within so many seconds, if it is one."""
        ...


class _Place(Generic[T]):
    __slots__ = ("expires", "future", "ripe", "want")

    def __init__(self, want: Want[T], now: float, max_wait: float) -> None:
        self.want = want
        self.ripe = now + _RIPE * max_wait
        self.expires = now + max_wait
        self.future: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()

    def may_be_overtaken(self, now: float) -> bool:
        """Whether a smaller one may go first; not if that made this one come too late."""
        fits_at = now + self.want.refill()
        return fits_at <= self.ripe or fits_at > self.expires


class RoomLine(Generic[T]):
    """Serves whoever came first of those who want the same; nobody waits for another's host.

    Nobody barges: who finds a line joins it. Those with the same key can go to the same hosts, so
    that after one of them could not be served only smaller ones are asked, and none of these once
    the larger one has waited for long.

    Args:
        clock: Source of time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._places: dict[_Place[T], None] = {}
        self._keys: Counter[Hashable] = Counter()
        self._timer: TimerHandle | None = None
        self._is_serving = self._is_stale = False

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._keys

    async def join(self, want: Want[T], max_wait: float) -> T | None:
        """Wait until there is room; return None if there is none for `max_wait` seconds.

        Raises:
            Exception: What the want says of a wait that has become hopeless, or `close` was given.
        """
        place = _Place(want, self._clock.now(), max_wait)
        self._places[place] = None
        self._keys[want.key] += 1
        self.pump()
        expiry = self._clock.call_later(max_wait, lambda: self._end(place, None))
        try:
            return await place.future
        except BaseException:
            # Room may have been handed over in the very tick in which the waiter was cancelled.
            future = place.future
            if future.done() and not future.cancelled() and future.exception() is None:
                claim = future.result()
                if claim is not None:
                    claim.withdraw()
            raise
        finally:
            expiry.cancel()
            self._remove(place)

    def pump(self) -> None:
        """Serve all who can be."""
        if self._is_serving or not self._places:
            return
        self._is_serving = True
        try:
            due = self._serve()
        finally:
            self._is_serving = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due < math.inf and self._places:
            self._timer = self._clock.call_later(max(due, _LEAST_WAIT), self.pump)
        if self._is_stale:
            self.review()

    def review(self) -> None:
        """Serve all who can be, and let go who now waits in vain; for when hosts have changed."""
        self._is_stale = self._is_serving
        if self._is_serving:
            return
        self.pump()
        now, hopeful = self._clock.now(), set[Hashable]()
        for place in list(self._places):
            if place.want.key in hopeful:
                continue
            error = place.want.hopeless(place.expires - now)
            if error is None:
                hopeful.add(place.want.key)
            else:
                self._end(place, error)

    def close(self, error: Callable[[], Exception]) -> None:
        """Let everybody go with an error."""
        for place in list(self._places):
            self._end(place, error())

    def _serve(self) -> float:
        """Serve all who can be; return the seconds after which more may."""
        now, due = self._clock.now(), math.inf
        blocked: dict[Hashable, float] = {}  # by key, the size from which on nobody is served
        for place in list(self._places):
            want = place.want
            if want.size >= blocked.get(want.key, math.inf) or place.future.done():
                continue
            try:
                claim = want.take()
            except Exception as exc:  # of a strategy: it is for the one who asked
                self._end(place, exc)
                continue
            if claim is not None:
                self._end(place, claim)
                continue
            blocked[want.key] = want.size if want.size and place.may_be_overtaken(now) else 0.0
            due = min(due, want.due())
            if len(blocked) == len(self._keys) and not any(blocked.values()):
                break
        return due

    def _end(self, place: _Place[T], outcome: T | Exception | None) -> None:
        self._remove(place)
        if place.future.done():
            return
        if isinstance(outcome, Exception):
            place.future.set_exception(outcome)
        else:
            place.future.set_result(outcome)

    def _remove(self, place: _Place[T]) -> None:
        if place not in self._places:
            return
        del self._places[place]
        self._keys[place.want.key] -= 1
        if not self._keys[place.want.key]:
            del self._keys[place.want.key]
        if not self._places and self._timer is not None:
            self._timer.cancel()
            self._timer = None

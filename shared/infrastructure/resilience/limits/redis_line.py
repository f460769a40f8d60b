"""The line of one process in front of a limit that many share, and what it has to tell."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from shared.infrastructure.resilience.errors import RateLimitExceededError
from shared.infrastructure.resilience.limits.limiter import TOLERANCE


@dataclass(frozen=True, slots=True)
class Wish:
    """What a waiter wants: `cost` permits, not later than `until`."""

    cost: float
    until: float


class Line:
    """Waiters in order of arrival, each told the instant of its permit, or why it gets none.

    Attributes:
        queued_cost: Sum of what they want.
        refused: How many have been refused.
    """

    def __init__(self) -> None:
        self._wishes: OrderedDict[asyncio.Future[float], Wish] = OrderedDict()
        self.queued_cost = 0.0
        self.refused = 0

    def __len__(self) -> int:
        return len(self._wishes)

    @property
    def head(self) -> tuple[asyncio.Future[float], Wish] | None:
        """The first who still waits."""
        for future, wish in self._wishes.items():
            if not future.done():
                return future, wish
        return None

    def first(self, count: int) -> list[tuple[asyncio.Future[float], Wish]]:
        """Return up to `count` waiters from the head on."""
        return list(itertools.islice(self._wishes.items(), count))

    def is_first(self, future: asyncio.Future[float]) -> bool:
        """Return whether nobody stands before this waiter."""
        return next(iter(self._wishes), None) is future

    def join(self, cost: float, until: float) -> asyncio.Future[float]:
        """Return what a new waiter is to await."""
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._wishes[future] = Wish(cost, until)
        self.queued_cost += cost
        return future

    def leave(self, future: asyncio.Future[float]) -> bool:
        """Take a waiter out; return False if it had left before."""
        wish = self._wishes.pop(future, None)
        if wish is not None:
            self.queued_cost = self.queued_cost - wish.cost if self._wishes else 0.0
        return wish is not None

    def grant(self, future: asyncio.Future[float], instant: float) -> bool:
        """Tell a waiter that it has its permit; return False if it is not there any more."""
        if not self.leave(future) or future.done():
            return False
        future.set_result(instant)
        return True

    def refuse(self, future: asyncio.Future[float], delay: float) -> None:
        """Tell a waiter that its permit would come `delay` seconds from now."""
        if self.leave(future) and not future.done():
            self.refused += 1
            message = f"the next permit is {delay:.3f} s away, longer than the call can wait"
            future.set_exception(RateLimitExceededError(message, retry_after=delay))

    def refuse_late(self, turn: float, spread: Callable[[float], float], now: float) -> None:
        """Refuse all who cannot be served in time.

        Args:
            turn: Instant at which the head is served.
            spread: The least number of seconds between that and the turn of a waiter, by the cost
                of all in front of it and its own, the head's included.
            now: This instant.
        """
        cost = 0.0
        for future, wish in tuple(self._wishes.items()):
            instant = turn + spread(cost + wish.cost)
            if instant > wish.until + TOLERANCE:
                self.refuse(future, instant - now)
            else:
                cost += wish.cost

    def fail(self, error: Callable[[], Exception]) -> None:
        """Give every waiter an error of its own."""
        for future in tuple(self._wishes):
            if self.leave(future) and not future.done():
                future.set_exception(error())


@dataclass(slots=True)
class News:
    """What Redis has yet to be told.

    Attributes:
        debt: Permits that were used beyond what had been taken.
        owed: Permits granted while Redis was away.
        pause: Whether a pause has begun.
        leave: Whether the line has emptied while it queued.
        refunds: Permits that were given back, and the instant at which they were granted.
    """

    debt: float = 0.0
    owed: float = 0.0
    pause: bool = False
    leave: bool = False
    refunds: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    def __bool__(self) -> bool:
        return bool(self.debt or self.owed or self.pause or self.leave or self.refunds)

    def words(self, pause: float) -> list[object]:
        """Return it as arguments of the scripts; `pause` is the seconds of a pause left by now."""
        words: list[object] = [self.debt, self.owed, math.ceil(pause * 1e6) if self.pause else 0]
        words.append(len(self.refunds))
        for refund in self.refunds:
            words += refund
        return words

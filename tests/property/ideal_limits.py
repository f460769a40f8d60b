"""Limiters as one would write them on paper: slow, obvious, and without a line of the real ones."""

import copy
import math
from dataclasses import dataclass
from typing import Protocol


class Ideal(Protocol):
    """What a limit permits."""

    def delay(self, cost: float, now: float) -> float: ...

    def take(self, cost: float, now: float) -> None: ...

    def give_back(self, cost: float, now: float, granted_at: float) -> None: ...


class IdealBucket:
    """Tokens that drip in; fewer than none are a debt."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate = rate
        self.burst = burst
        self.tokens = float(burst)
        self.counted_at = 0.0
        self.emptied_at = -math.inf

    def left(self, now: float) -> float:
        return min(self.burst, self.tokens + self.rate * (now - self.counted_at))

    def delay(self, cost: float, now: float) -> float:
        return max(0.0, (cost - self.left(now)) / self.rate)

    def take(self, cost: float, now: float) -> None:
        self.tokens, self.counted_at = self.left(now) - cost, now

    def give_back(self, cost: float, now: float, granted_at: float) -> None:
        if granted_at >= self.emptied_at:
            self.take(-cost, now)

    def empty(self, at: float) -> None:
        self.tokens, self.counted_at = min(0.0, self.left(at)), at
        self.emptied_at = at


class IdealWindow:
    """A list of what was granted when."""

    def __init__(self, limit: int, window: float) -> None:
        self.limit = limit
        self.window = window
        self.granted: list[list[float]] = []

    def used(self, now: float) -> float:
        return sum(cost for at, cost in self.granted if at > now - self.window)

    def delay(self, cost: float, now: float) -> float:
        instants = [now, *(at + self.window for at, _ in self.granted if at + self.window > now)]
        return min(at for at in instants if self.used(at) + cost <= self.limit) - now

    def take(self, cost: float, now: float) -> None:
        self.granted.append([now, cost])

    def give_back(self, cost: float, now: float, granted_at: float) -> None:
        for entry in reversed(self.granted):
            if now - self.window < entry[0] <= granted_at:
                returned = min(cost, entry[1])
                entry[1] -= returned
                cost -= returned


class IdealAll:
    """Several at once."""

    def __init__(self, *members: Ideal) -> None:
        self.members = members

    def delay(self, cost: float, now: float) -> float:
        return max(member.delay(cost, now) for member in self.members)

    def take(self, cost: float, now: float) -> None:
        for member in self.members:
            member.take(cost, now)

    def give_back(self, cost: float, now: float, granted_at: float) -> None:
        for member in self.members:
            member.give_back(cost, now, granted_at)


@dataclass
class Waiter:
    """A caller in line, who may lose patience."""

    number: int
    cost: float
    leaves_at: float = math.inf


class IdealLine:
    """First come, first served, in front of an ideal limit."""

    def __init__(self, limit: Ideal) -> None:
        self.limit = limit
        self.now = 0.0
        self.paused_until = 0.0
        self.waiters: list[Waiter] = []
        self.served: list[tuple[int, float]] = []

    def delay(self, cost: float) -> float:
        return max(self.limit.delay(cost, self.now), self.paused_until - self.now)

    def join(self, waiter: Waiter) -> None:
        self.waiters.append(waiter)
        self.move_to(self.now)

    def leave(self, number: int) -> None:
        self.waiters = [waiter for waiter in self.waiters if waiter.number != number]
        self.move_to(self.now)

    def move_to(self, instant: float) -> None:
        """Serve whom time has come for, each at the very instant, and let the impatient go."""
        while self.waiters:
            head = self.waiters[0]
            grant_at = self.now + self.delay(head.cost)
            event = min([grant_at, *(waiter.leaves_at for waiter in self.waiters)])
            if event > instant:
                break
            self.now = event
            if event < grant_at:
                self.waiters = [each for each in self.waiters if each.leaves_at > event]
            elif self.delay(head.cost) == 0.0:  # else another member of the limit binds now
                self.limit.take(head.cost, event)
                self.served.append((head.number, event))
                self.waiters.pop(0)
        self.now = instant

    def would_serve(self, newcomer: Waiter) -> float:
        """Return when a newcomer would be served if nobody before it left."""
        then = copy.deepcopy(self)
        then.waiters = [Waiter(each.number, each.cost) for each in (*self.waiters, newcomer)]
        then.move_to(self.now + 10_000.0)
        return dict(then.served)[newcomer.number]

"""A rate limit that several processes share through Redis.

Each limiter has one line of waiters, and one exchange with Redis at a time, which carries all of
them: the longer the line, the less a permit costs.
"""

from __future__ import annotations

import asyncio
import functools
import math
import uuid
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from shared.infrastructure.resilience.clock import TimerHandle
from shared.infrastructure.resilience.errors import ConfigurationError, RateLimitExceededError
from shared.infrastructure.resilience.limits.limiter import TOLERANCE, RateLimiter
from shared.infrastructure.resilience.limits.redis_line import Line, News, Wish
from shared.infrastructure.resilience.limits.redis_scripts import SLIDING_WINDOW, TOKEN_BUCKET
from shared.infrastructure.resilience.limits.redis_store import RedisStore, StoreAwayError
from shared.infrastructure.resilience.limits.reservation import Reservation
from shared.infrastructure.resilience.limits.sliding_window import SlidingWindow
from shared.infrastructure.resilience.limits.token_bucket import TokenBucket

# Waiters in one exchange: bounds how long Redis is busy with one of them.
_BATCH = 100
# Seconds; a line that queues asks as often for its turn, and so learns what others gave back ...
_LOOK = 1.0
# ... and the last time so long before, in order to be given the very instant.
_EARLY = 0.025
_MICRO = 1e6
# Where a permit comes from that Redis did not grant.
_HERE = -math.inf

_Asked = list[tuple["asyncio.Future[float]", Wish]]


@dataclass(frozen=True, slots=True)
class _Place:
    """A permit taken in advance for the head of the line: instant `at` of the server."""

    at: int
    cost: float


class RedisLimiter:
    """A token bucket or a sliding window that holds for all processes together.

    Within a process waiters are served in order of arrival. Between processes each line has one
    turn at a time, in the order in which they asked, so that lines take turns however long they
    are; see `redis_scripts` for how. A line whose process dies is passed over.

    While Redis is away each process keeps to `meanwhile`, which begins as full as the shared limit
    was when last heard of, and what it grants is charged when Redis is back. Waiters stay in line.

    Args:
        name: Of the limit; those who give the same name (and prefix) share it, and must all give
            the same `limit`.
        limit: The shape of the limit; used by nobody else.
        store: Where it is shared.
        meanwhile: What this process keeps to while Redis is away, such as its part of the whole,
            on the clock of `limit`; default: `limit`.
    """

    def __init__(
        self,
        name: str,
        limit: TokenBucket | SlidingWindow,
        store: RedisStore,
        *,
        meanwhile: RateLimiter | None = None,
    ) -> None:
        self.name = name
        self.rate = limit.rate
        self.capacity = limit.capacity
        self._limit = limit
        self._store = store
        self._meanwhile = limit if meanwhile is None else meanwhile
        self._clock = limit.clock
        self._now = limit.clock.now
        is_bucket = isinstance(limit, TokenBucket)
        self._script = TOKEN_BUCKET if is_bucket else SLIDING_WINDOW
        # The braces keep both keys on one node of a cluster.
        key = f"{store.config.prefix}:{'bucket' if is_bucket else 'window'}:{{{name}}}"
        self._keys = (key, f"{key}:log")
        self._line = Line()
        # By which Redis tells the lines apart.
        self._id = uuid.uuid4().hex
        self._place: _Place | None = None
        # The instant at which the head has its turn, if it is known and yet to come.
        self._turn: float | None = None
        self._timer: TimerHandle | None = None
        self._news = News()
        self._talk: asyncio.Task[None] | None = None
        self._heard = (0.0, -math.inf)
        self._paused_until = -math.inf
        self._last_granted_at = _HERE
        self._granted = 0.0
        self._granted_here = 0.0
        store.watch(self)

    @property
    def utilization(self) -> float:
        """The share of the capacity in use, 0.0 to 1.0, as last heard of and less with time."""
        return self._meanwhile.utilization if self._store.away else self._shared_use()

    async def try_acquire(self, cost: float = 1.0) -> bool:
        """Take `cost` if it is there, after those who asked before; wait only for Redis's answer.

        Raises:
            ConfigurationError: See `acquire`.
        """
        try:
            await self._wait(cost, 0.0)
        except RateLimitExceededError:
            return False
        return True

    async def acquire(self, cost: float = 1.0, *, max_wait: float | None = None) -> None:
        """Take `cost`, waiting in line if need be.

        Raises:
            RateLimitExceededError: The permit would come later than `max_wait` seconds from now;
                known cases are refused at once, those that become late because of other processes
                as soon as it is known.
            ConfigurationError: `cost` is not positive or more than the limiter ever holds; or the
                limiter is used on another event loop, or after its store was closed; or Redis
                refuses us and always has.
        """
        await self._wait(cost, max_wait)

    async def reserve(self, cost: float = 1.0, *, max_wait: float | None = None) -> Reservation:
        """Take a permit for an estimated `cost`, to be settled when the true cost is known.

        Raises what `acquire` raises.
        """
        granted_at = await self._wait(cost, max_wait)
        return Reservation(cost, functools.partial(self._settle, cost, granted_at))

    def refund(self, cost: float = 1.0) -> None:
        """Give back `cost` of what was granted last; for an earlier permit, cancel its `reserve`.

        It brings the turns of others forward, within a second.
        """
        self._give_back(cost, self._last_granted_at)

    def pause(self, seconds: float) -> None:
        """Grant nothing in any process for `seconds`, as a service asks for with 429.

        Only permits due within 50 ms, which are given out in advance, may still be used elsewhere.
        Afterwards nobody bursts, see `RateLimiter.pause`. 0 seconds or less is no pause.
        """
        until = self._now() + seconds
        if not until > max(self._paused_until, self._now()):  # NaN is no pause either
            return
        self._paused_until = until
        if self._store.away:
            self._meanwhile.pause_until(until)
        else:
            self._news.pause = True
            self._give_up_turn()
        self._serve()

    def snapshot(self) -> dict[str, Any]:
        """Return utilisation, and counters of this process, as plain JSON types."""
        return {
            "utilization": self.utilization,
            "capacity": self.capacity,
            "waiting": len(self._line),
            "granted": self._granted,
            "refused_count": self._line.refused,
            "paused_for": max(0.0, self._paused_until - self._now()),
            "shared": not self._store.away,
        }

    def store_changed(self) -> None:
        """Go on without Redis, or with it again."""
        meanwhile = self._meanwhile
        self._set_turn(None)
        if self._store.away:
            self._granted_here += self._news.debt + self._news.owed
            self._news = News()
            meanwhile.pause_until(self._paused_until)
            unknown = (self._shared_use() - meanwhile.utilization) * meanwhile.capacity
            if unknown > 0.0:
                meanwhile.charge(unknown, self._now())
        else:
            in_use = meanwhile.utilization * meanwhile.capacity
            self._news.owed = min(self._granted_here, in_use)
            self._news.pause = self._paused_until > self._now()
            self._granted_here = 0.0
        self._serve()

    async def _wait(self, cost: float, max_wait: float | None) -> float:
        """Return the instant of the server at which a permit was granted, or `_HERE`."""
        if not 0.0 < cost <= self.capacity:
            raise ConfigurationError(
                f"cost {cost} can never be granted: it must be above 0 and at most {self.capacity}"
            )
        self._store.check_usable()
        until = math.inf if max_wait is None else self._now() + max_wait
        future = self._line.join(cost, until)
        if self._turn is not None:
            delay = self._turn + self._spread(self._line.queued_cost) - self._now()
            if max_wait is not None and delay > max_wait + TOLERANCE:
                self._line.refuse(future, delay)
        elif len(self._line) == 1:
            self._serve()
        try:
            granted_at = await future
        except asyncio.CancelledError:
            # The permit may have been handed over in the very tick the waiter was cancelled.
            if future.done() and not future.cancelled() and future.exception() is None:
                self._give_back(cost, future.result())
            self._leave(future)
            raise
        self._last_granted_at = granted_at
        return granted_at

    def _leave(self, future: asyncio.Future[float]) -> None:
        was_first = self._line.is_first(future)
        self._line.leave(future)
        if was_first:
            self._head_changed()

    def _serve(self) -> None:
        """Serve the line from its head, if that can be done now."""
        if self._store.away:
            self._serve_here()
        elif self._talk is None or self._talk.done():
            # What the caller has in its context, such as a deadline, is not for those behind it.
            self._talk = asyncio.get_running_loop().create_task(self._converse(), context=Context())

    def _serve_here(self) -> None:
        self._set_turn(None)
        meanwhile = self._meanwhile
        while (head := self._line.head) is not None:
            future, wish = head
            cost = min(wish.cost, meanwhile.capacity)
            if meanwhile.try_acquire(cost):
                self._granted_here += wish.cost
                self._grant(future, wish.cost, _HERE)
                continue
            turn = self._now() + meanwhile.delay(cost, self._now())
            self._line.refuse_late(turn, self._spread, self._now())
            if self._line.head == head:
                self._set_turn(turn)
                return

    async def _converse(self) -> None:
        """Exchange words with Redis as long as there is something to ask or to tell."""
        while not self._store.away and (self._news or self._hungry()):
            news, self._news = self._news, News()
            asked = _Asked()
            if self._place is None:
                asked = self._line.first(_BATCH)
                self._set_turn(None)
            try:
                reply = await self._store.run(self._script, self._keys, self._words(news, asked))
            except StoreAwayError:
                self._granted_here += news.debt + news.owed
            except Exception as error:  # nobody may wait for an answer that will not come
                self._line.fail(functools.partial(_copy, error))
            else:
                self._take_in(reply, asked)

    def _hungry(self) -> bool:
        return self._line.head is not None and self._timer is None

    def _words(self, news: News, asked: _Asked) -> list[object]:
        now = self._now()
        words: list[object] = [_MICRO / self.rate, self.capacity, self._id]
        words += news.words(max(0.0, self._paused_until - now))
        for _, wish in asked:
            left = max(0.0, wish.until - now)
            words += [wish.cost, math.ceil(left * _MICRO) if left < math.inf else -1]
        return words

    def _take_in(self, reply: list[int], asked: _Asked) -> None:
        now_at, place_at, turn_at, used, paused, *answers = reply
        now = self._now()
        self._heard = (min(1.0, used / _MICRO), now)
        if paused > 0:
            self._paused_until = now + paused / _MICRO
        for (future, wish), answer in zip(asked, answers, strict=False):
            if answer > 0:
                self._line.refuse(future, answer / _MICRO)
            else:
                self._grant(future, wish.cost, now_at)
        # Lost in the meantime, by another limiter: the line is served from here by now.
        if self._store.away or not (place_at or turn_at):
            return
        turn = now + ((place_at or turn_at) - now_at) / _MICRO
        owner, wish = asked[len(answers)]
        if place_at:
            self._set_turn(turn, place=_Place(place_at, wish.cost))
        else:
            last_look = turn - _EARLY if turn - _EARLY > now else turn
            self._set_turn(turn, min(last_look, now + _LOOK))
        self._line.refuse_late(turn, self._spread, now)
        head = self._line.head
        if head is None or head[0] is not owner:
            self._head_changed()

    def _set_turn(
        self, turn: float | None, wake_at: float | None = None, place: _Place | None = None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._turn, self._place, self._timer = turn, place, None
        if turn is not None:
            delay = max(0.0, (turn if wake_at is None else wake_at) - self._now())
            self._timer = self._clock.call_later(delay, self._turn_has_come)

    def _turn_has_come(self) -> None:
        head, place = self._line.head, self._place
        if place is not None and head is not None and head[1].cost == place.cost:
            self._set_turn(None)
            self._grant(head[0], place.cost, place.at)
        else:
            self._give_up_turn()
        self._serve()

    def _head_changed(self) -> None:
        """Keep a place that fits whoever is first now; otherwise ask anew."""
        head, place = self._line.head, self._place
        if place is None or head is None or head[1].cost != place.cost:
            self._give_up_turn()
            self._serve()

    def _give_up_turn(self) -> None:
        if self._place is not None:
            self._news.refunds.append((self._place.cost, self._place.at))
        elif self._turn is not None and self._line.head is None:
            self._news.leave = True
        self._set_turn(None)

    def _spread(self, cost: float) -> float:
        """Return the least time between the turns of the head and of whom `cost` brings to it."""
        head = self._line.head
        if self._store.away or head is None:
            return 0.0
        if isinstance(self._limit, SlidingWindow):
            return (math.ceil(cost / self.capacity - TOLERANCE) - 1) * self._limit.window
        return (cost - head[1].cost) / self.rate

    def _grant(self, future: asyncio.Future[float], cost: float, granted_at: float) -> None:
        self._granted += cost
        if not self._line.grant(future, granted_at):
            self._give_back(cost, granted_at)

    def _settle(self, estimate: float, granted_at: float, actual: float) -> None:
        if actual < estimate:
            self._give_back(estimate - actual, granted_at)
        elif actual > estimate:
            self._charge(actual - estimate)

    def _give_back(self, cost: float, granted_at: float) -> None:
        self._granted -= cost
        if granted_at == _HERE:
            self._granted_here = max(0.0, self._granted_here - cost)
            self._meanwhile.refund(cost)
        elif not self._store.away:  # else Redis forgets it, to be on the safe side
            self._news.refunds.append((cost, granted_at))
        self._serve()

    def _charge(self, cost: float) -> None:
        self._granted += cost
        if self._store.away:
            self._granted_here += cost
            self._meanwhile.charge(cost, self._now())
        else:
            self._news.debt += cost
        self._serve()

    def _shared_use(self) -> float:
        share, at = self._heard
        return max(0.0, share - (self._now() - at) * self.rate / self.capacity)


def _copy(error: Exception) -> Exception:
    # One error in several tasks would collect the tracebacks of all.
    return ConfigurationError(str(error)) if isinstance(error, ConfigurationError) else error

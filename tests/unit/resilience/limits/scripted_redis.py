"""A Redis whose answers the test gives, and a limiter that asks it instead of a real one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared.infrastructure.resilience import Listener, RateLimiter, SlidingWindow, TokenBucket
from shared.infrastructure.resilience.limits.redis_limiter import RedisLimiter
from shared.infrastructure.resilience.limits.redis_scripts import Script
from shared.infrastructure.resilience.limits.redis_store import RedisConfig, RedisStore

# The instant of the server, in its microseconds, at which it answers.
NOW = 1_000_000_000
MS = 1000

Answer = list[int] | Exception


def reply(
    *answers: int, place: int = 0, turn: int = 0, used: int = 0, paused: int = 0, now: int = NOW
) -> list[int]:
    """Return what a script replies; `place` and `turn` count from the instant of the answer."""
    return [now, place and now + place, turn and now + turn, used, paused, *answers]


@dataclass(frozen=True)
class Question:
    """What a limiter has told and asked, by name."""

    script: Script
    keys: Sequence[str]
    words: Sequence[Any]

    @property
    def line(self) -> str:
        return str(self.words[2])

    @property
    def news(self) -> list[float]:
        """Debt in permits, permits granted without Redis, microseconds of a pause."""
        return list(self.words[3:6])

    @property
    def refunds(self) -> list[tuple[float, float]]:
        return _pairs(self.words[7 : 7 + 2 * self.words[6]])

    @property
    def wishes(self) -> list[tuple[float, int]]:
        return _pairs(self.words[7 + 2 * self.words[6] :]) if self.words else []


def _pairs(words: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(words[::2], words[1::2], strict=True))


class ScriptedRedis:
    """Takes the place of the connections of a store.

    It gives the answers of `answers`, then grants all that is asked for; a future among them is
    awaited, and stands for an answer on its way.

    Attributes:
        asked: The questions so far.
        given_up: How many of them nobody waits for any more.
        closed: Whether the store has closed it.
    """

    def __init__(self, *answers: Answer) -> None:
        self.answers: deque[Answer | asyncio.Future[list[int]]] = deque(answers)
        self.asked: list[Question] = []
        self.given_up = 0
        self.closed = False

    @property
    def last(self) -> Question:
        return self.asked[-1]

    def hold(self) -> asyncio.Future[list[int]]:
        """Return the next answer, for the test to give later."""
        answer: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        return answer

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[object]) -> list[int]:
        question = Question(script, keys, args)
        self.asked.append(question)
        if not self.answers:
            return reply(*(0 for _ in question.wishes))
        answer = self.answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, list):
            return answer
        try:
            return await answer
        except asyncio.CancelledError:
            self.given_up += 1
            raise

    async def aclose(self) -> None:
        self.closed = True


def store_on(
    redis: ScriptedRedis,
    limit: RateLimiter,
    *,
    listener: Listener | None = None,
    timeout: float = 1000.0,
) -> RedisStore:
    """Return a store on the clock of `limit` that asks `redis`."""
    config = RedisConfig(url="redis://nowhere", timeout=timeout)
    store = RedisStore(config, listeners=[listener] if listener else [], clock=limit.clock)
    store._wire = redis
    return store


def limiter_on(
    redis: ScriptedRedis,
    limit: TokenBucket | SlidingWindow,
    *,
    meanwhile: RateLimiter | None = None,
    store: RedisStore | None = None,
) -> RedisLimiter:
    """Return a limiter that asks `redis`."""
    return RedisLimiter("test", limit, store or store_on(redis, limit), meanwhile=meanwhile)

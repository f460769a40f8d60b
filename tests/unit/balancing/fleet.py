"""A fleet of hosts to test: over answers that are scripted, on a clock that stands still."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import httpx

from shared.infrastructure.balancing.balance import Balance
from shared.infrastructure.balancing.call import CALL, Call, RequestFacts
from shared.infrastructure.balancing.config import BalanceConfig
from shared.infrastructure.balancing.hosts import Host, HostPolicy, LLMHost, Roster
from shared.infrastructure.balancing.strategies.protocol import C, PickContext
from shared.infrastructure.resilience import CircuitBreakerConfig, Listeners
from shared.infrastructure.testing import FakeClock

Step = int | Exception | asyncio.Event | Callable[[httpx.Request], Any]
"""A status, an error, an event to wait for before a 200, or a function of the request."""

BREAKER = CircuitBreakerConfig(timeout=5.0, max_timeout=30.0, failure_threshold=2)


class InTurn:
    """One host after the other, by their order."""

    def __init__(self) -> None:
        self.seen: list[Sequence[Any]] = []

    def pick(self, candidates: Sequence[C], context: PickContext, /) -> C:
        self.seen.append(candidates)
        return candidates[(len(self.seen) - 1) % len(candidates)]


class First:
    """The first host there is: one that has an affinity for it."""

    def pick(self, candidates: Sequence[C], context: PickContext, /) -> C:
        return candidates[0]


class Fleet:
    """Hosts by name; the last step of each is repeated for ever.

    `options` are those of `LLMHost` for all hosts; what a name is given in `each` is for it alone.
    """

    def __init__(
        self,
        steps: dict[str, Step | list[Step]],
        *,
        each: dict[str, dict[str, Any]] | None = None,
        strategy: Any = None,
        balance: BalanceConfig | None = None,
        slow_start: float = 0.0,
        policy: dict[str, Any] | None = None,
        clock: FakeClock | None = None,
        **options: Any,
    ) -> None:
        self.steps = {name: s if isinstance(s, list) else [s] for name, s in steps.items()}
        self.clock = clock or FakeClock()
        self.requests: list[httpx.Request] = []
        self.asked: list[str] = []
        self.health: dict[str, Step] = {}
        self.config = balance or BalanceConfig(slow_start=slow_start)
        self.policy = HostPolicy(
            **{"circuit_breaker": BREAKER, "balance": self.config, **(policy or {})}
        )
        self.events: list[Any] = []
        self.roster = Roster(self.config, clock=self.clock)
        self.listeners = Listeners((self.events.append, self.roster.on_event))
        for name in steps:
            self.add(name, **{**options, **(each or {}).get(name, {})})
        self.strategy = strategy or InTurn()
        self.balance = Balance(self.roster, self.strategy, self.config, clock=self.clock)

    def add(self, name: str, *, slow_start: bool = False, **options: Any) -> Host:
        self.steps.setdefault(name, [200])
        host = Host(
            LLMHost(**{"name": name, "url": f"http://{name}", **options}),
            self.policy,
            httpx.MockTransport(partial(self._reply, name)),
            clock=self.clock,
            listeners=self.listeners,
            rng=random.Random(7),
        )
        self.roster.add(host, slow_start=slow_start)
        return host

    def __getitem__(self, name: str) -> Host:
        return self.roster.hosts[name]

    def counts(self) -> dict[str, int]:
        return dict(Counter(self.asked))

    @property
    def in_flight(self) -> dict[str, int]:
        return {name: host.in_flight for name, host in self.roster.hosts.items()}

    def call(self, **facts: Any) -> Call:
        return Call(RequestFacts(**facts), max_attempts=5, began=self.clock.now())

    async def send(self, call: Call | None = None, **content: Any) -> httpx.Response:
        return await self.balance(request(call or self.call(), **content))

    def start(self, call: Call | None = None, **content: Any) -> asyncio.Task[httpx.Response]:
        return asyncio.ensure_future(self.send(call, **content))

    async def statuses(self, call: Call, times: int) -> list[int | str]:
        """Make so many attempts of one call; return status or error of each."""
        found: list[int | str] = []
        for _ in range(times):
            try:
                found.append((await self.send(call)).status_code)
            except Exception as exc:
                found.append(type(exc).__name__)
        return found

    async def settle(self) -> None:
        await self.clock.advance()

    async def _reply(self, name: str, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/health"):
            return await self._play(self.health.get(name, 200), request)
        steps = self.steps[name]
        step = steps[min(self.asked.count(name), len(steps) - 1)]
        self.requests.append(request)
        self.asked.append(name)
        return await self._play(step, request)

    async def _play(self, step: Step, request: httpx.Request) -> httpx.Response:
        if isinstance(step, Exception):
            raise step
        if isinstance(step, asyncio.Event):
            await step.wait()
            step = 200
        if isinstance(step, int):
            return httpx.Response(step, json={})
        answer = step(request)
        return await answer if isinstance(answer, Awaitable) else answer


def request(call: Call, path: str = "/v1/thing", **content: Any) -> httpx.Request:
    extensions = {CALL: call, **content.pop("extensions", {})}
    return httpx.Request("POST", f"http://pool{path}", extensions=extensions, **content)


class Stream(httpx.AsyncByteStream):
    """A body that comes piece by piece; an exception among them is raised, an event waited for."""

    def __init__(self, *pieces: bytes | Exception | asyncio.Event) -> None:
        self._pieces = pieces
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            elif isinstance(piece, Exception):
                raise piece
            else:
                yield piece

    async def aclose(self) -> None:
        self.is_closed = True


def streamed(*pieces: bytes | Exception | asyncio.Event) -> Callable[[httpx.Request], Any]:
    return lambda _: httpx.Response(200, stream=Stream(*pieces))


def busy(seconds: float | None = None) -> Callable[[httpx.Request], Any]:
    headers = {} if seconds is None else {"Retry-After": str(seconds)}
    return lambda _: httpx.Response(429, headers=headers, json={})

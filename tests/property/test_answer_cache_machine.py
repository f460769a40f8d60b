"""The answer cache under callers that come, leave, and get answers of all kinds."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from shared.infrastructure.balancing.accounting import (
    CACHED,
    AnswerCacheConfig,
    AnswerCacheLayer,
)
from shared.infrastructure.balancing.call import CallOptions
from shared.infrastructure.balancing.errors import NoHostAvailableError
from shared.infrastructure.resilience import PLAIN_CALL, stack
from tests.property.machine import TimedMachine, thorough
from tests.unit.balancing.accounting_calls import chat_answer, question

TEXTS, TENANTS = ("a", "b", "c"), ("t", "u")
TTL = 50.0
Key = tuple[str, str]


@dataclass
class Flight:
    """One question on its way, and who waits for its answer."""

    end: asyncio.Future[Any]
    callers: list[asyncio.Task[httpx.Response]] = field(default_factory=list)


class AnswerCacheMachine(TimedMachine):
    """The model knows of each question what its last whole answer was, and when that came."""

    def __init__(self) -> None:
        super().__init__()
        # Room for four answers of six.
        config = AnswerCacheConfig(max_bytes=4 * 800, ttl=TTL)
        self.layer = AnswerCacheLayer(config, clock=self.clock)
        self.ask = stack(self.hosts, self.layer, semantics=PLAIN_CALL)
        self.under_way: dict[Key, Flight] = {}
        self.last: dict[Key, tuple[str, float]] = {}
        self.coming: asyncio.Future[Any] | None = None
        self.asked = 0

    async def hosts(self, _request: httpx.Request) -> httpx.Response:
        self.asked += 1
        end, self.coming = self.coming, None
        assert end is not None, "one question was asked twice at once"
        outcome = await end
        if isinstance(outcome, Exception):
            raise outcome
        response: httpx.Response = outcome
        return response

    @rule(text=st.sampled_from(TEXTS), tenant=st.sampled_from(TENANTS))
    def come(self, text: str, tenant: str) -> None:
        key, asked = (text, tenant), self.asked
        self.coming = self.runner.get_loop().create_future()
        request = question(seed=text, options=CallOptions(tenant=tenant))
        end = self.coming
        caller = self.start(self.call(request))
        if caller.done():
            self.check_hit(key, caller.result())
            assert self.asked == asked
        elif key in self.under_way:
            assert self.asked == asked
            self.under_way[key].callers.append(caller)
        else:
            assert self.asked == asked + 1
            self.under_way[key] = Flight(end, [caller])
        self.coming = None

    async def call(self, request: httpx.Request) -> httpx.Response:
        return await self.ask(request)

    def check_hit(self, key: Key, response: httpx.Response) -> None:
        content, came_at = self.last[key]
        assert response.extensions[CACHED] == "hit"
        assert response.json()["id"] == content
        assert self.clock.now() < came_at + TTL

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), kind=st.sampled_from(["whole", "whole", "cut", "error status", "error"]))
    def land(self, data: st.DataObject, kind: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.under_way)))
        flight = self.under_way.pop(key)
        name = f"{key}{self.asked}"
        flight.end.set_result(OUTCOMES[kind](name))
        self.pass_time()
        if kind == "whole":
            self.last[key] = (name, self.clock.now())
        how = []
        for caller in flight.callers:
            if kind == "error":
                assert isinstance(caller.exception(), NoHostAvailableError)
            else:
                assert caller.result().json()["id"] == name
                how.append(caller.result().extensions.get(CACHED))
        if how:
            assert how == [None, *["shared"] * (len(how) - 1)]

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), is_leader=st.booleans())
    def cancel_a_caller(self, data: st.DataObject, is_leader: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.under_way)))
        flight = self.under_way[key]
        caller = flight.callers.pop(0 if is_leader else -1)
        self.cancel(caller)
        assert caller.cancelled()
        assert not any(other.done() for other in flight.callers)
        if not flight.callers:
            assert flight.end.cancelled()
            del self.under_way[key]

    @rule(seconds=st.integers(1, 60))
    def let_pass(self, seconds: int) -> None:
        self.pass_time(float(seconds))

    @invariant()
    def memory_is_bounded_and_counted(self) -> None:
        snapshot = self.layer.snapshot()
        kept = [answer.size_bytes for _, answer in self.layer.cache._kept.values()]
        assert snapshot["bytes"] == sum(kept) <= snapshot["max_bytes"]
        assert snapshot["entries"] == len(kept) <= len(self.last)

    def at_the_end(self) -> None:
        """Nothing is left under way once the last caller is gone."""
        for flight in self.under_way.values():
            for caller in flight.callers:
                caller.cancel()
        self.pass_time()
        assert len(asyncio.all_tasks(self.runner.get_loop())) == 0


OUTCOMES: dict[str, Callable[[str], Any]] = {
    "whole": lambda name: httpx.Response(200, json=chat_answer(id=name)),
    "cut": lambda name: httpx.Response(200, json=chat_answer(reason="length", id=name)),
    "error status": lambda name: httpx.Response(500, json=chat_answer(id=name)),
    "error": lambda name: NoHostAvailableError({name: "full"}),
}

TestAnswerCacheMachine = AnswerCacheMachine.TestCase
TestAnswerCacheMachine.settings = thorough(examples=80, steps=40)

"""Hosts that come, go, fail and recover under calls that end, break off and are cancelled."""

import asyncio
import contextlib
import gc
from dataclasses import dataclass, field
from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from shared.infrastructure.balancing.call import CALL, Call
from shared.infrastructure.balancing.config import BalanceConfig
from shared.infrastructure.balancing.faults import RULES, Fault
from shared.infrastructure.balancing.hosts import HostLimits
from shared.infrastructure.balancing.strategies.round_robin import RoundRobin
from shared.infrastructure.resilience import CircuitState
from shared.infrastructure.testing import FakeClock
from tests.property.machine import TICK, TimedMachine, thorough
from tests.unit.balancing.fleet import Fleet

ROOM = 2
PATIENCE = 8.0
PAUSE = 3.0
MODELS = [None, "m", "n"]
FAULTS = {
    200: None,
    400: Fault.REJECTED,
    401: Fault.MISCONFIGURED,
    404: Fault.NO_MODEL,
    429: Fault.THROTTLED,
    500: Fault.BROKEN,
}


class Body(httpx.AsyncByteStream):
    """A stream that stays open after its first piece, until it is told how to end."""

    def __init__(self, end: "asyncio.Future[Exception | None]") -> None:
        self._end = end

    async def __aiter__(self) -> Any:
        yield b"first"
        error = await self._end
        if error is not None:
            raise error


@dataclass(eq=False)
class Exchange:
    """A request that has reached a host."""

    host: str
    call: Call
    told: "asyncio.Future[int | str]"
    end: "asyncio.Future[Exception | None]"


@dataclass(eq=False)
class Open:
    """A stream that is being delivered; `responses` holds it as long as anybody does."""

    exchange: Exchange
    responses: list[httpx.Response] = field(default_factory=list)


class BalanceMachine(TimedMachine):
    """The model knows who is in flight where, and who must not be asked by whom, or before when."""

    def __init__(self) -> None:
        super().__init__()
        config = BalanceConfig(
            queue_timeout=PATIENCE, panic_threshold=1.0, slow_start=4.0, misconfigured=5.0
        )
        self.fleet = Fleet({}, balance=config, clock=self.clock, strategy=RoundRobin())
        self.underway: list[tuple[asyncio.Task[Any], Call]] = []
        self.exchanges: list[Exchange] = []
        self.streams: list[Open] = []
        self.calls: list[Call] = []
        self.not_before: dict[tuple[str, str | None], float] = {}
        self.banned: set[tuple[Call, str]] = set()
        self.closed_to_all: set[str] = set()
        self.made = 0
        self.trouble: list[str] = []
        for _ in range(2):
            self.add_a_host(False)

    @rule(slowly=st.booleans())
    def add_a_host(self, slowly: bool) -> None:
        name = f"h{self.made}"
        self.made += 1
        self.fleet.steps[name] = [lambda request: self.reply(name, request)]
        self.fleet.add(name, slow_start=slowly, limits=HostLimits(max_in_flight=ROOM))
        self.pass_time()

    async def reply(self, name: str, request: httpx.Request) -> httpx.Response:
        loop, call = asyncio.get_running_loop(), request.extensions[CALL]
        exchange = Exchange(name, call, loop.create_future(), loop.create_future())
        self.check_arrival(exchange)
        self.exchanges.append(exchange)
        try:
            told = await exchange.told
        finally:
            self.exchanges.remove(exchange)
        if told == "silent":
            raise httpx.ReadTimeout("silent")
        if told == "stream":
            self.streams.append(Open(exchange))
            return httpx.Response(200, stream=Body(exchange.end))
        headers = {"Retry-After": str(PAUSE)} if told == 429 else {}
        body = {"error": {"code": "model_not_found"}} if told == 404 else {}
        return httpx.Response(int(told), headers=headers, json=body)

    def check_arrival(self, exchange: Exchange) -> None:
        name, call = exchange.host, exchange.call
        model = call.facts.model
        breaker = self.fleet[name].lanes.get(model).breaker
        assert breaker is not None
        reasons = {
            "it is closed to all": name in self.closed_to_all,
            "it was asked too early": self.clock.now() < self.not_before.get((name, model), 0.0),
            "it had its attempts": (call, name) in self.banned,
            "its circuit is open": breaker.state is CircuitState.OPEN,
            "it is full": sum(other.host == name for other in self.exchanges) >= ROOM,
            "two legs at once": any(
                other.call is call and other.host == name for other in self.exchanges
            ),
        }
        # Raised in here it would only be one more failure of the host.
        self.trouble += [f"{name}: {reason}" for reason, is_so in reasons.items() if is_so]

    @rule(model=st.sampled_from(MODELS))
    def come(self, model: str | None) -> None:
        call = self.fleet.call(model=model)
        self.calls.append(call)
        self.attempt(call)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def come_again(self, data: st.DataObject) -> None:
        """Another attempt, after a failure, or beside one that is under way."""
        self.attempt(data.draw(st.sampled_from(self.calls[-4:])))

    def attempt(self, call: Call) -> None:
        self.underway.append((self.start(self.keep(call)), call))

    async def keep(self, call: Call) -> None:
        response = await self.fleet.send(call)
        for stream in self.streams:
            if stream.exchange.call is call and not stream.responses and not response.is_closed:
                stream.responses.append(response)
                return

    @precondition(lambda self: self.exchanges)
    @rule(data=st.data(), told=st.sampled_from([200, 200, 400, 401, 404, 429, 500, 500, "silent"]))
    def answer(self, data: st.DataObject, told: int | str) -> None:
        exchange = data.draw(st.sampled_from(self.exchanges))
        fault = Fault.SILENT if told == "silent" else FAULTS[int(told)]
        host, call, now = exchange.host, exchange.call, self.clock.now()
        model = call.facts.model
        if fault is None or RULES[fault].same_host == 0:
            self.banned.add((call, host))
        pauses = {Fault.THROTTLED: PAUSE, Fault.NO_MODEL: 60.0 if model else 0.0}
        pause = pauses.get(fault, 0.0) if fault else 0.0
        self.not_before[host, model] = max(self.not_before.get((host, model), 0.0), now + pause)
        exchange.told.set_result(told)
        self.pass_time()

    @precondition(lambda self: self.exchanges)
    @rule(data=st.data())
    def begin_a_stream(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.exchanges)).told.set_result("stream")
        self.pass_time()

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), way=st.sampled_from(["end", "break", "close", "forget", "lose"]))
    def end_a_stream(self, data: st.DataObject, way: str) -> None:
        stream = data.draw(st.sampled_from(self.streams))
        self.streams.remove(stream)
        self.runner.run(self.finish(stream, way))
        gc.collect()
        self.pass_time()

    async def finish(self, stream: Open, way: str) -> None:
        response = stream.responses.pop()
        end = stream.exchange.end
        if way in {"end", "break"}:
            end.set_result(httpx.ReadError("gone") if way == "break" else None)
            with contextlib.suppress(httpx.ReadError):
                await response.aread()
        elif way == "close":
            await response.aclose()
        elif way == "lose":
            reader = asyncio.ensure_future(response.aread())
            await asyncio.sleep(0)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await response.aclose()

    @precondition(lambda self: any(not task.done() for task, _ in self.underway))
    @rule(data=st.data())
    def cancel_a_call(self, data: st.DataObject) -> None:
        tasks = [task for task, _ in self.underway if not task.done()]
        self.cancel(data.draw(st.sampled_from(tasks)))

    @precondition(lambda self: self.fleet.roster.hosts)
    @rule(data=st.data(), way=st.sampled_from(["enable", "disable", "drain", "remove", "weigh"]))
    def change_a_host(self, data: st.DataObject, way: str) -> None:
        name, roster = data.draw(st.sampled_from(list(self.fleet.roster.hosts))), self.fleet.roster
        if way == "enable":
            self.closed_to_all.discard(name)
            roster.enable(name, True)
        elif way == "disable":
            self.closed_to_all.add(name)
            roster.enable(name, False)
        elif way == "drain":
            self.closed_to_all.add(name)
            self.start(roster.drain(name, 2.0))
        elif way == "weigh":
            roster.set_weight(name, 2.0)
        elif self.fleet[name].in_flight == 0:
            roster.remove(name)
        self.pass_time()

    @rule(ticks=st.integers(1, 400))
    def wait(self, ticks: int) -> None:
        self.pass_time(ticks * TICK)

    @invariant()
    def nobody_was_asked_who_must_not_be(self) -> None:
        assert not self.trouble

    @invariant()
    def in_flight_is_what_is_not_over(self) -> None:
        for name, host in self.fleet.roster.hosts.items():
            sent = sum(exchange.host == name for exchange in self.exchanges)
            read = sum(stream.exchange.host == name for stream in self.streams)
            assert host.in_flight == sent + read <= ROOM
            assert host.load == host.in_flight / host.weight
            assert 0.0 < host.weight <= host.base_weight

    @invariant()
    def a_call_knows_its_attempts(self) -> None:
        for call in self.calls:
            running = [attempt for attempt in call.attempts if attempt.ended_at is None]
            assert {attempt.host for attempt in running} == call.busy
            assert len(running) == len(call.busy)

    @invariant()
    def nobody_probes_twice_at_once(self) -> None:
        for host in self.fleet.roster.hosts.values():
            for model in host.lanes.models:
                breaker = host.lanes.get(model).breaker
                assert breaker is not None
                assert breaker.snapshot()["probes_in_flight"] <= 1

    def at_the_end(self) -> None:
        for task, _ in self.underway:
            task.cancel()
        self.pass_time()
        while self.streams:
            self.runner.run(self.finish(self.streams.pop(), "close"))
        self.pass_time(PATIENCE)
        assert all(count == 0 for count in self.fleet.in_flight.values())
        assert self.fleet.balance.snapshot()["waiting"] == 0
        assert self.clock.pending == 0


TestBalanceMachine = BalanceMachine.TestCase
TestBalanceMachine.settings = thorough(examples=30, steps=50)


@given(weights=st.lists(st.integers(1, 8), min_size=1, max_size=6))
def test_every_host_gets_its_share_by_weight(weights: list[int]) -> None:
    each = {f"h{place}": {"weight": float(weight)} for place, weight in enumerate(weights)}
    fleet = Fleet(dict.fromkeys(each, 200), each=each, clock=FakeClock(), strategy=RoundRobin())
    rounds = 3
    for _ in range(rounds * sum(weights) + 1):
        admission = fleet.balance._admit(fleet.call(), {})
        assert admission is not None
        fleet.asked.append(admission.host.name)
        admission.withdraw()
    counts = fleet.counts()
    for name, options in each.items():
        assert abs(counts[name] - rounds * options["weight"]) <= 2

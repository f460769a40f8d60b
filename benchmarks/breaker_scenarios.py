"""What concurrency, cancellation and the wall clock do to a circuit breaker."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import httpx

from benchmarks.breakers import PROBE_LEASE, THRESHOLD, Breaker
from benchmarks.report import Cell
from benchmarks.virtual_time import VirtualTime

Make = Callable[[float], Awaitable[Breaker]]
Scenario = Callable[[Make, VirtualTime], Awaitable[Cell]]

_OPEN_FOR = 0.1


@dataclass
class _Service:
    """A dependency that does as it is told and counts who reaches it."""

    breaker: Breaker
    reached: int = 0
    tasks: list[asyncio.Task[object]] = field(default_factory=list)

    async def fail(self) -> None:
        self.reached += 1
        raise ConnectionError

    async def answer(self) -> None:
        self.reached += 1

    async def call(self, function: Callable[[], Awaitable[object]]) -> None:
        """Make a call, whatever comes of it."""
        with contextlib.suppress(Exception):
            await self.breaker.call(function)

    async def is_reached(self) -> bool:
        before = self.reached
        await self.call(self.answer)
        return self.reached > before

    async def trip(self) -> None:
        for _ in range(THRESHOLD):
            await self.call(self.fail)
        if self.breaker.state != "open":
            raise AssertionError(f"{THRESHOLD} failures did not open it")

    async def begin(self, until: asyncio.Event) -> asyncio.Task[object]:
        """Start a call that the dependency answers when `until` is set."""

        async def hold() -> None:
            self.reached += 1
            await until.wait()

        task = asyncio.ensure_future(self.breaker.call(hold))
        self.tasks.append(task)
        await asyncio.sleep(0.001)
        return task

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def herd(make: Make, _time: VirtualTime) -> Cell:
    service = _Service(await make(_OPEN_FOR))
    await service.trip()
    await asyncio.sleep(2 * _OPEN_FOR)
    service.reached, release = 0, asyncio.Event()
    for _ in range(100):
        await service.begin(release)
    reached = service.reached
    await service.end()
    return Cell(f"{reached} of 100", reached == 1)


async def stale_success(make: Make, _time: VirtualTime) -> Cell:
    service = _Service(await make(_OPEN_FOR))
    release = asyncio.Event()
    stale = await service.begin(release)
    await service.trip()
    await asyncio.sleep(2 * _OPEN_FOR)
    await service.begin(asyncio.Event())
    release.set()
    await asyncio.gather(stale, return_exceptions=True)
    state = service.breaker.state
    await service.end()
    return Cell(state, state == "half-open")


async def cancelled_probe(make: Make, _time: VirtualTime) -> Cell:
    service = _Service(await make(_OPEN_FOR))
    await service.trip()
    await asyncio.sleep(2 * _OPEN_FOR)
    await service.begin(asyncio.Event())
    await service.end()
    state = service.breaker.state
    is_free = await service.is_reached()
    text = f"{state}, next call {'passes' if is_free else 'refused'}"
    return Cell(text, state == "half-open" and is_free)


async def hung_probe(make: Make, _time: VirtualTime) -> Cell:
    service = _Service(await make(_OPEN_FOR))
    await service.trip()
    await asyncio.sleep(2 * _OPEN_FOR)
    await service.begin(asyncio.Event())
    # The first call after the lease finds the probe lost, one after the next open time passes.
    for _ in range(20):
        await asyncio.sleep(PROBE_LEASE)
        if await service.is_reached():
            await service.end()
            return Cell("a later call passes", True)
    await service.end()
    return Cell(f"stuck: none passes in {20 * PROBE_LEASE:g} s", False)


async def cancellations(make: Make, _time: VirtualTime) -> Cell:
    service = _Service(await make(60.0))
    for _ in range(20):
        await service.begin(asyncio.Event())
        await service.end()
    return Cell(service.breaker.state, service.breaker.state == "closed")


async def cancelled_in_row(make: Make, _time: VirtualTime) -> Cell:
    service = _Service(await make(60.0))
    for _ in range(THRESHOLD - 1):
        await service.call(service.fail)
    await service.begin(asyncio.Event())
    await service.end()
    if service.breaker.state == "open":
        return Cell("opens it", False)
    await service.call(service.fail)
    counted = service.breaker.state == "open"
    return Cell("ignored" if counted else "taken for a success", counted)


async def wall_clock_forward(make: Make, time: VirtualTime) -> Cell:
    service = _Service(await make(60.0))
    await service.trip()
    time.step_wall_clock(3600.0)
    passes = await service.is_reached()
    return Cell("a call passes after 0 of 60 s" if passes else "stays open", not passes)


async def wall_clock_back(make: Make, time: VirtualTime) -> Cell:
    service = _Service(await make(60.0))
    await service.trip()
    time.step_wall_clock(-3600.0)
    await asyncio.sleep(61.0)
    passes = await service.is_reached()
    return Cell("probes after 60 s" if passes else "refuses after 61 of 60 s", passes)


class _BrokenBody(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"half"
        raise httpx.ReadError("connection reset")


async def broken_bodies(make: Make, _time: VirtualTime) -> Cell:
    breaker = await make(60.0)
    reached = 0

    def answer(_request: httpx.Request) -> httpx.Response:
        nonlocal reached
        reached += 1
        return httpx.Response(200, stream=_BrokenBody())

    transport = breaker.transport(httpx.MockTransport(answer))
    async with httpx.AsyncClient(transport=transport) as client:
        for _ in range(4 * THRESHOLD):
            with contextlib.suppress(Exception):
                await client.get("http://service/")
    return Cell(f"{reached} requests sent", reached == THRESHOLD)


SCENARIOS: dict[str, Scenario] = {
    "100 calls at once when the open time is over: how many reach the dependency": herd,
    "A call from before the trip succeeds while a probe is out: state after": stale_success,
    "The only probe is cancelled by its caller": cancelled_probe,
    "The only probe never ends": hung_probe,
    "20 healthy calls are cancelled by their callers: state after": cancellations,
    "4 failures, 1 cancelled call, 1 failure: the cancelled call is": cancelled_in_row,
    "20 answers of an HTTP service break off in the body, 5 failures open it": broken_bodies,
    "Wall clock steps 1 h forward while open": wall_clock_forward,
    "Wall clock steps 1 h back while open": wall_clock_back,
}

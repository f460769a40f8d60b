import asyncio
import random
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    AdaptiveBulkhead,
    AdaptiveBulkheadConfig,
    AdaptiveBulkheadLayer,
    AttemptTimeoutLayer,
    Bulkhead,
    BulkheadConfig,
    BulkheadFullError,
    ConfigurationError,
    Send,
    Verdict,
    stack,
)
from shared.infrastructure.resilience.layer import PlainCall, Settle
from shared.infrastructure.testing import FakeClock


class Server:
    """Serves `slots` calls at once, in `seconds` each; the others wait for their turn."""

    def __init__(self, clock: FakeClock, slots: int, seconds: Callable[[], float]) -> None:
        self.clock = clock
        self.slots = Bulkhead(BulkheadConfig(max_concurrent=slots), clock=clock)
        self.seconds = seconds
        self.served = 0

    async def __call__(self, _request: object) -> None:
        await self.slots.acquire()
        try:
            await self.clock.sleep(self.seconds())
        finally:
            self.slots.release()
        self.served += 1


@asynccontextmanager
async def callers(
    count: int, bulkhead: AdaptiveBulkhead, server: Send[object, None]
) -> AsyncIterator[None]:
    """Keep `count` calls on their way for as long as the block lasts."""
    send = stack(server, AdaptiveBulkheadLayer(bulkhead), semantics=PLAIN_CALL)

    async def call_for_ever() -> None:
        while True:
            await send("x")

    tasks = [asyncio.create_task(call_for_ever()) for _ in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert bulkhead.snapshot()["in_flight"] == bulkhead.snapshot()["waiting"] == 0


async def limits(clock: FakeClock, bulkhead: Bulkhead, seconds: int) -> list[int]:
    """Return the limit after each of the next `seconds`."""
    seen: list[int] = []
    for _ in range(seconds):
        await clock.advance(1.0)
        seen.append(bulkhead.limit)
    return seen


def near(slots: int, seen: list[int]) -> bool:
    """Say whether four limits in five are from C to 1.5 C + 4 or a tenth above that.

    The fifth is for looks at the unloaded latency, and for what follows on them.
    """
    good = [slots <= limit <= 1.1 * (1.5 * slots + 4) for limit in seen]
    return statistics.fmean(good) >= 0.8


@pytest.mark.parametrize("slots", [3, 10, 30])
async def test_the_limit_settles_near_what_the_service_can_serve_at_once(slots: int) -> None:
    clock = FakeClock()
    bulkhead, server = AdaptiveBulkhead(clock=clock), Server(clock, slots, lambda: 1.0)
    async with callers(100, bulkhead, server):
        await clock.advance(900.0 / slots)
        served = server.served
        assert near(slots, await limits(clock, bulkhead, 120))
        assert server.served - served > 0.95 * 120 * slots


async def test_the_limit_follows_when_the_service_can_serve_more_or_less() -> None:
    clock = FakeClock()
    bulkhead, server = AdaptiveBulkhead(clock=clock), Server(clock, 10, lambda: 1.0)
    async with callers(100, bulkhead, server):
        for slots in (10, 30, 5):
            server.slots.resize(slots)
            await clock.advance(120.0)
            assert near(slots, await limits(clock, bulkhead, 60))


async def test_latency_that_does_not_depend_on_load_lets_the_limit_grow_to_its_bound() -> None:
    clock = FakeClock()
    bulkhead = AdaptiveBulkhead(AdaptiveBulkheadConfig(max_concurrent=60), clock=clock)
    async with callers(100, bulkhead, Server(clock, 100, lambda: 1.0)):
        await clock.advance(60.0)
        seen = await limits(clock, bulkhead, 120)
        assert statistics.median(seen) == max(seen) == 60


async def test_latency_that_varies_by_itself_does_not_starve_the_service() -> None:
    clock, rng = FakeClock(), random.Random(7)
    bulkhead = AdaptiveBulkhead(clock=clock)
    server = Server(clock, 10, lambda: rng.expovariate(1.0))
    async with callers(100, bulkhead, server):
        await clock.advance(200.0)
        assert server.served > 0.9 * 200 * 10
        assert 10 <= statistics.median(await limits(clock, bulkhead, 100)) <= 1.5 * 19


async def test_a_service_that_became_slower_for_everybody_is_not_held_down_for_ever() -> None:
    clock, seconds = FakeClock(), 1.0
    bulkhead = AdaptiveBulkhead(clock=clock)
    server = Server(clock, 20, lambda: seconds)
    async with callers(100, bulkhead, server):
        await clock.advance(60.0)
        seconds = 4.0
        await clock.advance(40.0)
        assert bulkhead.limit < 20
        await clock.advance(800.0)
        assert near(20, await limits(clock, bulkhead, 60))


def outcome(
    bulkhead: AdaptiveBulkhead, verdict: Verdict, clock: FakeClock, latency: float, used: int
) -> None:
    """Play a call that began when `used` slots were taken, and ends now."""
    started = clock.now()
    clock._now += latency
    bulkhead.record(verdict, started=started, in_flight=used)


def settled(clock: FakeClock) -> AdaptiveBulkhead:
    """Return a bulkhead of 20 that knows an unloaded latency of one second."""
    bulkhead = AdaptiveBulkhead(clock=clock)
    assert bulkhead.limit == 5
    for _ in range(10):
        outcome(bulkhead, Verdict.OK, clock, 1.0, 5)
    assert (bulkhead.limit, bulkhead.snapshot()["unloaded_latency"]) == (20, 1.0)
    return bulkhead


@pytest.mark.parametrize(
    ("used", "latency", "limit"), [(9, 1.0, 20), (10, 1.0, 22), (10, 30.0, 17)]
)
def test_the_limit_grows_only_if_half_of_it_was_used(used: int, latency: float, limit: int) -> None:
    clock = FakeClock()
    bulkhead = settled(clock)
    for _ in range(10):
        assert bulkhead.limit == 20
        outcome(bulkhead, Verdict.OK, clock, latency, used)
    assert bulkhead.limit == limit


def test_calls_that_began_under_another_limit_do_not_count() -> None:
    clock = FakeClock()
    bulkhead = settled(clock)
    before = clock.now() - 0.5
    for verdict in (Verdict.OK, Verdict.BUSY):
        for _ in range(30):
            bulkhead.record(verdict, started=before, in_flight=20)
    assert (bulkhead.limit, bulkhead.snapshot()["dropped_count"]) == (20, 0)


@pytest.mark.parametrize(
    ("verdict", "latency", "limit"),
    [
        (Verdict.BUSY, 0.1, 15),
        (Verdict.FAILED, 1.6, 15),
        (Verdict.FAILED, 1.4, 20),
        (Verdict.VOID, 9.0, 20),
    ],
)
def test_refusals_and_long_failures_shrink_the_limit_once_a_round_and_nothing_else_does(
    verdict: Verdict, latency: float, limit: int
) -> None:
    clock = FakeClock()
    bulkhead = settled(clock)
    started = clock.now()
    clock._now += latency
    for _ in range(5):
        bulkhead.record(verdict, started=started, in_flight=20)
    assert bulkhead.limit == limit
    assert bulkhead.snapshot()["dropped_count"] == (limit < 20)


def test_unloaded_latency_falls_at_once_and_rises_with_what_calls_take_at_half_load() -> None:
    clock = FakeClock()
    bulkhead = settled(clock)
    for _ in range(20):
        outcome(bulkhead, Verdict.OK, clock, 0.4, 20)
    assert bulkhead.snapshot()["unloaded_latency"] == pytest.approx(0.95)
    for _ in range(3000):
        outcome(bulkhead, Verdict.OK, clock, 1.2, 2)
    assert bulkhead.snapshot()["unloaded_latency"] == pytest.approx(1.2, abs=0.01)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    outcomes=st.lists(
        st.tuples(
            st.sampled_from(Verdict), st.sampled_from([0.0, 0.01, 1.0, 50.0]), st.integers(1, 40)
        ),
        max_size=40,
    )
)
def test_the_limit_stays_within_its_bounds_whatever_happens(
    outcomes: list[tuple[Verdict, float, int]],
) -> None:
    clock = FakeClock()
    config = AdaptiveBulkheadConfig(initial_concurrent=6, min_concurrent=3, max_concurrent=12)
    bulkhead = AdaptiveBulkhead(config, clock=clock)
    for verdict, latency, times in outcomes:
        for _ in range(times):
            outcome(bulkhead, verdict, clock, latency, bulkhead.limit)
            assert 3 <= bulkhead.limit <= 12


async def test_timeouts_bring_the_limit_down_and_leak_no_slot() -> None:
    clock = FakeClock()
    bulkhead = AdaptiveBulkhead(clock=clock)

    async def hang(_request: str) -> None:
        await asyncio.Event().wait()

    layers = AdaptiveBulkheadLayer(bulkhead), AttemptTimeoutLayer(2.0, clock=clock)
    send = stack(hang, *layers, semantics=PLAIN_CALL)
    tasks = [asyncio.ensure_future(send("x")) for _ in range(40)]
    await clock.advance(90.0)
    assert all(isinstance(task.exception(), TimeoutError) for task in tasks)
    assert bulkhead.snapshot()["in_flight"] == 0
    assert bulkhead.limit == 1


async def test_a_call_is_refused_if_no_slot_comes_free_in_time() -> None:
    clock = FakeClock()
    config = AdaptiveBulkheadConfig(initial_concurrent=1, max_wait=2.0)
    bulkhead = AdaptiveBulkhead(config, clock=clock)
    server = Server(clock, 1, lambda: 5.0)
    send = stack(server, AdaptiveBulkheadLayer(bulkhead), semantics=PLAIN_CALL)
    tasks = [asyncio.ensure_future(send("x")) for _ in range(2)]
    await clock.advance(5.0)
    assert [type(task.exception()) for task in tasks] == [type(None), BulkheadFullError]
    assert bulkhead.in_flight == 0


async def test_the_slot_is_held_until_the_answer_is_over_and_its_latency_is_what_counts() -> None:
    clock = FakeClock()
    bulkhead = AdaptiveBulkhead(clock=clock)
    endings: list[Settle] = []

    class Streaming(PlainCall):
        def watch(self, response: str, settle: Settle) -> str:
            endings.append(settle)
            return response

    async def answer(request: str) -> str:
        return request

    send = stack(answer, AdaptiveBulkheadLayer(bulkhead), semantics=Streaming())
    for _ in range(10):
        await send("x")
        assert bulkhead.in_flight == 1
        await clock.advance(3.0)
        endings.pop()(Verdict.OK)
        assert bulkhead.in_flight == 0
    assert bulkhead.snapshot()["unloaded_latency"] == pytest.approx(3.0)


async def test_fewer_slots_than_calls_in_flight_disturb_nobody_and_admit_nobody() -> None:
    bulkhead = Bulkhead(BulkheadConfig(max_concurrent=4), clock=FakeClock())
    for _ in range(4):
        assert bulkhead.try_acquire()
    waiter = asyncio.create_task(bulkhead.acquire())
    bulkhead.resize(2)
    for in_flight in (3, 2):
        bulkhead.release()
        await asyncio.sleep(0)
        assert (waiter.done(), bulkhead.in_flight) == (False, in_flight)
        assert not bulkhead.try_acquire()
    bulkhead.release()
    await waiter
    assert (bulkhead.in_flight, bulkhead.snapshot()["max_concurrent"]) == (2, 2)


async def test_more_slots_go_to_the_line_at_once_and_in_order() -> None:
    clock = FakeClock()
    bulkhead = Bulkhead(BulkheadConfig(max_concurrent=1), clock=clock)
    await bulkhead.acquire()
    waiters = [asyncio.create_task(bulkhead.acquire(max_wait=9.0)) for _ in range(3)]
    await clock.advance(0.0)
    bulkhead.resize(3)
    await clock.advance(0.0)
    assert [waiter.done() for waiter in waiters] == [True, True, False]
    await clock.advance(9.0)
    assert isinstance(waiters[2].exception(), BulkheadFullError)
    with pytest.raises(ConfigurationError):
        bulkhead.resize(0)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_no_slot_is_leaked_or_given_twice_while_the_size_changes(seed: int) -> None:
    rng = random.Random(seed)

    async def run() -> None:
        clock = FakeClock()
        bulkhead = Bulkhead(BulkheadConfig(max_concurrent=3), clock=clock)
        running = 0

        async def call() -> None:
            nonlocal running
            await bulkhead.acquire(max_wait=rng.choice([None, 0.5]))
            running += 1
            try:
                await clock.sleep(rng.random())
            finally:
                running -= 1
                bulkhead.release()

        tasks: list[asyncio.Task[None]] = []
        for _ in range(30):
            tasks += [asyncio.create_task(call()) for _ in range(rng.randrange(4))]
            bulkhead.resize(rng.randint(1, 6))
            await clock.advance(rng.random() * 0.5)
            assert running == bulkhead.in_flight <= 6
            if tasks and rng.random() < 0.4:
                rng.choice(tasks).cancel()
        await clock.advance(60.0)
        assert all(task.done() for task in tasks)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} <= {
            type(None), BulkheadFullError, asyncio.CancelledError
        }  # fmt: skip
        assert (bulkhead.in_flight, bulkhead.snapshot()["waiting"], clock.pending) == (0, 0, 0)

    asyncio.run(run())


def test_the_config_says_what_it_does_not_accept_and_builds_what_it_describes() -> None:
    with pytest.raises(ValidationError, match="min_concurrent"):
        AdaptiveBulkheadConfig(min_concurrent=30)
    with pytest.raises(ValidationError, match="min_concurrent"):
        AdaptiveBulkheadConfig(max_concurrent=10)
    built = AdaptiveBulkheadConfig(max_queue=7, max_wait=2.0).build()
    assert (built.config.max_queue, built.config.max_wait) == (7, 2.0)

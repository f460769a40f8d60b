import asyncio
import gc
import random
from contextvars import ContextVar
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.infrastructure.resilience import (
    Event,
    FlightJoined,
    Listeners,
    ServiceError,
    deadline,
    remaining_time,
    trace_call,
)
from shared.infrastructure.resilience.single_flight import SingleFlight
from shared.infrastructure.testing import FakeClock


class Work:
    """A factory whose computations end only when told to."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.running: list[asyncio.Future[Any]] = []

    async def __call__(self) -> Any:
        self.started += 1
        end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.running.append(end)
        try:
            return await end
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running.remove(end)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def waiting(flights: SingleFlight[str, Any], work: Work, count: int) -> list[Any]:
    callers = [asyncio.ensure_future(flights.do("k", work)) for _ in range(count)]
    await turns()
    return callers


async def test_callers_of_one_key_share_one_computation_and_its_very_result() -> None:
    flights, work, result = SingleFlight[str, Any](), Work(), object()
    callers = await waiting(flights, work, 3)
    assert (work.started, len(flights)) == (1, 1)
    work.running[0].set_result(result)
    assert [await caller is result for caller in callers] == [True] * 3
    assert len(flights) == 0


async def test_different_keys_are_computed_side_by_side() -> None:
    flights, work = SingleFlight[str, Any](), Work()
    callers = [asyncio.ensure_future(flights.do(key, work)) for key in "ab"]
    await turns()
    for number, end in enumerate(list(work.running)):
        end.set_result(number)
    assert await asyncio.gather(*callers) == [0, 1]


@pytest.mark.parametrize("leaver", [0, 1, 2])
async def test_a_cancelled_caller_does_not_take_the_others_along(leaver: int) -> None:
    flights, work = SingleFlight[str, Any](), Work()
    callers = await waiting(flights, work, 3)
    callers[leaver].cancel()
    await turns()
    assert (callers.pop(leaver).cancelled(), work.cancelled) == (True, 0)
    work.running[0].set_result("done")
    assert await asyncio.gather(*callers) == ["done", "done"]


async def test_the_computation_is_cancelled_when_the_last_caller_leaves() -> None:
    flights, work = SingleFlight[str, Any](), Work()
    callers = await waiting(flights, work, 2)
    for caller in callers:
        assert work.cancelled == 0
        caller.cancel()
        await turns()
    assert (work.cancelled, len(flights), flights._tasks) == (1, 0, set())


async def test_who_comes_while_a_deserted_computation_dies_gets_a_new_one() -> None:
    async def dies_slowly() -> str:
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            await turns(20)

    async def other() -> str:
        return "new"

    flights = SingleFlight[str, str]()
    deserter = asyncio.ensure_future(flights.do("k", dies_slowly))
    await turns()
    deserter.cancel()
    await turns(3)
    newcomer = asyncio.ensure_future(flights.do("k", other))
    await turns(2)
    assert len(flights._tasks) == 2
    assert await newcomer == "new"
    await turns(30)
    assert flights._tasks == set()


async def test_the_end_of_an_old_computation_leaves_its_successor_alone() -> None:
    flights, work = SingleFlight[str, Any](), Work()

    async def dies_slowly() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await turns(10)

    deserter = asyncio.ensure_future(flights.do("k", dies_slowly))
    await turns()
    deserter.cancel()
    callers = await waiting(flights, work, 1)
    await turns(20)
    callers += await waiting(flights, work, 1)
    assert work.started == 1
    work.running[0].set_result("shared")
    assert await asyncio.gather(*callers) == ["shared", "shared"]


async def test_an_error_reaches_all_who_wait_and_is_forgotten() -> None:
    flights, work = SingleFlight[str, Any](), Work()
    callers = await waiting(flights, work, 2)
    error = ValueError("broken")
    work.running[0].set_exception(error)
    assert await asyncio.gather(*callers, return_exceptions=True) == [error, error]
    callers = await waiting(flights, work, 1)
    work.running[0].set_result("fine")
    assert await callers[0] == "fine"


async def test_a_result_is_not_kept_for_who_comes_in_the_very_turn_it_is_ready() -> None:
    flights, started = SingleFlight[str, int](), 0

    async def count() -> int:
        nonlocal started
        started += 1
        if started == 1:
            newcomers.append(asyncio.ensure_future(flights.do("k", count)))
        return started

    newcomers: list[asyncio.Future[int]] = []
    assert await flights.do("k", count) == 1
    assert await newcomers[0] == 2


async def test_the_deadline_and_context_of_a_caller_stay_his_own() -> None:
    mark: ContextVar[str] = ContextVar("mark", default="nobody")
    mark.set("owner")
    flights, clock = SingleFlight[str, Any](), FakeClock()

    async def look() -> tuple[str, float | None]:
        return mark.get(), remaining_time()

    async def call() -> Any:
        mark.set("caller")
        async with deadline(1.0, clock=clock):
            return await flights.do("k", look)

    assert await asyncio.create_task(call()) == ("owner", None)


async def test_the_error_of_a_computation_nobody_waits_for_is_read_by_its_owner() -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def breaks_when_cancelled() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            raise ValueError("broken")

    flights = SingleFlight[str, None]()
    caller = asyncio.ensure_future(flights.do("k", breaks_when_cancelled))
    await turns()
    caller.cancel()
    await turns()
    assert flights._tasks == set()
    del caller
    gc.collect()
    assert complaints == []


async def test_who_joins_is_told_and_counted() -> None:
    told: list[Event] = []
    flights = SingleFlight[str, Any]("answers", listeners=Listeners([told.append]))
    work = Work()
    callers = await waiting(flights, work, 3)
    assert told == [FlightJoined("answers", 2), FlightJoined("answers", 3)]
    assert flights.snapshot() == {"in_flight": 1, "started_count": 1, "joined_count": 2}
    work.running[0].set_result("fine")
    await asyncio.gather(*callers)
    assert flights.snapshot() == {"in_flight": 0, "started_count": 1, "joined_count": 2}


async def test_a_computation_is_traced_on_its_own_and_its_error_has_that_trace() -> None:
    async def fail() -> None:
        raise ServiceError("down")

    with trace_call():
        flights = SingleFlight[str, None]()
    with trace_call() as own, pytest.raises(ServiceError) as caught:
        await flights.do("k", fail)
    assert caught.value.trace is not None
    assert caught.value.trace is not own
    assert caught.value.trace.outcome is not None


@given(seed=st.integers(0, 2**32), steps=st.integers(5, 60))
@settings(deadline=None, max_examples=60)
def test_any_schedule_serves_who_stays_and_computes_only_while_somebody_waits(
    seed: int, steps: int
) -> None:
    asyncio.run(_random_schedule(random.Random(seed), steps))


async def _random_schedule(rng: random.Random, steps: int) -> None:
    flights = SingleFlight[str, Any]()
    works = {key: Work() for key in "ab"}
    staying: list[tuple[asyncio.Future[Any], str]] = []
    leaving: list[asyncio.Future[Any]] = []

    async def settled() -> None:
        await turns(8)
        staying[:] = [(caller, key) for caller, key in staying if not caller.done()]
        waited_for = {key for _, key in staying}
        assert {key for key, work in works.items() if work.running} == waited_for
        assert all(len(work.running) <= 1 for work in works.values())
        assert len(flights) == len(waited_for)

    for _ in range(steps):
        key = rng.choice("ab")
        action = rng.random()
        if action < 0.5:
            staying.append((asyncio.ensure_future(flights.do(key, works[key])), key))
        elif action < 0.8 and staying:
            caller, _ = staying.pop(rng.randrange(len(staying)))
            caller.cancel()
            leaving.append(caller)
        else:
            await settled()
            for end in works[key].running:
                end.set_result(f"{key}!")
            served = [caller for caller, of in staying if of == key]
            await turns(8)
            assert all(caller.result() == f"{key}!" for caller in served)
        if rng.random() < 0.5:
            await settled()
    for caller, _ in staying:
        caller.cancel()
    staying.clear()
    await settled()
    assert all(caller.done() for caller in leaving)
    assert flights._tasks == set()

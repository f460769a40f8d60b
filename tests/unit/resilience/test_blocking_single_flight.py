import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.infrastructure.resilience import (
    BulkheadConfig,
    ConfigurationError,
    DeadlineExceededError,
)
from shared.infrastructure.resilience.blocking import (
    BlockingGuard,
    BlockingKeyed,
    BlockingSingleFlight,
    blocking_deadline,
)
from tests.unit.resilience.fake_threads import FakeEvent, FakeThreads


class Slow:
    """A computation that ends when its gate opens."""

    def __init__(self, clock: FakeThreads, error: BaseException | None = None) -> None:
        self.gates: list[FakeEvent] = []
        self._clock = clock
        self._error = error

    def __call__(self) -> object:
        self.gates.append(self._clock.event())
        self.gates[-1].wait()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return object()


def test_threads_that_ask_for_the_same_at_the_same_time_share_one_computation() -> None:
    clock = FakeThreads()
    flights = BlockingSingleFlight[str, object](clock=clock)
    slow = Slow(clock)
    same = [clock.start(flights.do, "key", slow) for _ in range(4)]
    other = clock.start(flights.do, "other", object)
    assert len(slow.gates) == len(flights) == 1
    slow.gates[0].set()
    clock.advance(0.0)
    assert len({call.result(0) for call in same}) == 1
    assert other.result(0) is not same[0].result(0)
    assert len(flights) == 0


def test_whoever_comes_after_the_end_starts_anew() -> None:
    flights = BlockingSingleFlight[str, object]()
    first = flights.do("key", object)
    assert flights.do("key", object) is not first


def test_all_who_wait_get_the_error() -> None:
    clock = FakeThreads()
    flights = BlockingSingleFlight[str, object](clock=clock)
    slow = Slow(clock, OSError("down"))
    calls = [clock.start(flights.do, "key", slow) for _ in range(3)]
    slow.gates[0].set()
    clock.advance(0.0)
    assert [str(call.exception(0)) for call in calls] == ["down"] * 3
    assert len(slow.gates) == 1


def test_another_thread_computes_if_the_first_is_interrupted() -> None:
    clock = FakeThreads()
    flights = BlockingSingleFlight[str, object](clock=clock)
    slow = Slow(clock, KeyboardInterrupt())
    first, *others = [clock.start(flights.do, "key", slow) for _ in range(3)]
    slow.gates[0].set()
    clock.advance(0.0)
    assert isinstance(first.exception(0), KeyboardInterrupt)
    assert len(slow.gates) == 2
    slow.gates[1].set()
    clock.advance(0.0)
    assert others[0].result(0) is others[1].result(0)


def test_nobody_waits_longer_than_the_deadline() -> None:
    clock = FakeThreads()
    flights = BlockingSingleFlight[str, object](clock=clock)

    def within(seconds: float) -> object:
        with blocking_deadline(seconds, clock=clock):
            return flights.do("key", object)

    slow = Slow(clock)
    first = clock.start(flights.do, "key", slow)
    with pytest.raises(DeadlineExceededError):
        clock.run(within, 2.0)
    slow.gates[0].set()
    clock.advance(0.0)
    assert first.exception(0) is None


def test_a_computation_that_waits_for_itself_is_a_mistake() -> None:
    flights = BlockingSingleFlight[str, object]()
    with pytest.raises(ConfigurationError, match="waits for itself"):
        flights.do("key", lambda: flights.do("key", object))
    assert len(flights) == 0


async def test_a_wait_that_holds_up_an_event_loop_is_warned_of() -> None:
    flights = BlockingSingleFlight[str, str]()
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        go_on.wait()
        return "done"

    first = asyncio.create_task(asyncio.to_thread(flights.do, "key", slow))
    await asyncio.to_thread(begun.wait)
    threading.Timer(0.01, go_on.set).start()
    with pytest.warns(RuntimeWarning, match="asyncio"):
        assert flights.do("key", str) == "done"
    assert await first == "done"


def test_a_value_is_built_once_however_many_threads_ask() -> None:
    built: list[object] = []
    begin = threading.Barrier(8)

    def build(key: object) -> BlockingGuard:
        built.append(key)
        time.sleep(0)  # lets another thread in, if there is nothing to stop it
        return BlockingGuard(str(key), bulkhead=BulkheadConfig(max_concurrent=1))

    guards = BlockingKeyed(build)

    def ask(_number: int) -> list[BlockingGuard]:
        begin.wait()
        return [guards.get(key) for key in range(50)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert built == list(range(50))
    assert all(answer == answers[0] for answer in answers)
    assert list(guards.snapshot()) == list(range(50))


def test_the_least_recent_value_goes_and_one_can_be_discarded() -> None:
    numbers = BlockingKeyed(lambda _key: object(), max_keys=2)
    first = numbers.get("a")
    numbers.get("b")
    numbers.discard("b")
    assert numbers.get("a") is first
    numbers.get("b")
    numbers.get("c")
    assert "a" not in numbers

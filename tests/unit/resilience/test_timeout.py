import asyncio
import math
from collections.abc import Callable

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    AttemptTimedOut,
    AttemptTimeoutError,
    AttemptTimeoutLayer,
    ConfigurationError,
    DeadlineExceeded,
    DeadlineExceededError,
    DeadlineLayer,
    Event,
    Listeners,
    RetryConfig,
    RetryLayer,
    deadline,
    remaining_time,
    stack,
)
from shared.infrastructure.testing import FakeClock


async def hang(_request: str) -> str:
    return await asyncio.get_running_loop().create_future()


async def test_the_deadline_bounds_attempts_and_waits_together() -> None:
    clock = FakeClock()
    attempts: list[float] = []

    async def fail_slowly(_request: str) -> str:
        attempts.append(clock.now())
        await clock.sleep(3.0)
        raise ValueError("down")

    send = stack(
        fail_slowly,
        DeadlineLayer(10.0, clock=clock),
        RetryLayer(RetryConfig(max_retries=9, base_delay=1.0, jitter=False), clock=clock),
        semantics=PLAIN_CALL,
    )
    task = asyncio.ensure_future(send("x"))
    await clock.advance(10.0)
    with pytest.raises(DeadlineExceededError):
        await task
    assert len(attempts) == 3
    assert clock.pending == 0


async def test_an_attempt_that_takes_too_long_is_retried() -> None:
    clock = FakeClock()
    attempts = 0

    async def slow_once(_request: str) -> str:
        nonlocal attempts
        attempts += 1
        return await hang("x") if attempts == 1 else "ok"

    send = stack(
        slow_once,
        RetryLayer(RetryConfig(base_delay=0.0), clock=clock),
        AttemptTimeoutLayer(2.0, clock=clock),
        semantics=PLAIN_CALL,
    )
    task = asyncio.ensure_future(send("x"))
    await clock.advance(2.0)
    assert await task == "ok"


async def test_a_cancellation_from_outside_is_not_taken_for_a_timeout() -> None:
    clock = FakeClock()
    send = stack(hang, AttemptTimeoutLayer(2.0, clock=clock), semantics=PLAIN_CALL)
    task = asyncio.ensure_future(send("x"))
    await clock.advance(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.pending == 0


async def test_a_cancellation_that_coincides_with_the_timeout_wins() -> None:
    clock = FakeClock()
    send = stack(hang, AttemptTimeoutLayer(2.0, clock=clock), semantics=PLAIN_CALL)
    task = asyncio.ensure_future(send("x"))
    await clock.advance(1.0)
    expire = clock._timers[0][2].callback
    assert expire is not None
    expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_nested_deadline_can_only_shorten() -> None:
    clock = FakeClock()
    assert remaining_time() is None
    async with deadline(10.0, clock=clock):
        async with deadline(60.0, clock=clock):
            assert remaining_time() == pytest.approx(10.0)
        async with deadline(3.0, clock=clock):
            assert remaining_time() == pytest.approx(3.0)
        assert remaining_time() == pytest.approx(10.0)
    assert remaining_time() is None


async def test_a_timeout_error_names_its_kind() -> None:
    clock = FakeClock()

    async def call() -> None:
        async with deadline(1.0, clock=clock):
            await hang("x")

    task = asyncio.ensure_future(call())
    await clock.advance(1.0)
    with pytest.raises(TimeoutError) as caught:
        await task
    assert isinstance(caught.value, DeadlineExceededError)
    assert not isinstance(caught.value, AttemptTimeoutError)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("limit", [deadline, DeadlineLayer, AttemptTimeoutLayer])
def test_a_time_limit_that_is_none_is_refused_when_it_is_set(
    limit: Callable[[float], object], seconds: float
) -> None:
    with pytest.raises(ConfigurationError, match="finite number of seconds above 0"):
        limit(seconds)


async def test_deadlines_on_two_clocks_are_compared_by_what_is_left() -> None:
    early, late = FakeClock(now=10.0), FakeClock(now=5000.0)
    async with deadline(10.0, clock=early), deadline(3.0, clock=late):
        assert remaining_time() == pytest.approx(3.0)
    async with deadline(3.0, clock=late), deadline(10.0, clock=early):
        assert remaining_time() == pytest.approx(3.0)


async def test_a_deadline_that_could_not_begin_leaves_none_behind() -> None:
    left: list[object] = []

    def outside_of_any_task() -> None:
        with pytest.raises(ConfigurationError, match="inside an asyncio task"):
            deadline(1.0).__aenter__().send(None)
        left.append(remaining_time())

    asyncio.get_running_loop().call_soon(outside_of_any_task)
    await asyncio.sleep(0)
    assert left == [None]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (DeadlineLayer, DeadlineExceeded("llm", 2.0)),
        (AttemptTimeoutLayer, AttemptTimedOut("llm", 2.0)),
    ],
)
async def test_whoever_listens_is_told_once_when_time_is_up(
    layer: Callable[..., DeadlineLayer | AttemptTimeoutLayer], expected: Event
) -> None:
    clock = FakeClock()
    told: list[Event] = []
    outer = layer(9.0, name="outer", clock=clock, listeners=Listeners([told.append]))
    limit = layer(2.0, name="llm", clock=clock, listeners=Listeners([told.append]))
    send = stack(hang, outer, limit, semantics=PLAIN_CALL)
    late = asyncio.ensure_future(send("x"))
    await clock.advance(1.0)
    assert told == []
    await clock.advance(1.0)
    with pytest.raises(TimeoutError):
        await late
    assert told == [expected]
    cancelled = asyncio.ensure_future(send("x"))
    await clock.advance(1.0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert told == [expected]

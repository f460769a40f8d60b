import asyncio

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    AttemptTimeoutError,
    AttemptTimeoutLayer,
    ConfigurationError,
    DeadlineExceededError,
    DeadlineLayer,
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


def test_a_time_limit_of_zero_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError):
        deadline(0.0)

"""Time limits inside a clean-up, and what they make of waits."""

import asyncio

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    AttemptTimeoutError,
    AttemptTimeoutLayer,
    DeadlineExceededError,
    DeadlineLayer,
    Event,
    Listeners,
    deadline,
    stack,
)
from shared.infrastructure.resilience.timeout import within_deadline
from shared.infrastructure.testing import FakeClock


async def test_a_limit_in_the_clean_up_of_a_cancelled_task_is_still_a_timeout() -> None:
    clock = FakeClock()
    ends: list[str] = []

    async def work() -> None:
        try:
            await clock.sleep(100.0)
        finally:
            try:
                async with deadline(5.0, clock=clock):
                    await clock.sleep(50.0)
            except DeadlineExceededError:
                ends.append("timed out")

    task = asyncio.create_task(work())
    await clock.advance(1.0)
    task.cancel()
    await clock.advance(5.0)
    assert ends == ["timed out"]
    assert task.cancelled()


async def test_a_wait_is_cut_down_to_what_the_deadline_leaves_of_it() -> None:
    clock = FakeClock()
    assert within_deadline(None) is None
    assert within_deadline(7.0) == 7.0
    async with deadline(5.0, clock=clock):
        assert within_deadline(None) == 5.0
        assert within_deadline(7.0) == 5.0
        assert within_deadline(2.0) == 2.0
        clock.stall(4.0)
        assert within_deadline(2.0) == 1.0


async def test_layers_without_a_name_speak_of_the_service() -> None:
    clock = FakeClock()
    told: list[Event] = []
    listeners = Listeners([told.append])

    async def hang(_request: str) -> None:
        await clock.sleep(100.0)

    layers = {
        DeadlineLayer(5.0, clock=clock, listeners=listeners): DeadlineExceededError,
        AttemptTimeoutLayer(5.0, clock=clock, listeners=listeners): AttemptTimeoutError,
    }
    for layer, error in layers.items():
        call = asyncio.ensure_future(stack(hang, layer, semantics=PLAIN_CALL)("x"))
        await clock.advance(5.0)
        with pytest.raises(error):
            await call
    assert [event.service for event in told] == ["service", "service"]

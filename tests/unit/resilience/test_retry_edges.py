"""Retry at the very waits where it gives up, and the reasons it tells."""

import asyncio
from typing import Any

import pytest
import tenacity

from shared.infrastructure.resilience import (
    Event,
    Listeners,
    RetryConfig,
    RetryLayer,
    ServiceError,
    Verdict,
    deadline,
    stack,
)
from shared.infrastructure.resilience.events import RetryGivenUp, RetryScheduled
from shared.infrastructure.resilience.layer import PlainCall
from shared.infrastructure.testing import FakeClock, ScriptedSend


class Semantics(PlainCall):
    """An answer may say nothing."""

    def judge(self, outcome: object) -> Verdict:
        return Verdict.VOID if outcome == "void" else super().judge(outcome)


class Retrying:
    """A stack over a script, and what its retry layer told."""

    def __init__(self, outcomes: list[Any], config: RetryConfig, **options: Any) -> None:
        self.clock = FakeClock()
        self.told: list[Event] = []
        self.script = ScriptedSend(outcomes)
        layer = RetryLayer(
            config, clock=self.clock, listeners=Listeners([self.told.append]), **options
        )
        self.send = stack(self.script, layer, semantics=Semantics())

    async def call(self) -> Any:
        task = asyncio.ensure_future(self.send("x"))
        await self.clock.advance(1000.0)
        return (await asyncio.gather(task, return_exceptions=True))[0]

    def reasons(self, kind: type[Event]) -> list[str]:
        return [getattr(event, "reason", "") for event in self.told if isinstance(event, kind)]


def asks_for(seconds: float) -> ServiceError:
    return ServiceError("busy", retry_after=seconds)


STEADY = RetryConfig(jitter=False, base_delay=2.0)


async def test_an_answer_that_says_nothing_is_returned_as_it_is() -> None:
    retrying = Retrying(["void"], STEADY)
    assert await retrying.call() == "void"
    assert retrying.told == []


async def test_a_delay_says_what_it_goes_by() -> None:
    for wish, reason in [(1.0, "backoff"), (2.0, "backoff"), (3.0, "retry_after")]:
        retrying = Retrying([asks_for(wish), "ok"], STEADY)
        assert await retrying.call() == "ok"
        assert retrying.reasons(RetryScheduled) == [reason]
        assert {event.service for event in retrying.told} == {"service"}


async def test_elsewhere_nobody_waits_however_long_a_wait_was_asked_for() -> None:
    retrying = Retrying([asks_for(1e6), "ok"], STEADY, at_once=lambda _request: True)
    assert await retrying.call() == "ok"
    assert retrying.reasons(RetryScheduled) == ["at_once"]


async def test_a_wait_as_long_as_allowed_is_waited_and_a_longer_one_is_not() -> None:
    config = RetryConfig(jitter=False, base_delay=0.0, max_retry_after=0.5)
    assert await Retrying([asks_for(0.5), "ok"], config).call() == "ok"
    retrying = Retrying([asks_for(0.75), "ok"], config)
    error = await retrying.call()
    assert isinstance(error, ServiceError)
    assert retrying.reasons(RetryGivenUp) == ["retry_after"]
    assert len(error.__notes__) == 1


@pytest.mark.parametrize(("seconds", "requests"), [(2.0, 1), (2.5, 2)])
async def test_a_wait_that_ends_with_the_deadline_is_not_begun(
    seconds: float, requests: int
) -> None:
    retrying = Retrying([KeyError("x")], STEADY)

    async def call() -> None:
        async with deadline(seconds, clock=retrying.clock):
            await retrying.send("x")

    task = asyncio.ensure_future(call())
    await retrying.clock.advance(100.0)
    (error,) = await asyncio.gather(task, return_exceptions=True)
    assert len(retrying.script.requests) == requests
    assert isinstance(error, KeyError)
    assert retrying.reasons(RetryGivenUp) == ["deadline"]
    assert len(error.__notes__) == 1


async def test_a_stop_condition_alone_counts_time_from_the_first_attempt_and_leaves_a_note() -> (
    None
):
    config = RetryConfig(
        max_retries=9,
        jitter=False,
        base_delay=2.0,
        max_delay=2.0,
        stop=tenacity.stop_after_delay(5.0),
    )
    retrying = Retrying([KeyError("x")], config)
    error = await retrying.call()
    assert isinstance(error, KeyError)
    assert len(retrying.script.requests) == 4  # after 0, 2, 4 and 6 seconds
    assert retrying.reasons(RetryGivenUp) == ["stop"]
    assert len(error.__notes__) == 1

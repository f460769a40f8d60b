"""What a call that found no answer comes to: nothing from elsewhere hides why it went there."""

import asyncio
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.call import Outlook
from shared.infrastructure.balancing.classify import EARLIER, status_error
from shared.infrastructure.balancing.errors import (
    AuthenticationError,
    ModelNotFoundError,
    NoHostAvailableError,
)
from shared.infrastructure.http import ConnectFailedError, ReadFailedError, ReadTimeoutError
from shared.infrastructure.resilience import DeadlineExceededError, trace_call
from tests.unit.balancing.scripted_hosts import Fleet, Run, call_for, saying

RESET, REFUSED = ReadFailedError("reset"), ConnectFailedError("refused")
ONCE = {"x_should_retry": "false"}


def once(status: int) -> Any:
    return saying(status, {"message": f"status {status}"}, **ONCE)


# What the hosts say in turn, and whose word stands.
STANDING: list[tuple[list[Any], int]] = [
    ([once(503), 401], 503),
    ([once(503), 404], 503),
    ([once(503), 401, 404], 503),
    ([once(500), 403, once(503), 404], 503),
    ([401, once(503), 404], 503),
    ([401, 404], 404),
    ([404, 401], 401),
    ([once(503), 400], 400),
    ([429, 400], 400),
    ([401, 400], 400),
    ([once(503), saying(400, {"code": "context_length_exceeded"})], 400),
]


@pytest.mark.parametrize(("says", "stands"), STANDING)
async def test_the_first_real_word_stands(says: list[Any], stands: int) -> None:
    fleet = Fleet(**dict(zip("abcd", says, strict=False)))
    run = await Run(fleet).done()
    assert run.outcome.status_code == stands
    earlier = run.outcome.extensions[EARLIER]
    assert len(earlier) == len(says) - 1
    assert stands not in [error.status for error in earlier]
    assert run.outcome.json()["error"]  # its body is still there


async def test_the_others_are_told_with_their_hosts() -> None:
    run = await Run(Fleet(a=once(503), b=401, c=404)).done()
    error = status_error(run.outcome)
    assert (error.host, error.attempts) == ("a", 3)
    assert [(type(other), getattr(other, "host", None)) for other in error.earlier] == [
        (AuthenticationError, "b"),
        (ModelNotFoundError, "c"),
    ]


async def test_that_no_host_is_left_does_not_hide_what_failed() -> None:
    fleet = Fleet(a=RESET, b=200)

    def hopeful(_call: object) -> Outlook:
        fleet.disabled |= {"a", "b"}  # before the next attempt
        return Outlook(0.0, is_fresh=True)

    run = await Run(fleet, outlook=hopeful).done()
    assert isinstance(run.outcome, ReadFailedError)
    assert [type(other) for other in run.outcome.earlier] == [NoHostAvailableError]
    assert run.outcome.attempts == 1


async def test_that_there_never_was_a_host_is_said() -> None:
    fleet = Fleet(a=200)
    fleet.disabled.add("a")
    run = await Run(fleet).done()
    assert isinstance(run.outcome, NoHostAvailableError)
    assert run.outcome.attempts == 0
    assert run.told[-1].to_dict()["reason"] == "refused"


async def test_a_deadline_that_passes_below_is_not_hidden() -> None:
    run = await Run(Fleet(a=RESET, b=DeadlineExceededError("over"))).done()
    assert isinstance(run.outcome, DeadlineExceededError)
    assert run.outcome.earlier == (RESET,)


async def test_an_error_carries_the_story_of_its_call() -> None:
    fleet = Fleet(a=(1.0, ReadTimeoutError("silence")), b=500, c=ReadFailedError("reset"))
    run = await Run(fleet, call=call_for(max_attempts=3)).done()
    error = run.outcome
    assert isinstance(error, ReadFailedError)
    assert (error.host, error.attempts) == ("c", 3)
    assert [getattr(other, "host", None) for other in error.earlier] == ["a", "b"]
    assert error.trace is not None
    assert "a: ReadTimeoutError: silence" in str(error.trace)


async def test_a_trace_that_is_there_is_the_one_that_is_written() -> None:
    with trace_call() as trace:
        run = await Run(Fleet(a=500, b=200)).done()
    assert run.outcome.status_code == 200
    assert [entry.event.kind for entry in trace.entries] == [
        *("attempt_ended", "retry_scheduled", "attempt_ended")
    ]


async def test_an_error_of_before_is_none_of_an_answer() -> None:
    run = await Run(Fleet(a=500, b=200)).done()
    assert EARLIER not in run.outcome.extensions


async def test_a_response_whose_body_was_given_up_unread_stands_as_an_error() -> None:
    async def body() -> Any:
        yield b"never read"

    unread = lambda: httpx.Response(503, headers={"x-should-retry": "false"}, content=body())  # noqa: E731
    run = await Run(Fleet(a=unread, b=401)).done()
    assert (run.outcome.status, run.outcome.host, run.outcome.body) == (503, "a", "")


async def test_a_cancelled_call_is_cancelled_at_once_whatever_came_before() -> None:
    run = Run(Fleet(a=500, b=(60.0, 200)))
    task = run.start()
    await run.fleet.clock.advance(1.0)
    assert run.fleet.running == 1
    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (task.cancelled(), run.fleet.running) == (True, 0)
    assert run.fleet.verdicts == [("a", "failed"), ("b", "void")]

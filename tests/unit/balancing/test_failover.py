"""Whether and when another attempt is made: every row of the error table, on scripted hosts."""

import asyncio
import random
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.call import Outlook
from shared.infrastructure.balancing.config import BalanceConfig
from shared.infrastructure.balancing.errors import (
    FirstTokenTimeoutError,
    StreamTruncatedError,
)
from shared.infrastructure.http import (
    ConnectFailedError,
    PoolTimeoutError,
    ReadFailedError,
    ReadTimeoutError,
    ResponseTooLargeError,
    TLSFailedError,
)
from shared.infrastructure.resilience import (
    AttemptTimeoutError,
    ConfigurationError,
    DeadlineLayer,
    RetryBudget,
    RetryBudgetConfig,
    RetryConfig,
    RetryScheduled,
)
from tests.unit.balancing.scripted_hosts import Fleet, Outcome, Run, call_for, request_of, saying

ELSEWHERE: list[Any] = [
    ConnectFailedError("refused"),
    TLSFailedError("no trust"),
    ReadFailedError("reset"),
    ReadTimeoutError("silence"),
    AttemptTimeoutError("too long"),
    FirstTokenTimeoutError("nothing yet"),
    StreamTruncatedError("no end"),
    saying(429, {"code": "rate_limit_exceeded"}),
    saying(429, {"code": "insufficient_quota"}),
    saying(200, {"code": 502, "message": "in band"}),
    *(401, 402, 403, 404, 408, 429, 500, 502, 503, 504, 529),
]
FINAL: list[Any] = [
    saying(400, {"code": "context_length_exceeded"}),
    saying(400, {"code": "content_filter"}),
    *(400, 405, 409, 413, 422, 501, 505),
]


@pytest.mark.parametrize("failure", ELSEWHERE, ids=repr)
async def test_a_fresh_host_is_asked_at_once(failure: Outcome) -> None:
    run = await Run(Fleet(a=failure, b=200)).done()
    assert run.outcome.status_code == 200
    assert (run.fleet.hosts, run.took) == (["a", "b"], 0.0)
    assert run.call.answered_by is run.call.attempts[1]


@pytest.mark.parametrize("failure", FINAL, ids=repr)
async def test_what_lies_with_the_request_is_one_attempt(failure: Outcome) -> None:
    run = await Run(Fleet(a=failure, b=200)).done()
    assert run.outcome.status_code >= 400
    assert run.fleet.hosts == ["a"]


async def test_a_conflict_that_should_be_retried_is_one_that_may_be() -> None:
    conflict = lambda: httpx.Response(409, headers={"x-should-retry": "true"})  # noqa: E731
    run = await Run(Fleet(a=conflict, b=200)).done()
    assert (run.outcome.status_code, run.fleet.hosts) == (200, ["a", "b"])


SAME_HOST: list[tuple[Any, int]] = [
    (ConnectFailedError("refused"), 4),
    (ReadFailedError("reset"), 4),
    (500, 4),
    (503, 4),
    (529, 4),
    (429, 3),
    (TLSFailedError("no trust"), 1),
    (ResponseTooLargeError("too large"), 1),
    (ReadTimeoutError("silence"), 1),
    (FirstTokenTimeoutError("nothing yet"), 1),
    (401, 1),
    (403, 1),
    (404, 1),
    (PoolTimeoutError("our own"), 1),
    (lambda: httpx.Response(500, headers={"x-should-retry": "false"}), 1),
]


@pytest.mark.parametrize(("failure", "attempts"), SAME_HOST, ids=repr)
async def test_the_only_host_is_asked_again_as_often_as_its_row_says(
    failure: Outcome, attempts: int
) -> None:
    run = await Run(Fleet(a=failure)).done()
    assert run.fleet.hosts == ["a"] * attempts
    assert (run.took > 0) == (attempts > 1)


async def test_a_silent_host_is_not_asked_again_though_it_is_the_only_one_left() -> None:
    fleet = Fleet(a=(30.0, ReadTimeoutError("silence")), b=500)
    run = await Run(fleet).done()
    assert fleet.hosts == ["a", "b", "b", "b"]
    assert run.outcome.status_code == 500


async def test_hosts_get_another_turn_only_after_all_had_theirs() -> None:
    run = await Run(Fleet(a=[503, 200], b=500, c=ReadFailedError("reset"))).done()
    assert run.fleet.hosts[:3] == ["a", "b", "c"]
    assert run.fleet.sent[3] == (4.0, "a")  # the delay after a third failure, without jitter
    assert run.outcome.status_code == 200


async def test_the_wait_has_full_jitter() -> None:
    waits = set[float]()
    for _ in range(20):
        run = await Run(Fleet(a=[500, 200]), retry=RetryConfig(base_delay=8.0), rng=None).done()
        waits |= {event.delay for event in run.told if isinstance(event, RetryScheduled)}
    assert len(waits) == 20
    assert min(waits) < 4.0 < max(waits) <= 8.0


@pytest.mark.parametrize("status", [429, 503])
async def test_the_only_host_is_given_the_time_it_asks_for(status: int) -> None:
    wait = lambda: httpx.Response(status, headers={"retry-after": "7"})  # noqa: E731
    run = await Run(Fleet(a=[wait, 200])).done()
    assert run.fleet.sent == [(0.0, "a"), (7.0, "a")]


async def test_those_who_wait_for_the_same_host_do_not_come_back_all_at_once() -> None:
    wait = lambda: httpx.Response(429, headers={"retry-after": "7"})  # noqa: E731
    for retry in (RetryConfig(), RetryConfig(base_delay=0.0)):
        waits = set[float]()
        for seed in range(20):
            run = await Run(Fleet(a=[wait, 200]), retry=retry, rng=random.Random(seed)).done()
            waits |= {event.delay for event in run.told if isinstance(event, RetryScheduled)}
        assert len(waits) == 20
        assert 7.0 <= min(waits) < 7.5 < max(waits) <= 8.0


async def test_for_that_no_wait_goes_past_the_deadline_either() -> None:
    wait = lambda: httpx.Response(429, headers={"retry-after": "7"})  # noqa: E731
    for seed in range(10):
        fleet = Fleet(a=[wait, 200])
        deadline = DeadlineLayer(7.25, clock=fleet.clock)
        options: dict[str, Any] = {"retry": RetryConfig(base_delay=8.0), "layers": [deadline]}
        run = await Run(fleet, rng=random.Random(seed), **options).done()
        assert run.outcome.status_code == 200


async def test_a_wish_for_patience_is_no_reason_to_wait_while_another_host_is_free() -> None:
    wait = lambda: httpx.Response(429, headers={"retry-after": "3600"})  # noqa: E731
    run = await Run(Fleet(a=wait, b=200)).done()
    assert (run.fleet.hosts, run.took) == (["a", "b"], 0.0)


async def test_a_host_that_asks_for_too_much_is_not_waited_for() -> None:
    wait = lambda: httpx.Response(429, headers={"retry-after": "11"})  # noqa: E731
    run = await Run(Fleet(a=wait), config=BalanceConfig(max_wait=10.0)).done()
    assert (run.outcome.status_code, run.took) == (429, 0.0)
    assert run.told[-1].to_dict()["reason"] == "retry_after"


async def test_no_wait_goes_past_the_deadline() -> None:
    wait = lambda: httpx.Response(429, headers={"retry-after": "7"})  # noqa: E731
    fleet = Fleet(a=wait)
    run = await Run(fleet, layers=[DeadlineLayer(5.0, clock=fleet.clock)]).done()
    assert (run.outcome.status_code, run.took) == (429, 0.0)
    assert run.told[-1].to_dict()["reason"] == "deadline"


async def test_the_deadline_of_the_call_counts_too() -> None:
    fleet = Fleet(a=ReadFailedError("reset"))
    run = await Run(fleet, call=call_for(deadline=fleet.clock.now() + 0.5)).done()
    assert (fleet.hosts, run.took) == (["a"], 0.0)
    assert "the deadline would pass" in run.outcome.__notes__[0]


async def test_of_two_deadlines_the_sooner_counts() -> None:
    fleet = Fleet(a=ReadFailedError("reset"))
    call = call_for(deadline=fleet.clock.now() + 100.0)
    run = await Run(fleet, call=call, layers=[DeadlineLayer(0.5, clock=fleet.clock)]).done()
    assert (fleet.hosts, run.took) == (["a"], 0.0)


async def test_one_deadline_bounds_all_attempts() -> None:
    """A time limit of 30 s and two retries on silent hosts are 30 s and not 90 s."""
    silent = (20.0, ReadTimeoutError("silence"))
    fleet = Fleet(a=silent, b=silent, c=silent)
    run = await Run(fleet, layers=[DeadlineLayer(30.0, clock=fleet.clock)]).done()
    assert run.took == 30.0
    assert type(run.outcome).__name__ == "DeadlineExceededError"
    assert fleet.running == 0


async def test_a_host_that_failed_is_not_asked_again_while_a_survivor_was_not() -> None:
    """Whatever the affinity, five attempts must not all land on the host that is dead."""
    dead = ConnectFailedError("refused")
    for attempts in (2, 3, 5):
        run = await Run(Fleet(a=dead, b=200), call=call_for(max_attempts=attempts)).done()
        assert (run.fleet.hosts, run.outcome.status_code) == (["a", "b"], 200)


async def test_there_are_no_more_attempts_than_the_call_may_take() -> None:
    run = await Run(Fleet(a=500, b=500, c=500, d=200), call=call_for(max_attempts=3)).done()
    assert run.fleet.hosts == ["a", "b", "c"]
    assert run.told[-1].to_dict()["reason"] == "attempts"


async def test_without_a_retry_config_there_is_a_single_attempt() -> None:
    run = await Run(Fleet(a=500, b=200), retry=None).done()
    assert run.fleet.hosts == ["a"]


async def test_a_body_that_is_not_at_hand_is_sent_once() -> None:
    async def body() -> Any:
        yield b"{}"

    extensions = {"call": call_for()}
    request = httpx.Request("POST", "http://pool/x", content=body(), extensions=extensions)
    run = await Run(Fleet(a=500, b=200), request=request).done()
    assert run.fleet.hosts == ["a"]
    assert run.told[-1].to_dict()["reason"] == "not_repeatable"


async def test_every_response_that_is_not_handed_up_is_closed() -> None:
    made: list[httpx.Response] = []

    def failing(status: int) -> Any:
        def make() -> httpx.Response:
            made.append(httpx.Response(status, json={}))
            return made[-1]

        return make

    closed: list[httpx.Response] = []
    fleet = Fleet(a=failing(500), b=failing(503), c=200)
    run = Run(fleet)
    original = httpx.Response.aclose

    async def aclose(self: httpx.Response) -> None:
        closed.append(self)
        await original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.Response, "aclose", aclose)
        await run.done()
    assert closed == made
    assert not fleet.streams[0].is_closed
    assert run.outcome.status_code == 200


def budget(tokens: float) -> RetryBudget:
    return RetryBudget(RetryBudgetConfig(capacity=tokens, min_retries_per_second=0.0))


async def test_each_further_attempt_is_paid_for_and_a_success_pays_in() -> None:
    purse = budget(100.0)
    run = await Run(Fleet(a=500, b=429, c=200), budget=purse).done()
    assert purse.tokens == 100.0 - 10.0 - 5.0 + 1.0  # after a 429 it is cheaper
    assert run.kinds.count("budget_spent") == 2


async def test_a_spent_budget_ends_the_call_and_a_note_says_so() -> None:
    purse = budget(10.0)
    dead = ReadFailedError("reset")
    await Run(Fleet(a=dead, b=200), budget=purse).done()
    run = await Run(Fleet(a=dead, b=200), budget=purse).done()
    assert run.fleet.hosts == ["a"]
    assert "the retry budget is spent" in run.outcome.__notes__[0]


async def test_an_attempt_that_we_refuse_is_not_paid_for() -> None:
    purse = budget(100.0)
    fleet = Fleet(a=500)

    def hopeful(_call: object) -> Outlook:
        fleet.disabled.add("a")  # in the meantime
        return Outlook(1.0, is_fresh=True)

    run = await Run(fleet, budget=purse, outlook=hopeful).done()
    assert purse.tokens == 100.0
    assert run.outcome.status_code == 500


async def test_an_attempt_that_is_cancelled_while_it_waits_is_not_paid_for() -> None:
    purse = budget(100.0)
    run = Run(Fleet(a=500), budget=purse)
    task = run.start()
    await run.fleet.clock.advance(0.5)
    assert purse.tokens == 90.0
    task.cancel()
    await run.fleet.clock.advance(0.0)
    assert task.cancelled()
    assert purse.tokens == 100.0


async def test_a_restart_that_is_never_sent_is_not_paid_for() -> None:
    purse, fleet = budget(100.0), Fleet(a=500, b=200)
    run = Run(fleet, budget=purse, call=call_for())
    await fleet.send(run.request)  # at a, which fails
    assert await run.failover.pause(run.call)
    assert purse.tokens == 90.0
    fleet.disabled |= {"a", "b"}  # in the meantime
    await run.done()
    assert (purse.tokens, fleet.hosts) == (100.0, ["a"])
    fleet.disabled.clear()
    assert await run.failover.pause(run.call)
    await run.done()  # this one is sent
    assert (purse.tokens, fleet.hosts) == (91.0, ["a", "b"])


async def test_a_restart_that_is_cancelled_while_it_waits_is_not_paid_for() -> None:
    purse, fleet = budget(100.0), Fleet(a=500)
    run = Run(fleet, budget=purse, call=call_for())
    await fleet.send(run.request)
    task = asyncio.create_task(run.failover.pause(run.call))
    await fleet.clock.advance(0.5)
    assert purse.tokens == 90.0
    task.cancel()
    await fleet.clock.advance(0.0)
    assert (task.cancelled(), purse.tokens, run.call.prepaid) == (True, 100.0, [])


async def test_events_tell_the_story_of_the_call() -> None:
    run = await Run(Fleet(a=[500, 200], b=429), budget=budget(100.0)).done()
    assert run.kinds == [
        *("attempt_ended", "budget_spent", "retry_scheduled"),
        *("attempt_ended", "budget_spent", "retry_scheduled"),
        "attempt_ended",
    ]
    outcomes = [event.to_dict()["outcome"] for event in run.told[::3]]
    assert outcomes == ["a: 500", "b: 429", "a: 200"]
    assert [event.to_dict()["reason"] for event in run.told[2::3]] == ["at_once", "backoff"]


async def test_a_call_that_works_at_once_has_no_events() -> None:
    assert (await Run(Fleet(a=200)).done()).told == []


def test_delays_by_tenacity_are_refused_rather_than_forgotten() -> None:
    for retry in (RetryConfig(wait=lambda _: 1.0), RetryConfig(stop=lambda _: True)):
        with pytest.raises(ConfigurationError, match="base_delay"):
            Run(Fleet(a=200), retry=retry)


async def test_a_bug_is_raised_as_it_is() -> None:
    run = await Run(Fleet(a=500, b=KeyError("bug"))).done()
    assert isinstance(run.outcome, KeyError)


async def test_a_restart_of_a_stream_waits_as_an_attempt_would() -> None:
    fleet = Fleet(a=500, b=200)
    run, call = Run(fleet, budget=(purse := budget(20.0))), call_for(max_attempts=3)
    await fleet.send(request_of(call))  # at a, which fails
    assert await run.failover.pause(call)  # b is fresh, and no clock has to move
    call.depart("b", 0.0)
    call.end(call.attempts[-1], 0.0, None, "")
    fleet.disabled.add("b")
    task = asyncio.create_task(run.failover.pause(call))
    await fleet.clock.advance(1.9)
    assert not task.done()
    await fleet.clock.advance(0.2)
    assert await task
    assert purse.tokens == 0.0
    assert not await run.failover.pause(call)  # the budget is spent
    call.depart("a", 0.0)
    assert not await run.failover.pause(call)  # so are the attempts
    assert run.told[-1].to_dict()["reason"] == "attempts"

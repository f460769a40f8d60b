"""Other models for a call that one cannot answer, by what kept it from it."""

from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.classify import EARLIER, status_error
from shared.infrastructure.balancing.config import FallbackConfig
from shared.infrastructure.balancing.errors import (
    BadRequestError,
    ContentFilterError,
    NoHostAvailableError,
    TokenLimitError,
)
from shared.infrastructure.balancing.fallback import FALLBACK_FROM, FallbackChain
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.http import ReadFailedError
from shared.infrastructure.resilience import (
    DeadlineExceededError,
    DeadlineLayer,
    RateLimitExceededError,
)
from tests.unit.balancing.scripted_hosts import Fleet, Run, call_for, request_of, saying

TOO_LONG = saying(400, {"code": "context_length_exceeded"})
FORBIDDEN = saying(400, {"code": "content_filter"})
BROKEN = saying(500, {"message": "broken"}, x_should_retry="false")
BUSY = saying(429, {"message": "busy"}, x_should_retry="false")
EVERYTHING = FallbackConfig(
    models={"m": ["general"]},
    context_window={"m": ["large"]},
    content_filter={"m": ["lax"]},
    rate_limit={"m": ["idle"]},
)
NO_FILTER = FallbackConfig(
    models={"m": ["general"]}, context_window={"m": ["large"]}, rate_limit={"m": ["idle"]}
)


async def fall_back(
    config: FallbackConfig, *outcomes: Any, fleet: Fleet | None = None, **options: Any
) -> Run:
    """Run a call on one host that answers each model in turn."""
    fleet = fleet or Fleet(a=list(outcomes))
    layers = [*options.pop("above", ()), FallbackChain(config)]
    return await Run(fleet, layers=layers, **options).done()


CAUSES: list[tuple[Any, FallbackConfig, str | None]] = [
    (BROKEN, EVERYTHING, "general"),
    (saying(401, {}), EVERYTHING, "general"),
    (saying(404, {}), EVERYTHING, "general"),
    (saying(503, {}, x_should_retry="false"), EVERYTHING, "general"),
    (DeadlineExceededError("over"), EVERYTHING, None),
    (TOO_LONG, EVERYTHING, "large"),
    (FORBIDDEN, EVERYTHING, "lax"),
    (FORBIDDEN, NO_FILTER, None),
    (TOO_LONG, FallbackConfig(models={"m": ["general"]}), None),
    (BUSY, EVERYTHING, "idle"),
    (BUSY, FallbackConfig(models={"m": ["general"]}), "general"),
    (saying(400, {}), EVERYTHING, None),
    (saying(422, {}), EVERYTHING, None),
    (KeyError("bug"), EVERYTHING, None),
    (NoHostAvailableError({"a": "open"}), EVERYTHING, "general"),
    (NoHostAvailableError({"a": "calm"}, faults={"a": Fault.THROTTLED}), EVERYTHING, "idle"),
    (NoHostAvailableError({"a": "open"}, faults={"a": Fault.BROKEN}), EVERYTHING, "general"),
    (TokenLimitError("no room"), EVERYTHING, "idle"),
    (RateLimitExceededError("no room"), EVERYTHING, "idle"),
    (BROKEN, FallbackConfig(models={"another": ["general"]}), None),
]


@pytest.mark.parametrize(("cause", "config", "model"), CAUSES)
async def test_each_cause_has_its_chain(
    cause: Any, config: FallbackConfig, model: str | None
) -> None:
    run = await fall_back(config, cause, 200)
    assert run.fleet.models == (["m"] if model is None else ["m", model])
    answered = isinstance(run.outcome, httpx.Response) and run.outcome.status_code == 200
    assert answered is (model is not None)


async def test_models_are_tried_in_order_until_one_answers() -> None:
    config = FallbackConfig(models={"m": ["x", "y", "z"]})
    run = await fall_back(config, BROKEN, BROKEN, 200)
    assert (run.fleet.models, run.outcome.status_code) == (["m", "x", "y"], 200)
    assert run.call.answered_by is run.call.attempts[2]


@pytest.mark.parametrize("last", [saying(400, {}), TOO_LONG, saying(404, {}), ReadFailedError("x")])
async def test_the_error_of_the_model_that_was_asked_for_is_raised(last: Any) -> None:
    config = FallbackConfig(models={"m": ["x", "y"]})
    run = await fall_back(config, BROKEN, saying(401, {}), last, last)
    assert run.outcome.status_code == 500
    error = status_error(run.outcome)
    assert (error.model, len(error.earlier)) == ("m", 2)
    assert error.attempts == len(run.fleet.models)


async def test_an_error_that_is_raised_tells_of_the_others() -> None:
    first = ReadFailedError("reset")
    run = await fall_back(
        FallbackConfig(models={"m": ["x"]}), first, saying(400, {}), call=call_for(max_attempts=1)
    )
    assert run.outcome is first
    assert [type(error) for error in first.earlier] == [BadRequestError]
    assert first.attempts == 2


async def test_a_policy_of_a_fallback_is_not_routed_around() -> None:
    config = FallbackConfig(models={"m": ["x", "y"]})
    run = await fall_back(config, BROKEN, FORBIDDEN, 200)
    assert run.fleet.models == ["m", "x"]
    assert run.outcome.status_code == 500
    assert [type(e) for e in run.outcome.extensions[EARLIER]] == [ContentFilterError]


async def test_a_policy_is_routed_around_where_that_was_listed() -> None:
    config = FallbackConfig(content_filter={"m": ["x", "y"]})
    run = await fall_back(config, FORBIDDEN, FORBIDDEN, 200)
    assert (run.fleet.models, run.outcome.status_code) == (["m", "x", "y"], 200)


async def test_there_are_no_more_models_than_the_config_allows() -> None:
    config = FallbackConfig(models={"m": list("tuvwxyz")}, max_fallbacks=2)
    run = await fall_back(config, BROKEN)
    assert run.fleet.models == ["m", "t", "u"]


async def test_a_model_is_not_tried_twice() -> None:
    config = FallbackConfig(models={"m": ["m", "x", "alias", "x", "y"]}, aliases={"alias": "x"})
    run = await fall_back(config, BROKEN)
    assert run.fleet.models == ["m", "x", "y"]


async def test_an_alias_is_the_model_it_stands_for() -> None:
    config = FallbackConfig(aliases={"fast": "m"}, models={"m": ["x"]})
    run = await fall_back(config, BROKEN, 200, call=call_for("fast"))
    assert run.fleet.models == ["m", "x"]
    run = await fall_back(config, 200, call=call_for("fast"))
    assert run.call.answered_by is run.call.attempts[0]
    assert run.call.facts.model == "fast"  # the caller's own request stays as it is


@pytest.mark.parametrize(
    ("kind", "cause"),
    [("models", BROKEN), ("rate_limit", BUSY), ("context_window", TOO_LONG)],
)
async def test_a_chain_may_be_that_of_an_alias(kind: str, cause: Any) -> None:
    config = FallbackConfig.model_validate({"aliases": {"fast": "m"}, kind: {"fast": ["x"]}})
    for name in ("fast", "m"):
        run = await fall_back(config, cause, 200, call=call_for(name))
        assert run.fleet.models == ["m", "x"]


async def test_a_call_may_bring_its_own_models() -> None:
    run = await fall_back(EVERYTHING, BROKEN, 200, call=call_for(fallbacks=["own"]))
    assert run.fleet.models == ["m", "own"]
    run = await fall_back(FallbackConfig(), BUSY, 200, call=call_for(fallbacks=["own"]))
    assert run.fleet.models == ["m", "own"]
    run = await fall_back(EVERYTHING, BROKEN, 200, call=call_for(fallbacks=[]))
    assert run.fleet.models == ["m"]
    run = await fall_back(FallbackConfig(), FORBIDDEN, 200, call=call_for(fallbacks=["own"]))
    assert run.fleet.models == ["m"]  # to route around a policy takes more than a list


async def test_each_model_has_fresh_hosts_and_attempts_of_its_own() -> None:
    fleet = Fleet(a=[503, 503, 200], b=[503, 503])
    run = await fall_back(
        FallbackConfig(models={"m": ["x"]}), fleet=fleet, call=call_for(max_attempts=2)
    )
    assert list(zip(fleet.hosts, fleet.models, strict=True)) == [
        *(("a", "m"), ("b", "m"), ("a", "x"), ("b", "x"))
    ]
    assert len(run.call.attempts) == 4
    assert run.call.is_spent


async def test_all_models_have_one_deadline() -> None:
    slow = (4.0, BROKEN)
    fleet = Fleet(a=[slow])
    config = FallbackConfig(models={"m": ["x", "y", "z"]})
    above = [DeadlineLayer(10.0, clock=fleet.clock)]
    run = await fall_back(config, fleet=fleet, above=above)
    assert (run.took, fleet.models) == (10.0, ["m", "x", "y"])
    assert fleet.deadlines == [10.0, 6.0, 2.0]
    assert isinstance(run.outcome, DeadlineExceededError)


async def test_the_next_call_begins_with_the_model_it_asks_for() -> None:
    """A session is not pinned to its fallback, and an outage is not probed for each request."""
    fleet = Fleet(a=[BROKEN, 200, 200])
    config = FallbackConfig(models={"m": ["x"]})
    await fall_back(config, fleet=fleet)
    await fall_back(config, fleet=fleet)
    assert fleet.models == ["m", "x", "m"]


async def test_what_is_not_handed_up_is_closed() -> None:
    closed: list[int] = []

    def failing(status: int) -> Any:
        class Body(httpx.AsyncByteStream):
            async def __aiter__(self) -> Any:
                yield b""

            async def aclose(self) -> None:
                closed.append(status)

        headers = {"x-should-retry": "false"}
        return lambda: httpx.Response(status, headers=headers, stream=Body())

    run = await fall_back(FallbackConfig(models={"m": ["x", "y"]}), failing(500), failing(502), 200)
    assert run.outcome.status_code == 200
    assert not run.fleet.streams[0].is_closed
    assert sorted(closed) == [500, 502]


async def test_a_body_that_names_no_model_has_no_chain() -> None:
    call = call_for(None)
    run = await fall_back(EVERYTHING, BROKEN, 200, request=request_of(call))
    assert run.fleet.models == [None]


async def test_another_model_is_asked_at_once_where_all_hosts_are_overloaded() -> None:
    config = FallbackConfig(models={"m": ["x", "y"]})
    run = await fall_back(config, 503, 503, 503, 200)
    assert run.fleet.models == ["m", "x", "y", "y"]  # for the last one it is worth waiting
    assert [when for when, _ in run.fleet.sent[:3]] == [0.0, 0.0, 0.0]
    assert run.fleet.sent[3][0] > 0.0
    assert run.outcome.status_code == 200


async def test_before_another_model_every_host_is_asked() -> None:
    run = await fall_back(FallbackConfig(models={"m": ["x"]}), fleet=Fleet(a=503, b=[503, 200]))
    assert list(zip(run.fleet.hosts, run.fleet.models, strict=True))[:2] == [("a", "m"), ("b", "m")]


async def test_a_stream_that_breaks_off_after_its_beginning_has_fallbacks_too() -> None:
    fleet = Fleet(a=[200, 200], b=BROKEN)
    config = FallbackConfig(models={"m": ["x"]})
    run = await fall_back(config, fleet=fleet)
    call = run.call
    call.attempts[0].fault = Fault.BROKEN  # in the middle of its answer
    assert await run.failover.pause(call)
    again = await fall_back(config, fleet=fleet, request=run.request)
    assert again.outcome.status_code == 200
    assert list(zip(fleet.hosts, fleet.models, strict=True)) == [("a", "m"), ("b", "m"), ("a", "x")]
    assert len(call.attempts) == 3


async def test_a_restart_begins_at_the_model_that_had_answered() -> None:
    config = FallbackConfig(models={"m": ["second", "third"]}, aliases={"name": "m"})
    fleet = Fleet(a=[BROKEN, 200, 200, BROKEN, 200])
    call = call_for("name", max_attempts=9)
    for asked in (["m", "second"], ["second"], ["second", "third"]):
        before = len(fleet.models)
        run = await fall_back(config, fleet=fleet, request=request_of(call), retry=None)
        assert fleet.models[before:] == asked
        assert run.outcome.extensions[FALLBACK_FROM] == "m"
        assert call.answered_by is call.attempts[-1]
        assert call.stand_in is not None
        call.stand_in.left.clear()  # its stream broke off
    assert [attempt.model for attempt in call.attempts] == fleet.models

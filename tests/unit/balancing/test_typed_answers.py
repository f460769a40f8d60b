"""Whole answers, of the form that is expected of them."""

from decimal import Decimal
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from shared.infrastructure.balancing.accounting.answer_cache_layer import CACHED
from shared.infrastructure.balancing.accounting.prices import PriceTable
from shared.infrastructure.balancing.call import CALL, call_of
from shared.infrastructure.balancing.errors import (
    InvalidResponseError,
    UnexpectedAnswerError,
    UpstreamStatusError,
)
from shared.infrastructure.balancing.typed import Expected, chat, chat_payload
from shared.models import ChatCompletion, ChatMessage, ChatRequest
from tests.unit.balancing.typed_scripts import (
    QUESTION,
    Reply,
    ScriptedPool,
    pool_with,
    refusing,
    saying,
    whole,
)


async def asked(pool: ScriptedPool, payload: Any = None, **options: Any) -> ChatCompletion:
    return await chat(pool.exchange, pool.request(payload), pause=pool.pause, **options)


async def test_an_answer_has_its_route_beside_it_and_not_in_its_json() -> None:
    answer = await asked(pool_with(whole("Grüße", service_tier="default")))
    assert answer.text == "Grüße"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 8
    route = answer.route
    assert (route.host, route.served_model, route.duration) == ("a", "scripted", 1.0)
    assert [attempt.outcome for attempt in route.attempts] == ["200"]
    assert route.cost is None
    dumped = answer.model_dump(exclude_unset=True)
    assert dumped["service_tier"] == "default"
    assert dumped.keys() == {"object", "model", "choices", "usage", "service_tier"}


async def test_the_cost_is_that_of_all_attempts() -> None:
    prices = PriceTable.of({"m": {"input": 1, "output": 2}})
    answer = await asked(pool_with(whole("hi")), prices=prices)
    assert answer.route.cost == Decimal("0.000013")
    assert not answer.route.cost_estimated


async def test_an_unknown_price_is_none_and_not_zero() -> None:
    answer = await asked(pool_with(whole("hi")), prices=PriceTable.of({}))
    assert answer.route.cost is None


async def test_an_explicit_zero_is_not_estimated() -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    prices = PriceTable.of({"m": {"input": 1, "output": 2}})
    answer = await asked(pool_with(whole("hi", usage=usage)), prices=prices)
    assert (answer.route.cost, answer.route.cost_estimated) == (Decimal(0), False)


async def test_an_error_status_is_a_typed_error() -> None:
    with pytest.raises(UpstreamStatusError, match="no credit") as caught:
        await asked(pool_with(refusing(402, "no credit")))
    assert (caught.value.status, caught.value.host) == (402, "a")


@pytest.mark.parametrize("body", [{}, {"choices": 7}, {"choices": [{"message": 7}]}])
async def test_an_answer_that_is_none_is_an_error(body: Any) -> None:
    with pytest.raises(InvalidResponseError) as caught:
        await asked(pool_with(Reply(body=body)))
    assert caught.value.host == "a"


async def test_an_answer_that_nobody_parsed_yet_is_parsed() -> None:
    pool = pool_with()
    body = whole("hi").body

    async def exchange(request: httpx.Request) -> httpx.Response:
        call = call_of(request.extensions)
        return httpx.Response(200, json=body, extensions={CALL: call, CACHED: "hit"})

    answer = await chat(exchange, pool.request(), pause=pool.pause)
    assert answer.text == "hi"
    assert answer.route.cached


async def test_a_whole_answer_may_come_over_a_stream() -> None:
    pool = pool_with(saying("hello"))
    answer = await asked(pool, chat_payload(QUESTION, streamed=True))
    assert answer.text == "hello"
    assert pool.calls[0].hold == "whole"
    assert answer.route.host == "a"
    assert not pool.open


class City(BaseModel):
    name: str
    people: int


VIENNA = '{"name": "Wien", "people": 2000000}'
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer", "minimum": 0}},
    "required": ["name", "people"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("text", [VIENNA, f"```json\n{VIENNA}\n```", f"\n{VIENNA}\n"])
@pytest.mark.parametrize("expect", ["json", SCHEMA, City])
async def test_an_answer_of_the_expected_form_is_parsed(expect: Expected, text: str) -> None:
    answer = await asked(pool_with(whole(text)), expect=expect)
    parsed = answer.parsed
    assert (parsed.model_dump() if expect is City else parsed) == {
        "name": "Wien",
        "people": 2_000_000,
    }


@pytest.mark.parametrize(
    ("expect", "text", "problem"),
    [
        ("json", "Here it is:", "no JSON"),
        (SCHEMA, '{"name": "Wien"}', "has no 'people'"),
        (City, '{"name": "Wien"}', "people: Field required"),
    ],
)
async def test_a_model_is_told_what_is_wrong_and_asked_again(
    expect: Expected, text: str, problem: str
) -> None:
    pool = pool_with(whole(text), whole(VIENNA))
    answer = await asked(pool, expect=expect)
    assert answer.parsed is not None
    question, wrong, correction = pool.requests[1]["messages"]
    assert question == QUESTION["messages"][0]
    assert wrong == {"role": "assistant", "content": text}
    assert problem in correction["content"]
    assert pool.calls[0] is not pool.calls[1]
    assert [attempt.host for attempt in answer.route.attempts] == ["a", "b"]


async def test_an_answer_that_stays_wrong_is_an_error_but_no_fault_of_a_host() -> None:
    pool = pool_with(whole("no"), whole("still no"), whole(VIENNA))
    with pytest.raises(UnexpectedAnswerError) as caught:
        await asked(pool, expect="json", reasks=1)
    assert (caught.value.text, caught.value.host) == ("still no", "b")
    assert len(pool.requests) == 2
    assert [attempt.fault for call in pool.calls for attempt in call.attempts] == [None, None]


async def test_a_stream_may_be_expected_to_have_a_form_too() -> None:
    pool = pool_with(saying("no"), saying(VIENNA))
    answer = await asked(pool, chat_payload(QUESTION, streamed=True), expect=City)
    assert answer.parsed == City(name="Wien", people=2_000_000)
    assert pool.calls[1].hold == "whole"


def test_a_request_goes_out_as_it_was_made_and_nothing_else() -> None:
    request = ChatRequest.model_validate(
        {
            "model": "m",
            "messages": [{"role": "assistant", "content": None, "custom": 1}],
            "repetition_penalty": 1.1,
        }
    )
    assert chat_payload(request, streamed=False) == {
        "model": "m",
        "messages": [{"role": "assistant", "content": None, "custom": 1}],
        "repetition_penalty": 1.1,
    }


def test_a_plain_call_asks_for_no_stream_and_a_streamed_one_keeps_its_options() -> None:
    request = ChatRequest(
        messages=[ChatMessage(role="user", content="hi")],
        stream=True,
        stream_options={"include_usage": False, "x": 1},
    )
    assert chat_payload(request, streamed=False).keys() == {"messages"}
    options = chat_payload(request, streamed=True)["stream_options"]
    assert options == {"include_usage": False, "x": 1}

"""A whole answer to a chat call, of the form that is expected of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from shared.infrastructure.balancing.accounting.prices import PriceTable
from shared.infrastructure.balancing.call import JSONObject, call_of
from shared.infrastructure.balancing.errors import UnexpectedAnswerError
from shared.infrastructure.balancing.semantics import host_of
from shared.infrastructure.balancing.typed.expect import Expected, reader_of
from shared.infrastructure.balancing.typed.reader import Pause
from shared.infrastructure.balancing.typed.requests import (
    Exchange,
    answered,
    completion_of,
    in_call_of_its_own,
    payload_in,
)
from shared.infrastructure.balancing.typed.route import joined_route, route_of_answer
from shared.infrastructure.balancing.typed.stream import ChatStream
from shared.models import ChatCompletion


async def chat(
    exchange: Exchange,
    request: httpx.Request,
    *,
    pause: Pause,
    prices: PriceTable | None = None,
    expect: Expected | None = None,
    reasks: int = 1,
) -> ChatCompletion:
    """Return the whole answer to a chat call.

    If a stream is asked for, the limits on first token and silence hold for it too, and a failure
    at any point goes unnoticed.

    Args:
        exchange: Sends a request until there is an answer.
        request: The call; its extensions hold its `Call`.
        pause: As for `ChatStream`.
        prices: What tokens cost, for `route`; None leaves it unknown.
        expect: Form the text must have; `answer.parsed` is what it says. None expects nothing.
        reasks: Times the model is told what is wrong with its answer, and asked again.

    Raises:
        UnexpectedAnswerError: The last answer has another form.
        UpstreamStatusError: The hosts' last word was an error status.
        InvalidResponseError: It was no chat answer.
        ServiceError: As for `exchange`.
    """
    answer = await _asked(exchange, request, pause, prices)
    if expect is None:
        return answer
    read = reader_of(expect)
    routes = [answer.route]
    for left in range(reasks, -1, -1):
        problem, parsed = _tried(read, answer.text)
        if problem is None:
            return answer.with_route(joined_route(routes), parsed)
        if not left:
            raise UnexpectedAnswerError(problem, answer.text, host=routes[-1].host)
        request = in_call_of_its_own(request, _corrected(payload_in(request), answer, problem))
        answer = await _asked(exchange, request, pause, prices)
        routes.append(answer.route)
    raise AssertionError("unreachable")


async def _asked(
    exchange: Exchange, request: httpx.Request, pause: Pause, prices: PriceTable | None
) -> ChatCompletion:
    call = call_of(request.extensions)
    if call.facts.streamed:
        call.hold = "whole"
        async with ChatStream(exchange, request, "buffer", pause=pause, prices=prices) as stream:
            return await stream.get_final()
    response, body = await answered(exchange, request)
    route = route_of_answer(response, prices, body.get("model"))
    return completion_of(body, route, host_of(response))


def _tried(read: Callable[[str], Any], text: str) -> tuple[str | None, Any]:
    try:
        return None, read(text)
    except ValueError as exc:
        return str(exc), None


def _corrected(payload: JSONObject, answer: ChatCompletion, problem: str) -> JSONObject:
    """Return the question again, with the answer and what is wrong with it."""
    again = f"That is not the form I need: {problem}. Answer again, with nothing but the JSON."
    messages = [
        *payload.get("messages", ()),
        {"role": "assistant", "content": answer.text},
        {"role": "user", "content": again},
    ]
    return {**payload, "messages": messages}

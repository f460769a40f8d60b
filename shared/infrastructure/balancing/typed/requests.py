"""From what a caller asks to a request, and from a response to what it says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import httpx
from pydantic import ValidationError

from shared.infrastructure.balancing.call import CALL, PARSED, Call, JSONObject, call_of
from shared.infrastructure.balancing.classify import status_error
from shared.infrastructure.balancing.dialects.payloads import as_json, as_object, parse_object
from shared.infrastructure.balancing.errors import InvalidResponseError
from shared.infrastructure.balancing.json_request import json_body, with_body
from shared.infrastructure.http.amend import extended
from shared.infrastructure.http.extensions import BUFFERED
from shared.models import ChatCompletion, ChatRequest, EmbeddingsRequest, Route

Exchange = Callable[[httpx.Request], Awaitable[httpx.Response]]
"""Sends a request, whose extensions hold its `Call`, until there is an answer or an error."""


def chat_payload(request: ChatRequest | Mapping[str, Any], *, streamed: bool) -> JSONObject:
    """Return the body of a chat call; a streamed one asks for its usage, too."""
    payload = request.to_payload() if isinstance(request, ChatRequest) else dict(request)
    if not streamed:
        payload.pop("stream", None)
        payload.pop("stream_options", None)
        return payload
    options = as_object(payload.get("stream_options"))
    return {**payload, "stream": True, "stream_options": {"include_usage": True, **options}}


def embeddings_payload(request: EmbeddingsRequest | Mapping[str, Any]) -> JSONObject:
    """Return the body of an embeddings call."""
    return request.to_payload() if isinstance(request, EmbeddingsRequest) else dict(request)


def payload_in(request: httpx.Request) -> JSONObject:
    """Return the body of a request."""
    return call_of(request.extensions).facts.payload or {}


def with_payload(request: httpx.Request, payload: JSONObject, *needs: str) -> httpx.Request:
    """Return the request with another body: of the same call, whose facts change with it.

    Args:
        request: The request.
        payload: What it is to ask instead.
        needs: Further capabilities that a host must have for it.
    """
    call = call_of(request.extensions)
    call.facts = replace(call.facts, payload=payload, needs=call.facts.needs.union(needs))
    try:
        content = json_body(payload)
    except UnicodeEncodeError:  # halves of characters, as a host sent them
        content = as_json(payload).encode()
    return with_body(request, content)


def in_call_of_its_own(request: httpx.Request, payload: JSONObject) -> httpx.Request:
    """Return a request like this one with another body, as a call that nobody has answered yet."""
    call = call_of(request.extensions)
    now = call.attempts[-1].ended_at if call.attempts else None
    began = call.began if now is None else now
    fresh = Call(call.facts, call.max_attempts, began, call.hold, call.options, call.deadline)
    return with_payload(extended(request, {CALL: fresh}), payload)


async def answered(exchange: Exchange, request: httpx.Request) -> tuple[httpx.Response, JSONObject]:
    """Send a request and return the response, read, and its JSON.

    Raises:
        UpstreamStatusError: It is an error.
        InvalidResponseError: It is no JSON object.
    """
    request.extensions.setdefault(BUFFERED, True)
    response = await exchange(request)
    try:
        await raise_for_status(response)
        parsed: JSONObject | None = response.extensions.get(PARSED)
        if parsed is None:
            parsed = parse_object(await response.aread(), InvalidResponseError)
    finally:
        if not response.is_closed:
            await response.aclose()
    return response, parsed


def completion_of(body: JSONObject, route: Route, host: str | None) -> ChatCompletion:
    """Return a whole answer, and beside it how it came about.

    Raises:
        InvalidResponseError: It is no chat answer.
    """
    try:
        return ChatCompletion.model_validate(body).with_route(route)
    except ValidationError as exc:
        problem = exc.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise InvalidResponseError(
            f"no chat answer: {place}: {problem['msg']}", host=host
        ) from None


async def raise_for_status(response: httpx.Response) -> None:
    """Raise the error that a response stands for, if it does; it is closed then."""
    if response.status_code < 400:
        return
    try:
        await response.aread()
    finally:
        await response.aclose()
    raise status_error(response)

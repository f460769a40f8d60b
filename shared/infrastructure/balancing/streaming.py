"""Streamed chat: events become chunks, and an answer that breaks off may begin anew elsewhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Literal, cast

import httpx
from pydantic import ValidationError

from shared.infrastructure.balancing.answers import answer_of
from shared.infrastructure.balancing.errors import InvalidStreamError, StreamInterruptedError
from shared.infrastructure.balancing.payloads import (
    JSONObject,
    as_object,
    as_objects,
    error_of,
    has_content,
    parse_object,
)
from shared.infrastructure.balancing.route import POOL, route_of
from shared.infrastructure.balancing.sse import DONE, SSEParser
from shared.infrastructure.resilience import ServiceError, Verdict
from shared.models.llm import LLMChunk, Usage

Recovery = Literal["error", "restart"]
"""What becomes of an answer that breaks off after a part of it was delivered."""

Exchange = Callable[[httpx.Request], Awaitable[httpx.Response]]


async def stream_chat(
    exchange: Exchange,
    request: httpx.Request,
    recovery: Recovery,
    pause: Callable[[httpx.Request], Awaitable[None]],
) -> AsyncGenerator[LLMChunk, None]:
    """Yield the chunks of a streamed chat answer; of a new one if it breaks off and may restart.

    Until the first chunk a failure is that of an attempt, and `exchange` deals with it. `pause`
    waits before a restart as long as it should.
    """
    route = route_of(request)
    delivered: list[str] = []
    errors: list[ServiceError] = []
    has_begun = is_restarting = False
    while True:
        try:
            async with aclosing(_answer(exchange, request)) as chunks:
                async for chunk in chunks:
                    if is_restarting:
                        discarded = sum(map(len, delivered))
                        yield LLMChunk(host=route.host, restarted=True, discarded=discarded)
                        delivered.clear()
                        is_restarting = False
                    has_begun = True
                    delivered.append(chunk.text)
                    yield chunk
        except ServiceError as exc:
            exc.host, exc.attempts = route.host, route.attempts
            errors.append(exc)
            may_restart = POOL.judge(exc) is Verdict.FAILED and not route.is_spent
            if may_restart and (recovery == "restart" or not has_begun):
                is_restarting = has_begun
            elif has_begun:
                raise StreamInterruptedError(errors, "".join(delivered)) from exc
            else:
                raise
        else:
            return
        await pause(request)


@asynccontextmanager
async def opened(
    exchange: Exchange, request: httpx.Request
) -> AsyncGenerator[httpx.Response, None]:
    """Send a request; close its response at the end of the block."""
    response = await exchange(request)
    try:
        yield response
    finally:
        await response.aclose()


async def _answer(exchange: Exchange, request: httpx.Request) -> AsyncGenerator[LLMChunk, None]:
    async with opened(exchange, request) as response:
        if response.status_code != 200:
            await response.aread()
            answer_of(response)
        host = route_of(response).host
        parser = SSEParser()
        pieces = cast("AsyncGenerator[bytes, None]", response.aiter_raw())
        async with aclosing(pieces):
            async for piece in pieces:
                for chunk in _read(parser.feed(piece), host):
                    yield chunk
        for chunk in _read(parser.flush(), host):
            yield chunk


def _read(events: list[bytes], host: str | None) -> list[LLMChunk]:
    chunks = (_chunk(data, host) for data in events if data != DONE)
    return [chunk for chunk in chunks if chunk is not None]


def _chunk(data: bytes, host: str | None) -> LLMChunk | None:
    """Return what an event says about the first choice; None if it says nothing."""
    event = parse_object(data, InvalidStreamError)
    if error_of(event) is not None:
        return None  # raised below, when the stream goes on
    none: JSONObject = {}
    choice = next((c for c in as_objects(event.get("choices")) if not c.get("index")), none)
    delta = as_object(choice.get("delta"))
    usage = event.get("usage")
    if not (has_content(event) or choice.get("finish_reason") or usage):
        return None
    try:
        return LLMChunk(
            text=delta.get("content") or choice.get("text") or "",
            finish_reason=choice.get("finish_reason"),
            usage=Usage.model_validate(usage) if usage else None,
            delta=delta,
            model=event.get("model"),
            host=host,
        )
    except ValidationError as exc:
        raise InvalidStreamError(f"an event is no chunk of a chat answer: {data[:200]!r}") from exc

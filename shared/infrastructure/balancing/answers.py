"""Tell a true answer of an LLM host from what only looks like one, where breakers can still see it.

A host that dies in mid-stream often leaves a clean end of file behind, and some report errors with
status 200. Both are failures of the attempt: an answer that is none raises here, below every
layer, and an error reported with status 200 gets the status it should have had.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from typing import cast

import httpx

from shared.infrastructure.balancing.errors import (
    InBandError,
    InvalidResponseError,
    InvalidStreamError,
    StreamTruncatedError,
    UpstreamStatusError,
)
from shared.infrastructure.balancing.payloads import (
    JSONObject,
    as_objects,
    error_of,
    has_content,
    parse_object,
    status_of,
)
from shared.infrastructure.balancing.route import STREAMED, route_of
from shared.infrastructure.balancing.sse import DONE, SSEParser
from shared.infrastructure.http.extensions import BUFFERED
from shared.infrastructure.http.semantics import parse_retry_after
from shared.infrastructure.http.transport import Wire
from shared.infrastructure.resilience import DeadlineExceededError, deadline

PARSED = "parsed"
"""Response extension: the JSON of an answer that was read whole."""

# By the end of the path: the field without which an answer is none.
_ESSENTIAL = {
    "/chat/completions": "choices",
    "/v1/completions": "choices",
    "/v1/embeddings": "data",
}

# What a model says cannot look like this: a quote inside a JSON string is always escaped.
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"(error")?')
_ERROR = b'"error"'

# How long an answer in place of a stream may be: it can only be an error.
_MAX_ERROR_BYTES = 1024 * 1024
# How much of a stream may pass before its first content.
_MAX_HELD_BYTES = 256 * 1024
# Seconds a stream may take to end after it said that it is done, so that its connection is reused.
_LINGER = 0.1


class AnswerGuard(httpx.AsyncBaseTransport):
    """A transport whose 200 means that an answer came, or is coming.

    A stream is handed up once its first content is there, so that until then a failure is that of
    the attempt, and another host can take over unnoticed.

    Args:
        inner: Does the exchange; closed with this one.
    """

    def __init__(self, inner: Wire) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response: httpx.Response = await self._inner(request)
        path = request.url.path
        essential = next((_ESSENTIAL[end] for end in _ESSENTIAL if path.endswith(end)), None)
        if essential is None or response.status_code != 200:
            return response
        try:
            return await _checked(request, response, essential)
        except BaseException:
            await response.aclose()
            raise

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _checked(
    request: httpx.Request, response: httpx.Response, essential: str
) -> httpx.Response:
    kind = response.headers.get("content-type", "")
    if kind.startswith("text/event-stream"):
        return await _checked_stream(response)
    if not (request.extensions.get(BUFFERED) or request.extensions.get(STREAMED)):
        return response
    content = await _read(response)
    answer = parse_object(content, InvalidResponseError)
    error = error_of(answer)
    if error is not None:
        return await _as_status(response, error)
    if request.extensions.get(STREAMED) and not request.extensions.get(BUFFERED):
        raise InvalidStreamError(f"asked for an event stream, got {kind or 'no content type'}")
    if not as_objects(answer.get(essential)):
        raise InvalidResponseError(f"the answer has no {essential!r}: {content[:200]!r}")
    response.extensions = {**response.extensions, PARSED: answer}
    return response


async def _read(response: httpx.Response) -> bytes:
    """Return a body; one that is no event stream where one was asked for may only be an error."""
    if response.is_stream_consumed:
        return response.content
    content = b""
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > _MAX_ERROR_BYTES:
            raise InvalidStreamError(f"asked for an event stream, got {content[:200]!r}")
    return content


async def _checked_stream(response: httpx.Response) -> httpx.Response:
    stream = CheckedStream(cast("httpx.AsyncByteStream", response.stream))
    error = await stream.open()
    if error is not None:
        return await _as_status(response, error)
    return httpx.Response(
        200, headers=response.headers, stream=stream, extensions=response.extensions
    )


class CheckedStream(httpx.AsyncByteStream):
    """An event stream whose end is an error, unless it said that it was complete."""

    def __init__(self, inner: httpx.AsyncByteStream) -> None:
        self._inner = inner
        self._chunks = aiter(inner)
        self._parser = SSEParser()
        self._held: list[bytes] = []
        self._has_content = False
        self._is_complete = False
        self._is_done = False
        self._error: JSONObject | None = None

    async def open(self) -> JSONObject | None:
        """Read up to the first content; return the host's error if that comes instead."""
        size = 0
        while not (self._has_content or self._error) and size < _MAX_HELD_BYTES:
            chunk = await self._next()
            if chunk is None:
                break
            self._held.append(chunk)
            size += len(chunk)
        return self._error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._held:
            yield self._held.pop(0)
        while not self._is_done and (chunk := await self._next()) is not None:
            yield chunk
            self._check()
        self._check()
        if self._is_done:
            await self._drain()

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _next(self) -> bytes | None:
        try:
            chunk = await anext(self._chunks, None)
        except httpx.TransportError:
            if self._is_complete:
                return None
            raise
        self._take_note(self._parser.flush() if chunk is None else self._parser.feed(chunk))
        if chunk is None and not (self._is_complete or self._error):
            raise StreamTruncatedError("the stream ended with neither finish_reason nor [DONE]")
        return chunk

    def _check(self) -> None:
        if self._error is not None:
            raise InBandError(f"the host reported an error: {self._error.get('message')}")

    async def _drain(self) -> None:
        with contextlib.suppress(httpx.TransportError, DeadlineExceededError):
            async with deadline(_LINGER):
                while await anext(self._chunks, None) is not None:
                    pass

    def _take_note(self, events: list[bytes]) -> None:
        for data in events:
            if data == DONE:
                self._is_done = self._is_complete = self._has_content = True
            elif _ERROR in data and (error := error_of(_parse_event(data))) is not None:
                self._error = error
            elif finished := _FINISHED.search(data):
                if finished[1]:
                    self._error = {"message": "finish_reason is error"}
                else:
                    self._is_complete = self._has_content = True
            elif not self._has_content:
                self._has_content = has_content(_parse_event(data))


def _parse_event(data: bytes) -> JSONObject:
    return parse_object(data, InvalidStreamError)


def answer_of(response: httpx.Response) -> JSONObject:
    """Return the JSON of an answer that was read whole.

    Raises:
        UpstreamStatusError: It is an error.
        InvalidResponseError: It is not JSON.
    """
    if response.status_code != 200:
        raise _status_error(response)
    parsed: JSONObject | None = response.extensions.get(PARSED)
    return parsed or parse_object(response.content, InvalidResponseError)


def _status_error(response: httpx.Response) -> UpstreamStatusError:
    wait = parse_retry_after(response.headers)
    error = UpstreamStatusError(response.status_code, response.text, retry_after=wait)
    route = route_of(response)
    error.host, error.attempts = route.host, route.attempts
    return error


async def _as_status(response: httpx.Response, error: JSONObject) -> httpx.Response:
    """Return the response that should have carried `error`; one with no status is a 500."""
    await response.aclose()
    kept = {
        name: value
        for name, value in response.headers.items()
        if not name.startswith(("content-", "transfer-"))
    }
    return httpx.Response(status_of(error), headers=kept, json={"error": error})

"""One exchange with a host, and whether what came of it is an answer."""

from __future__ import annotations

import json
from typing import cast

import httpx

from shared.infrastructure.balancing.answers.stream import AnswerLimits, CheckedStream, StreamTerms
from shared.infrastructure.balancing.answers.watchdog import Watchdog
from shared.infrastructure.balancing.call import FAULT, PARSED, Attempt, Call, Hold, JSONObject
from shared.infrastructure.balancing.classify import fault_of_error, status_in
from shared.infrastructure.balancing.dialects import Dialect
from shared.infrastructure.balancing.dialects.payloads import as_json, as_object, parse_object
from shared.infrastructure.balancing.errors import (
    FirstTokenTimeoutError,
    InvalidResponseError,
    InvalidStreamError,
    SilenceError,
    StreamIdleTimeoutError,
)
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.http import UpstreamError
from shared.infrastructure.http.errors import ReadTimeoutError
from shared.infrastructure.http.extensions import BUFFERED
from shared.infrastructure.http.library import HTTPX
from shared.infrastructure.http.transport import Wire
from shared.infrastructure.resilience import Clock, ServiceError

STREAM = "stream_events"
"""Response extension: the `CheckedStream`, whose `events` are parsed already."""

# How much of an error is read, and of what comes in place of a stream; and of a plain answer.
_MAX_ERROR = 2**20
_MAX_PLAIN = 128 * 2**20
# Seconds that the body of an error status may take: the status alone says enough.
_ERROR_PATIENCE = 1.0

# The status that an error would have had that names none.
_STATUS = {
    Fault.OVERLOADED: 503,
    Fault.THROTTLED: 429,
    Fault.MISCONFIGURED: 401,
    Fault.NO_MODEL: 404,
    Fault.CONTEXT_WINDOW: 400,
    Fault.CONTENT_FILTER: 400,
    Fault.REJECTED: 400,
}


class AnswerExchange:
    """Sends a request and looks at what comes back.

    Args:
        request: As it came from above.
        call: Which call it belongs to.
        attempt: Takes note of what comes.
        limits: How long it may take once it has begun.
        watchdog: Knows how long it may take until then.
        clock: Source of monotonic time.
        is_typed: Whether events that are no JSON are passed over.

    Attributes:
        is_known: Whether we know what was asked.
        is_streamed: Whether a stream was asked for.
    """

    def __init__(
        self,
        request: httpx.Request,
        call: Call,
        attempt: Attempt,
        limits: AnswerLimits,
        watchdog: Watchdog,
        clock: Clock,
        *,
        is_typed: bool,
    ) -> None:
        self._facts = facts = call.facts
        self.is_known = facts.payload is not None
        self.is_streamed = facts.streamed
        self._is_buffered = bool(request.extensions.get(BUFFERED))
        self._is_typed = is_typed
        self._hold: Hold = "whole" if self._is_buffered else call.hold
        self._attempt = attempt
        self._watchdog = watchdog
        self._clock = clock
        self._limits = limits
        self._dialect = cast("Dialect", facts.dialect)
        self._response: httpx.Response | None = None
        self._is_stream = self._has_failed = False

    def hear(self, piece: bytes) -> None:
        """Take note of a piece of a plain body; white space now and then is no progress."""
        if not piece or piece.isspace() or self._has_failed:
            return
        if self._attempt.first_token_at is None:
            self._attempt.first_token_at = self._clock.now()
        self._watchdog.allow(self._limits.silence, StreamIdleTimeoutError)

    async def run(self, wire: Wire, request: httpx.Request) -> httpx.Response:
        """Send `request` and return an answer, or an error as a response.

        Raises:
            SilenceError: It took too long.
            InvalidResponseError: The status says 200, the body is not an answer.
            UpstreamError: The exchange failed.
        """
        watchdog = self._watchdog
        try:
            watchdog.wait()
            response: httpx.Response = await wire(request)
            self._response = response
            return await self._checked(response)
        except BaseException as exc:
            error = watchdog.claim(exc)
            watchdog.stop()
            if self._response is not None:
                await self._response.aclose()
            if isinstance(error, ReadTimeoutError):
                error = self._silence(error)
            elif isinstance(error, ServiceError):
                error.host = self._attempt.host
            if error is exc:
                raise
            raise error from exc
        finally:
            if not self._is_stream:
                watchdog.stop()

    async def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.status_code >= 400:
            return await self._failed(response)
        if response.status_code != 200:
            return response
        is_plain = self.is_known and not self.is_streamed  # it takes long to look a field up
        kind = "" if is_plain else response.headers.get("content-type", "")
        if kind.lower().startswith("text/event-stream"):
            return await self._opened(response)
        content = await self._read(response, _MAX_ERROR if self.is_streamed else _MAX_PLAIN)
        answer = parse_object(content, InvalidResponseError)
        reported = self._dialect.error_of(answer)
        if reported is not None:
            return self._as_status(response, reported)
        if self.is_streamed:
            raise InvalidStreamError(f"asked for an event stream, got {kind or 'no content type'}")
        return self._plain(response, answer)

    def _plain(self, response: httpx.Response, answer: JSONObject) -> httpx.Response:
        dialect, attempt = self._dialect, self._attempt
        dialect.check(answer, self._facts.payload or {})
        attempt.usage = dialect.usage_of(answer)
        if attempt.usage is None:
            attempt.characters = dialect.content_length(answer)
        if attempt.first_token_at is None:
            attempt.first_token_at = self._clock.now()
        response.extensions = {**response.extensions, PARSED: answer}
        return response

    async def _opened(self, response: httpx.Response) -> httpx.Response:
        self._watchdog.rest()
        self._is_stream = True
        inner = cast("httpx.AsyncByteStream", response.stream)
        payload = self._facts.payload or {}
        terms = StreamTerms(self._dialect, self._dialect.answers(payload), self._is_typed)
        stream = CheckedStream(
            inner, terms, self._limits, self._attempt, self._watchdog, self._clock
        )
        reported = await stream.open(self._hold)
        if reported is not None:
            await stream.aclose()
            return self._as_status(response, reported)
        extensions = {**response.extensions, STREAM: stream}
        if response.is_closed:  # its body came with it, as from a mock
            response = httpx.Response(
                200, headers=response.headers, stream=stream, extensions=extensions
            )
        response.stream, response.extensions = stream, extensions
        if self._is_buffered:
            HTTPX.hold(response, stream.held)
        return response

    async def _failed(self, response: httpx.Response) -> httpx.Response:
        self._has_failed = True
        self._watchdog.allow(min(_ERROR_PATIENCE, self._limits.silence), SilenceError)
        content = await self._read(response, _MAX_ERROR)
        try:
            body = as_object(json.loads(content))
        except (ValueError, RecursionError):
            body = {}
        reported = self._dialect.error_of(body) or body or None
        fault = fault_of_error(response.status_code, reported)
        response.extensions = {**response.extensions, FAULT: fault}
        return response

    async def _read(self, response: httpx.Response, most: int) -> bytes:
        """Return the body of a response, which can then be read once more."""
        if not response.is_closed:
            HTTPX.hold(response, await self._body(response, most))
        content = response.content
        if not self._is_buffered:
            self._reopen(response)
        return content

    async def _body(self, response: httpx.Response, most: int) -> bytes:
        pieces, size = list[bytes](), 0
        stream = cast("httpx.AsyncByteStream", response.stream)
        try:
            async for piece in stream:
                self.hear(piece)
                pieces.append(piece)
                size += len(piece)
                if size > most:
                    break
        except BaseException as exc:
            error = self._watchdog.claim(exc)
            if not (self._has_failed and isinstance(error, UpstreamError | SilenceError)):
                raise error from error.__cause__
        finally:
            await stream.aclose()
        if size > most and response.status_code < 400:
            raise InvalidResponseError(f"the answer has more than {most} bytes")
        return b"".join(pieces)[:most]

    def _reopen(self, response: httpx.Response) -> None:
        """Let a response that was read be streamed by whoever asked for that."""
        response.stream = httpx.ByteStream(response.content)
        response.is_closed = response.is_stream_consumed = False

    def _as_status(self, response: httpx.Response, reported: JSONObject) -> httpx.Response:
        """Return the response that should have carried the error."""
        named = status_in(reported)
        fault = fault_of_error(named or 200, reported)
        kept = {
            name: value
            for name, value in response.headers.items()
            if not name.startswith(("content-", "transfer-"))
        }
        failed = httpx.Response(
            named or _STATUS.get(fault, 500),
            headers={**kept, "Content-Type": "application/json"},
            content=as_json({"error": reported}) or "{}",
            extensions={**response.extensions, FAULT: fault},
        )
        if not self._is_buffered:
            self._reopen(failed)
        return failed

    def _silence(self, cause: ReadTimeoutError) -> Exception:
        has_begun = self._attempt.first_token_at is not None
        kind = StreamIdleTimeoutError if has_begun else FirstTokenTimeoutError
        return kind(str(cause), host=self._attempt.host)

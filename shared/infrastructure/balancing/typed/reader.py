"""Reads a streamed answer, and another one in its place, or the rest of it, if it breaks off."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Literal, cast

import httpx

from shared.infrastructure.balancing.accounting.answer_cache_layer import CACHED
from shared.infrastructure.balancing.accounting.bill import usage_of
from shared.infrastructure.balancing.accounting.prices import PriceTable
from shared.infrastructure.balancing.accounting.replay import EventSource
from shared.infrastructure.balancing.answers import MAY_RESTART, STREAM, TYPED
from shared.infrastructure.balancing.call import ATTEMPT, CALL, Attempt, Call, JSONObject, call_of
from shared.infrastructure.balancing.classify import fault_of
from shared.infrastructure.balancing.dialects import Event
from shared.infrastructure.balancing.errors import InvalidStreamError, StreamInterruptedError
from shared.infrastructure.balancing.fallback import FALLBACK_FROM
from shared.infrastructure.balancing.faults import RULES
from shared.infrastructure.balancing.hosts.config import Capability
from shared.infrastructure.balancing.typed.accumulate import AnswerBuilder
from shared.infrastructure.balancing.typed.continuation import Seam, is_continuable, prefilled
from shared.infrastructure.balancing.typed.requests import (
    Exchange,
    payload_in,
    raise_for_status,
    with_payload,
)
from shared.infrastructure.balancing.typed.route import as_usage, route_info
from shared.infrastructure.resilience import ServiceError
from shared.models import ChatCompletionChunk, RouteInfo, StreamRestarted, Usage

Recovery = Literal["error", "continue", "restart", "buffer"]
"""What becomes of an answer that breaks off after a part of it was delivered."""

Pause = Callable[[Call], Awaitable[bool]]
"""Waits as before another attempt of a call; says whether there is to be one."""

Piece = ChatCompletionChunk | StreamRestarted


class AnswerReader:
    """The answer that is being read: from which host, how far, and what went wrong before.

    Args:
        exchange: Sends a request until an answer to it has begun.
        request: A streamed chat call.
        recovery: What to do when the answer breaks off; see `ChatStream`.
        pause: Waits before another attempt.
        prices: What tokens cost.

    Attributes:
        builder: The answer so far.
        is_complete: Whether all of it has come.
        is_wanted: Whether somebody still waits for it.
    """

    def __init__(
        self,
        exchange: Exchange,
        request: httpx.Request,
        recovery: Recovery,
        pause: Pause,
        prices: PriceTable | None,
    ) -> None:
        self.builder = AnswerBuilder()
        self.is_complete = False
        self.is_wanted = True
        self._exchange = exchange
        request.extensions[TYPED] = True
        if recovery == "restart":
            request.extensions[MAY_RESTART] = True
        self._request = request
        self._asked = payload_in(request)
        self._recovery = recovery
        self._pause = pause
        self._prices = prices
        self._call = call_of(request.extensions)
        self._fallback_from: str | None = None
        self._is_cached = False
        self._response: httpx.Response | None = None
        self._attempt: Attempt | None = None
        self._errors: list[ServiceError] = []
        self._has_begun = self._is_recovered = False
        self._first_token_at: float | None = None
        self._seam: Seam | None = None
        self._spent: Usage | None = None

    @property
    def host(self) -> str | None:
        """Host that answers; None before one does."""
        return self._attempt.host if self._attempt else None

    @property
    def route(self) -> RouteInfo:
        """How the answer has come about so far."""
        return route_info(
            self._call,
            self._attempt,
            self._prices,
            served_model=self.builder.model,
            fallback_from=self._fallback_from,
            recovered=self._is_recovered,
            cached=self._is_cached,
            first_token_at=self._first_token_at,
        )

    async def open(self) -> None:
        """Ask, unless that has been done, until an answer has begun."""
        if self._response is None:
            self._response = await self._begun(self._request)

    async def close(self) -> None:
        """Let go of the host, and take note of what it cost if that is all we will have of it."""
        response, self._response = self._response, None
        if response is None:
            return
        try:
            await response.aclose()
        finally:
            attempt = self._attempt
            if not self.is_complete and attempt is not None and attempt.usage is None:
                usage = as_usage(usage_of(attempt, self._call))
                attempt.usage = {**usage.model_dump(), "estimated": True}

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield the answer as it comes; close the generator to let go of the host."""
        try:
            await self.open()
            while not self.is_complete:
                restarted: StreamRestarted | None = None
                try:
                    async with aclosing(self._events()) as events:
                        async for event in events:
                            if event.data is not None:
                                yield self._taken(event.data)
                    self.is_complete = True
                except ServiceError as exc:
                    restarted = await self._recover(exc)
                if restarted is not None:
                    yield restarted
        finally:
            await self.close()

    def _taken(self, data: JSONObject) -> ChatCompletionChunk:
        """Take note of what a host says, and return it."""
        chunk = ChatCompletionChunk(data)
        if self._seam is not None:
            chunk = self._joined(chunk, self._seam)
        self.builder.add(chunk)
        self._has_begun = True
        return chunk

    def _events(self) -> AsyncGenerator[Event, None]:
        assert self._response is not None  # noqa: S101 - opened before it is read
        stream: EventSource | None = self._response.extensions.get(STREAM)
        if stream is None:
            raise InvalidStreamError("asked for an event stream, got something else")
        return cast("AsyncGenerator[Event, None]", stream.events())

    def _joined(self, chunk: ChatCompletionChunk, seam: Seam) -> ChatCompletionChunk:
        """Return a piece of a continuation as one of the whole answer."""
        chunk = seam.joined(chunk)
        if chunk.usage is None or self._spent is None:
            return chunk
        usage = (self._spent + chunk.usage).model_dump()
        return ChatCompletionChunk({**chunk.data, "usage": usage})

    async def _begun(self, request: httpx.Request) -> httpx.Response:
        response = await self._exchange(request)
        self._attempt = response.extensions.get(ATTEMPT)
        self._call = response.extensions.get(CALL, self._call)
        self._fallback_from = response.extensions.get(FALLBACK_FROM)
        self._is_cached = CACHED in response.extensions
        if response.status_code in {400, 422} and "stream_options" in payload_in(request):
            problem = await response.aread()
            if b"stream_options" in problem or b"include_usage" in problem:
                await response.aclose()
                return await self._begun(self._without_usage(request))
        await raise_for_status(response)
        return response

    def _without_usage(self, request: httpx.Request) -> httpx.Request:
        """Ask again without what we added; that was no fault of the call's."""
        self._asked = {k: v for k, v in self._asked.items() if k != "stream_options"}
        call = self._call
        if call.host is not None:
            call.left.pop(call.host, None)
        call.max_attempts += 1
        self._request = with_payload(request, self._asked)
        return self._request

    async def _recover(self, exc: ServiceError) -> StreamRestarted | None:
        """Have the answer begin anew, or go on, elsewhere.

        Returns:
            What to tell the reader of it, if anything.

        Raises:
            StreamInterruptedError: Neither is to be, and a part was delivered.
            ServiceError: Neither is to be, and nothing was.
        """
        attempt = self._attempt
        await self.close()
        exc.host = attempt.host if attempt else exc.host  # the wire knows only its address
        exc.attempts = len(self._call.attempts)
        self._errors.append(exc)
        if self._has_begun and self._first_token_at is None and attempt is not None:
            self._first_token_at = attempt.first_token_at
        if self._has_begun and self._recovery == "continue":
            await self._continue(exc, attempt)
            return None
        may_restart = not self._has_begun or self._recovery == "restart"
        if not (may_restart and await self._may_go_on(exc)):
            raise self._broken_off() from exc
        try:
            await self.open()
        except ServiceError as again:
            self._errors.append(again)
            raise self._broken_off() from again
        discarded = self.builder.length
        self.builder = AnswerBuilder()
        if not self._has_begun:
            return None
        self._is_recovered = True
        return StreamRestarted(discarded, self._attempt.host if self._attempt else None)

    async def _continue(self, exc: ServiceError, attempt: Attempt | None) -> None:
        seam = Seam(self.builder.text)
        is_text = self.builder.is_plain and is_continuable(self._asked) and seam.beginning
        if not (is_text and await self._may_go_on(exc)):
            raise self._broken_off() from exc
        rest = prefilled(self._asked, seam.beginning)
        self._request = with_payload(self._request, rest, Capability.PREFILL)
        try:
            await self.open()
        except ServiceError as refused:
            # What the hosts have against the beginning of an answer is not what went wrong.
            exc.add_note(f"no host went on with it: {refused}")
            raise self._broken_off() from exc
        self._seam, self._is_recovered = seam, True
        if attempt is not None:
            spent = as_usage(usage_of(attempt, self._call))
            self._spent = spent if self._spent is None else self._spent + spent

    async def _may_go_on(self, exc: ServiceError) -> bool:
        fault = fault_of(exc)
        may = fault is not None and RULES[fault].other_host and not self._call.is_spent
        return may and self.is_wanted and await self._pause(self._call)

    def _broken_off(self) -> ServiceError:
        if not self._has_begun:
            return self._errors[-1]
        error = StreamInterruptedError(self._errors, self.builder.text, self._usage())
        error.attempts = len(self._call.attempts)
        return error

    def _usage(self) -> JSONObject:
        """Return what all attempts cost."""
        counts = [usage_of(attempt, self._call) for attempt in self._call.attempts]
        total = sum(map(as_usage, counts), Usage())
        return {**total.model_dump(), "estimated": any(count.estimated for count in counts)}

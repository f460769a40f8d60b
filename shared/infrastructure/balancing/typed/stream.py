"""`ChatStream`: an answer while the model says it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import AsyncGeneratorType, TracebackType
from typing import Self, cast

import httpx

from shared.infrastructure.balancing.accounting.prices import PriceTable
from shared.infrastructure.balancing.errors import StreamTruncatedError
from shared.infrastructure.balancing.typed.reader import AnswerReader, Pause, Piece, Recovery
from shared.infrastructure.balancing.typed.requests import Exchange, completion_of
from shared.models import ChatCompletion, RouteInfo


class ChatStream:
    """An answer while the model says it; iterated once, by one task at a time.

    `async with` it, so that leaving early closes the connection to the host at once; in a plain
    `async for`, that happens as soon as nothing refers to the stream any more. Cancelling the
    reader closes it in any case. In `async with` the answer has begun, or what kept it from that is
    raised there.

    Until the first content, any failure goes unnoticed: another host takes over. After it,
    `recovery` decides:

    - "error" raises `StreamInterruptedError`, with the partial text and what it cost.
    - "continue" has a host with `Capability.PREFILL` go on with the partial text. That is possible
      for plain text only: no tools, no JSON, no reasoning, one choice, no logprobs. Otherwise, and
      if no host does, it is as "error".
    - "restart" yields a `StreamRestarted` and then a whole new answer of another host.
    - "buffer" (with a call whose `hold` is "whole") yields nothing before the whole answer is
      there, so that there is no partial text.

    Args:
        exchange: Sends a request until an answer to it has begun.
        request: A streamed chat call; its extensions hold its `Call`.
        recovery: See above.
        pause: Waits before another attempt of a call; says whether there is to be one.
        prices: What tokens cost, for `route`; None leaves it unknown.
    """

    def __init__(
        self,
        exchange: Exchange,
        request: httpx.Request,
        recovery: Recovery = "error",
        *,
        pause: Pause,
        prices: PriceTable | None = None,
    ) -> None:
        self._reader = AnswerReader(exchange, request, recovery, pause, prices)
        # It does not know this object: forgotten, it is closed at once, and not by the collector.
        self._pieces = cast("AsyncGeneratorType[Piece]", self._reader.pieces())

    async def __aenter__(self) -> Self:
        await self._reader.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self._pieces

    async def __anext__(self) -> Piece:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Let go of the host; what has come stays. A task that reads meanwhile gets an error."""
        self._reader.is_wanted = False
        try:
            if not self._pieces.ag_running:
                await self._pieces.aclose()
        finally:
            await self._reader.close()  # also if it was never iterated

    async def get_final(self) -> ChatCompletion:
        """Read what is left, and return the whole answer.

        Raises:
            StreamTruncatedError: The stream was closed before its end.
            ServiceError: As for iterating.
        """
        async for _ in self._pieces:
            pass
        reader = self._reader
        if not reader.is_complete:
            raise StreamTruncatedError("the stream was closed before its end")
        route = self.route
        return completion_of(reader.builder.completion(), route, route.host)

    @property
    def text(self) -> str:
        """What the model said so far, in the first choice."""
        return self._reader.builder.text

    @property
    def route(self) -> RouteInfo:
        """How the answer has come about so far."""
        return self._reader.route

    @property
    def host(self) -> str | None:
        """Host that answers; None before one does."""
        return self._reader.host

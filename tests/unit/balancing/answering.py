"""An answer guard over scripted answers, on a clock that stands still."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import httpx

from shared.infrastructure.balancing.answers import TYPED, AnswerGuard, CheckedStream
from shared.infrastructure.balancing.answers.exchange import STREAM
from shared.infrastructure.balancing.call import ATTEMPT, CALL, Attempt, Call, Hold
from shared.infrastructure.balancing.config import AnswerTimeoutConfig
from shared.infrastructure.balancing.facts import facts_of
from shared.infrastructure.balancing.semantics import WireSemantics
from shared.infrastructure.http import TimeoutConfig
from shared.infrastructure.http.transport import Wire
from shared.infrastructure.testing import FakeClock

CHAT = "/v1/chat/completions"
STREAMED = {"model": "m", "stream": True, "messages": []}
PLAIN = {"model": "m", "messages": []}
SSE = {"Content-Type": "text/event-stream"}
JSON = {"Content-Type": "application/json"}

Piece = bytes | float | Exception
"""What comes, seconds of silence, or what goes wrong."""


class Body(httpx.AsyncByteStream):
    """A body that comes piece by piece, on the clock.

    Attributes:
        taken: Pieces that were read so far.
        is_closed: Whether it was closed.
    """

    def __init__(self, pieces: Iterable[Piece], clock: FakeClock) -> None:
        self._pieces = pieces
        self._clock = clock
        self.taken = 0
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, float):
                await self._clock.sleep(piece)
            elif isinstance(piece, Exception):
                raise piece
            else:
                self.taken += 1
                yield piece

    async def aclose(self) -> None:
        self.is_closed = True


class Answering(httpx.AsyncBaseTransport):
    """Answers every request alike, and keeps what was sent.

    Attributes:
        clock: Of the guard, and of the answers.
        body: The last one that was sent.
        request: The last one that came.
        call: Call of the last request.
        attempt: Attempt of the last request.
    """

    def __init__(
        self,
        *pieces: Piece,
        status: int = 200,
        headers: Mapping[str, str] = SSE,
        head_after: float = 0.0,
        timeouts: TimeoutConfig | None = None,
        p99: Callable[[str | None], float | None] = lambda _: None,
        clock: FakeClock | None = None,
        **limits: Any,
    ) -> None:
        self.clock = clock or FakeClock()
        self._pieces = pieces
        self._status = status
        self._headers = headers
        self._head_after = head_after
        self.guard = AnswerGuard(
            Wire(self, WireSemantics()),
            timeouts or TimeoutConfig(read=30.0),
            AnswerTimeoutConfig(**limits),
            clock=self.clock,
            first_token_p99=p99,
        )
        self.body = Body((), self.clock)
        self.request = httpx.Request("GET", "http://x")
        self.call = Call(facts_of(CHAT, None), 1)
        self.attempt = Attempt("a", 0.0)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.request = request
        if self._head_after:
            await self.clock.sleep(self._head_after)
        self.body = Body(self._pieces, self.clock)
        return httpx.Response(self._status, headers=self._headers, stream=self.body)

    async def send(
        self,
        payload: dict[str, Any] = STREAMED,
        *,
        path: str = CHAT,
        hold: Hold = "first",
        deadline: float | None = None,
        **extensions: Any,
    ) -> httpx.Response:
        """Send a request as a host does."""
        self.call = Call(facts_of(path, payload), 3, hold=hold, deadline=deadline)
        self.attempt = self.call.depart("a", self.clock.now(), "m")
        request = httpx.Request(
            "POST",
            "http://a" + path,
            json=payload,
            extensions={CALL: self.call, ATTEMPT: self.attempt, **extensions},
        )
        return await self.guard.handle_async_request(request)

    async def raw(self, **options: Any) -> bytes:
        """Return all the bytes of the answer."""
        response = await self.send(**options)
        return b"".join([piece async for piece in body_of(response)])

    async def texts(self, **options: Any) -> list[str]:
        """Return the contents of the chunks of the answer."""
        response = await self.send(**{TYPED: True, **options})
        return [text_of(event.data) async for event in stream_of(response).events()]

    async def outcome(self, call: Any, seconds: float) -> Any:
        """Return what `call` gave, or the error that it raised, once `seconds` have passed."""
        task = asyncio.ensure_future(call)
        await self.clock.advance(seconds)
        assert task.done(), f"still waiting after {seconds} s"
        return task.exception() or task.result()


def body_of(response: httpx.Response) -> CheckedStream:
    assert isinstance(response.stream, CheckedStream)
    return response.stream


def stream_of(response: httpx.Response) -> CheckedStream:
    stream: CheckedStream = response.extensions[STREAM]
    return stream


def text_of(data: Any) -> str:
    return "".join(one["delta"].get("content") or "" for one in data["choices"])

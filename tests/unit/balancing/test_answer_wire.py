"""The guard on real sockets: what hosts do to an answer, and what becomes of the connection."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.answers import AnswerGuard
from shared.infrastructure.balancing.call import ATTEMPT, CALL, Call, Hold
from shared.infrastructure.balancing.config import AnswerTimeoutConfig
from shared.infrastructure.balancing.errors import (
    FirstTokenTimeoutError,
    SilenceError,
    StreamTruncatedError,
)
from shared.infrastructure.balancing.facts import facts_of
from shared.infrastructure.balancing.semantics import WireSemantics
from shared.infrastructure.http import TimeoutConfig, UpstreamError, WireTransport
from shared.infrastructure.http.transport import Wire
from shared.infrastructure.resilience import ServiceError
from shared.infrastructure.resilience.clock import MONOTONIC
from tests.scripted_host import (
    Ending,
    ScriptedHost,
    Step,
    answer,
    chat,
    chat_events,
    chat_stream,
    choice,
    completion,
    event,
    raw,
    reset,
    short,
    silence,
    stream,
)
from tests.unit.balancing.answering import CHAT, stream_of, text_of

TEXT = 'Grüße 🎉 "finish_reason": "stop"\tand data: [DONE]\n'
WHOLE = b"".join(chat_events(TEXT))
BODY = json.dumps(completion(TEXT)).encode()
TRANSPORTS = [WireTransport, httpx.AsyncHTTPTransport]


class Guarded:
    """A scripted host behind a guard between two wires, as a host of a pool has it."""

    def __init__(self, host: ScriptedHost, transport: Any, **limits: Any) -> None:
        self.host = host
        read: float = limits.pop("read", 0.4)
        self._read = read
        guard = AnswerGuard(
            Wire(transport, WireSemantics()),
            TimeoutConfig(read=read),
            AnswerTimeoutConfig(**limits),
            clock=MONOTONIC,
            first_token_p99=lambda _: None,
        )
        self.wire = Wire(guard, WireSemantics())

    async def send(self, payload: dict[str, Any], hold: Hold = "first") -> httpx.Response:
        call = Call(facts_of(CHAT, payload), 3, hold=hold)
        attempt = call.depart("a", MONOTONIC.now(), None)
        extensions = {
            CALL: call,
            ATTEMPT: attempt,
            "timeout": {"connect": 5.0, "read": self._read, "write": 5.0, "pool": 5.0},
            "buffered": not call.facts.streamed,
        }
        url = self.host.url + CHAT
        request = httpx.Request("POST", url, json=payload, extensions=extensions)
        response: httpx.Response = await self.wire(request)
        return response

    async def said(self) -> str:
        response = await self.send({})
        text: str = response.json()["choices"][0]["message"]["content"]
        return text

    async def raw(self, hold: Hold = "first") -> bytes:
        response = await self.send({"stream": True}, hold)
        try:
            return b"".join([piece async for piece in response.aiter_raw()])
        finally:
            await response.aclose()

    async def text(self, hold: Hold = "first") -> str:
        response = await self.send({"stream": True}, hold)
        try:
            events = stream_of(response).events()
            return "".join([text_of(item.data) async for item in events])
        finally:
            await response.aclose()


@asynccontextmanager
async def guarded(
    *script: Step, transport: Any = WireTransport, **limits: Any
) -> AsyncIterator[Guarded]:
    async with ScriptedHost(*script) as host:
        client = Guarded(host, transport(), **limits)
        yield client
        await client.wire.aclose()


PLAIN: dict[str, Step] = {
    "reset before headers": reset(),
    "silence": silence(),
    "60 % of the body": short(BODY),
    "body cut without a length": raw(b"HTTP/1.1 200 OK\r\n\r\n" + BODY[:-9]),
    "empty": answer(b""),
    "HTML": answer(b"<html>502</html>"),
    "gzip garbage": answer(BODY, headers={"Content-Encoding": "gzip"}),
    "not HTTP": raw(b"nonsense\r\n\r\n"),
}


@pytest.mark.parametrize("fault", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_is_no_plain_answer_is_an_error(fault: Step, transport: Any) -> None:
    async with guarded(fault, chat(TEXT), transport=transport) as client:
        with pytest.raises(ServiceError) as caught:
            await client.said()
        assert isinstance(caught.value, (UpstreamError, SilenceError))
        assert await client.said() == TEXT


@pytest.mark.parametrize("piece", [0, 1, 100_000])
@pytest.mark.parametrize("ending", ["whole", "no_done"])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_whole_stream_comes_through(ending: Ending, piece: int, transport: Any) -> None:
    async with guarded(chat_stream(TEXT, ending, piece=piece), transport=transport) as client:
        whole = WHOLE if ending == "whole" else WHOLE.removesuffix(b"data: [DONE]\n\n")
        for hold in ("first", "whole"):
            assert await client.raw(hold) == whole
            assert await client.text(hold) == TEXT


@pytest.mark.parametrize("ending", ["fin", "cut", "reset", "stall"])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_stream_cut_short_is_never_a_whole_one(ending: Ending, transport: Any) -> None:
    # What the model says about [DONE] and finish_reason is out by then.
    fault = chat_stream(TEXT, ending, after=len(TEXT) // 2 - 1)
    async with guarded(fault, transport=transport) as client:
        for read in (client.raw, client.text):
            for hold in ("first", "whole"):
                with pytest.raises((UpstreamError, SilenceError)):
                    await read(hold)
        await client.host.until_idle()


async def test_a_clean_end_without_a_sign_of_completion_has_a_type_of_its_own() -> None:
    async with guarded(chat_stream(TEXT, "fin", after=3)) as client:
        with pytest.raises(StreamTruncatedError, match="neither finish_reason nor"):
            await client.raw()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_body_of_white_space_is_silence(transport: Any) -> None:
    async def blanks(exchange: Any) -> None:
        await exchange.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        while True:
            await exchange.send(b"1\r\n \r\n")
            await asyncio.sleep(0.02)

    async with guarded(blanks, transport=transport, read=5.0, first_token=0.2) as client:
        with pytest.raises(FirstTokenTimeoutError):
            await client.said()
        await client.host.until_idle()


async def test_a_slow_plain_answer_outlives_the_read_timeout_of_the_wire() -> None:
    async def late(exchange: Any) -> None:
        await asyncio.sleep(0.3)
        await chat(TEXT)(exchange)

    async with guarded(late, read=0.1, first_token=5.0) as client:
        assert await client.said() == TEXT


async def test_a_connection_is_used_again_after_a_whole_stream() -> None:
    async with guarded(chat_stream(TEXT)) as client:
        for read in (client.raw, client.text, client.raw):
            await read()
        await client.raw("whole")
        requests = client.host.requests
        assert len({r.writer.get_extra_info("peername")[1] for r in requests}) == 1


async def test_a_stream_that_lingers_after_its_end_is_closed() -> None:
    lingering = stream(list(chat_events(TEXT)), "stall")
    async with guarded(lingering, read=60.0) as client:
        assert await client.raw() == WHOLE
        assert await client.text() == TEXT
        await client.host.until_idle()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_cancelling_and_closing_reach_the_host(transport: Any) -> None:
    endless = stream([event(choice({"content": "hi"}))], "stall")
    async with guarded(endless, transport=transport, read=60.0) as client:
        for read in (client.raw, client.text):
            task = asyncio.ensure_future(read())
            await client.host.until(lambda: bool(client.host.connections))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await client.host.until_idle()
        response = await client.send({"stream": True})
        await response.aclose()
        await client.host.until_idle()


async def test_a_pause_of_the_reader_is_none_of_the_host() -> None:
    async with guarded(chat_stream(TEXT), read=0.1) as client:
        response = await client.send({"stream": True})
        pieces: list[bytes] = []
        async for piece in response.aiter_raw():
            if len(pieces) < 2:
                await asyncio.sleep(0.2)
            pieces.append(piece)
        assert b"".join(pieces) == WHOLE

"""What LLM hosts do to a request: the steps that scenarios are made of."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

from tests.scripted_host import Ending, event
from tests.wall.llm_hosts import AFTER, Fault, Turn, erroneous, well

SERVER_ERROR = erroneous("server_error", "server_error")
VLLM_ERROR = {"object": "error", "message": "no", "type": "InternalServerError", "code": 500}


def status(code: int, error: Any = SERVER_ERROR, **fields: str) -> Fault:
    """Answer with an error status; fields are headers, with _ for -."""

    async def fault(turn: Turn) -> None:
        await turn.answer(json.dumps(error).encode(), code, **fields)

    return fault


def by_form(*, stream: Fault, plain: Fault) -> Fault:
    """Do one thing to a stream, and another to a plain answer."""

    async def fault(turn: Turn) -> None:
        await (stream if turn.streamed else plain)(turn)

    return fault


async def reset(turn: Turn) -> None:
    turn.exchange.reset()


async def silence(turn: Turn) -> None:
    await turn.exchange.stall()


def breaks_off(ending: Ending, tokens: int = AFTER) -> Fault:
    """Stream some tokens, and then end; 0 is the role alone."""

    async def fault(turn: Turn) -> None:
        await turn.say(turn.events()[: 1 + tokens], ending)

    return fault


def part_of_the_body(share: float, then: Literal["close", "stall"]) -> Fault:
    """Promise the whole answer, and send a share of it."""

    async def fault(turn: Turn) -> None:
        body = turn.completion()
        length = str(len(body))
        await turn.answer(body[: int(len(body) * share)], then=then, content_length=length)

    return fault


def other_body(body: bytes, **fields: str) -> Fault:
    """Answer 200 with something that is no answer."""

    async def fault(turn: Turn) -> None:
        await turn.answer(body, **fields)

    return fault


def extra_event(*extra: bytes, at: int) -> Fault:
    """Answer well, with more events in front of token number `at`."""

    async def fault(turn: Turn) -> None:
        events = turn.events()
        await turn.say([*events[:at], *extra, *events[at:]])

    return fault


def only_events(*events: bytes) -> Fault:
    async def fault(turn: Turn) -> None:
        await turn.say(list(events))

    return fault


def error_after(tokens: int, error: Any) -> Fault:
    """Say in mid-stream that something is wrong, as a finish reason too."""

    async def fault(turn: Turn) -> None:
        failed = turn.chunk({}, "error").removeprefix(b"data: ")
        last = event({**json.loads(failed), **error})
        await turn.say([*turn.events()[: 1 + tokens], last, b"data: [DONE]\n\n"])

    return fault


async def no_done(turn: Turn) -> None:
    await turn.say(turn.events()[:-1])


async def pings(turn: Turn) -> None:
    """Say a role, and then only that one is there."""
    if turn.streamed:
        await _begin(turn, turn.events()[0])
        await _drip(turn, _framed(b": ping\n\n"))
    else:
        await turn.exchange.send(b"HTTP/1.1 200 So\r\nContent-Type: application/json\r\n")
        await turn.exchange.send(b"Transfer-Encoding: chunked\r\n\r\n")
        await _drip(turn, _framed(b" "))


async def slow_tokens(turn: Turn) -> None:
    """Say one token after another, each just in time."""
    every = turn.pace.limit * 0.4
    if turn.streamed:
        await _begin(turn)
        for said in turn.events():
            await asyncio.sleep(every)
            await turn.exchange.send(_framed(said))
        await turn.exchange.send(b"0\r\n\r\n")
    else:
        body = turn.completion()
        head = f"HTTP/1.1 200 So\r\nContent-Length: {len(body)}\r\n"
        await turn.exchange.send(head.encode() + b"Content-Type: application/json\r\n\r\n")
        for at in range(0, len(body), 4):
            await asyncio.sleep(every)
            await turn.exchange.send(body[at : at + 4])


def big_token(size: int) -> Fault:
    """Answer with one very long token in the middle."""

    async def fault(turn: Turn) -> None:
        # Told apart by what is around it, as all answers are.
        turn.text += "x" * size
        turn.tokens.append("x" * size)
        await well(turn)

    return fault


async def no_prefill(turn: Turn) -> None:
    """Refuse to go on with an answer; give a new one to who asks for that."""
    if turn.prefill is None:
        await well(turn)
    else:
        refusal = erroneous("invalid_prefill")
        await turn.answer(json.dumps(refusal).encode(), 400)


async def _begin(turn: Turn, *events: bytes) -> None:
    await turn.exchange.send(b"HTTP/1.1 200 So\r\nContent-Type: text/event-stream\r\n")
    await turn.exchange.send(b"Transfer-Encoding: chunked\r\n\r\n")
    for said in events:
        await turn.exchange.send(_framed(said))


async def _drip(turn: Turn, piece: bytes) -> None:
    while not turn.exchange.writer.is_closing():
        await turn.exchange.send(piece)
        await asyncio.sleep(turn.pace.limit / 8)


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)

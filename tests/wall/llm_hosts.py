"""LLM hosts that misbehave as a scenario says; every attempt is answered with a text of its own.

A text of one attempt that is given to another, or two of them spliced, is therefore seen. Texts
hold what is easily broken on the way, and are written in pieces cut anywhere, characters included.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.scripted_host import Ending, Exchange, ScriptedHost, event, stream

CHAT = "/v1/chat/completions"
TOKENS = 24
AFTER = 9
"""Tokens that come before a fault in the middle of an answer."""

_ALPHABET = 'aeknrst "\\/\t\n{}[]:,äßłøé漢字かな🙂🚀\u2028data:'


@dataclass(frozen=True)
class Pace:
    """How fast time passes in a scenario, in seconds.

    Attributes:
        limit: Time limit on the first token, and between two.
        deadline: Of the whole call.
    """

    limit: float = 0.4
    deadline: float = 6.0

    def slowed(self, times: float) -> Pace:
        return Pace(self.limit * times, self.deadline * times)


@dataclass
class Turn:
    """One attempt, as the host that it came to sees it.

    Attributes:
        call: The call it belongs to.
        host: Number of the host.
        number: Attempts of the call before it, on all hosts.
        at: When it came.
        text: What is to be answered.
        tokens: The same in pieces.
        prefill: Beginning of the answer that the request brings along, if it does.
    """

    call: str
    host: int
    number: int
    at: float
    exchange: Exchange = field(repr=False)
    rng: random.Random = field(repr=False)
    pace: Pace = field(repr=False)
    text: str = ""
    tokens: list[str] = field(default_factory=list, repr=False)
    prefill: str | None = None

    def __post_init__(self) -> None:
        nonce = f"{self.rng.getrandbits(40):010x}"
        middle = (self.rng.choice(_ALPHABET) for _ in range(3 * TOKENS - 24))
        self.tell(f"{nonce} {''.join(middle)} “{nonce}”")

    def tell(self, text: str) -> None:
        """Let this be what is to be answered."""
        self.text = text
        cuts = sorted(self.rng.sample(range(1, len(text)), min(TOKENS, len(text)) - 1))
        ends = zip([0, *cuts], [*cuts, len(text)], strict=True)
        self.tokens = [text[start:end] for start, end in ends]

    @property
    def streamed(self) -> bool:
        return bool(self.exchange.payload.get("stream"))

    @property
    def model(self) -> str:
        return f"model-of-host-{self.host}"

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens that no other attempt costs."""
        output = 1 + int(self.text[:4].encode().hex(), 16) % 1_000_000
        return {
            "prompt_tokens": 7,
            "completion_tokens": output,
            "total_tokens": 7 + output,
        }

    def completion(self) -> bytes:
        """Return the answer that is not streamed."""
        message = {"role": "assistant", "content": self.text}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return self._json("chat.completion", choices, {"usage": self.usage})

    def events(self) -> list[bytes]:
        """Return the answer that is streamed: role, tokens, finish reason, usage, [DONE]."""
        deltas = [{"role": "assistant", "content": ""}, *({"content": t} for t in self.tokens)]
        return [
            *(self.chunk(delta) for delta in deltas),
            self.chunk({}, "stop"),
            b"data: " + self._json("chat.completion.chunk", [], {"usage": self.usage}) + b"\n\n",
            b"data: [DONE]\n\n",
        ]

    def chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
        return b"data: " + self._json("chat.completion.chunk", choices, {}) + b"\n\n"

    def _json(self, kind: str, choices: list[Any], more: dict[str, Any]) -> bytes:
        about = {"id": f"chat-{self.text[:10]}", "object": kind, "created": 1, "model": self.model}
        is_ascii = self.rng.random() < 0.5
        return json.dumps({**about, "choices": choices, **more}, ensure_ascii=is_ascii).encode()

    def cut(self, data: bytes) -> list[bytes]:
        """Cut bytes anywhere, into a few pieces."""
        most = min(6, len(data) - 1)
        cuts = sorted(self.rng.sample(range(1, len(data)), max(0, most)))
        ends = zip([0, *cuts], [*cuts, len(data)], strict=True)
        return [data[start:end] for start, end in ends]

    async def say(self, events: list[bytes], then: Ending = "whole") -> None:
        """Stream events, in pieces cut anywhere."""
        await stream(self.cut(b"".join(events)), then)(self.exchange)

    async def answer(self, body: bytes, status: int = 200, then: str = "", **fields: str) -> None:
        """Answer with a body; `then` "stall" or "close" breaks off after what is there of it."""
        head = {"content-type": "application/json", "content-length": str(len(body))}
        head |= {name.replace("_", "-"): value for name, value in fields.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        said = f"HTTP/1.1 {status} So\r\n{lines}\r\n".encode() + body
        for piece in self.cut(said):
            await self.exchange.send(piece)
            await asyncio.sleep(0)
        if then == "stall":
            await self.exchange.stall()
        elif then == "close":
            self.exchange.close()


Fault = Callable[[Turn], Awaitable[None]]
Where = Literal["first", "primary", "all"]
"""Which attempts a fault meets: the first of each call, those at the host that was the first to be
asked at all, or every one."""


async def well(turn: Turn) -> None:
    """Answer as one should."""
    if turn.streamed:
        await turn.say(turn.events())
    else:
        await turn.answer(turn.completion())


class Site:
    """Hosts, and the attempts that came to them.

    Attributes:
        hosts: The hosts.
        turns: Attempts by call, oldest first.
        primary: Number of the host that was the first to be asked; None until one is.
        playing: Attempts being answered now, by host.
    """

    def __init__(
        self, count: int, fault: Fault, where: Where, *, others: Fault = well, pace: Pace
    ) -> None:
        self._fault, self._where, self._others = fault, where, others
        self._rng = random.Random(41)
        self._pace = pace
        self.hosts = [WallHost(self._plays(number)) for number in range(count)]
        self.turns: dict[str, list[Turn]] = defaultdict(list)
        self.primary: int | None = None
        self.playing = [0] * count

    @property
    def urls(self) -> list[str]:
        return [host.url for host in self.hosts]

    def all_turns(self, host: int | None = None) -> list[Turn]:
        """Return the attempts of all calls, those at one host if it is given."""
        turns = [turn for turns in self.turns.values() for turn in turns]
        return [turn for turn in turns if host is None or turn.host == host]

    def heal(self) -> None:
        """Answer as one should from now on."""
        self._fault = well

    def _plays(self, host: int) -> Callable[[Exchange], Awaitable[None]]:
        async def play(exchange: Exchange) -> None:
            messages = exchange.payload["messages"]
            call = next(said["content"] for said in messages if said["role"] == "user")
            before = self.turns[call]
            now = time.monotonic()
            turn = Turn(call, host, len(before), now, exchange, self._rng, self._pace)
            self._continue(turn, messages[-1])
            before.append(turn)
            if self.primary is None:
                self.primary = host
            self.playing[host] += 1
            try:
                await (self._fault if self._is_met(turn) else self._others)(turn)
            finally:
                self.playing[host] -= 1

        return play

    def _continue(self, turn: Turn, last: dict[str, Any]) -> None:
        """Go on with an answer whose beginning is given."""
        if last["role"] == "assistant":
            turn.prefill = given = last["content"]
            begun = [turn.text for turn in self.turns[turn.call]]
            turn.tell(next(text for text in begun if text.startswith(given))[len(given) :])

    def _is_met(self, turn: Turn) -> bool:
        if self._where == "first":
            return turn.number == 0
        return self._where == "all" or turn.host == self.primary


class WallHost(ScriptedHost):
    """A scripted host that can leave its port, and come back to it."""

    async def refuse(self) -> None:
        """Take no new connection; those that are open stay."""
        assert self._server is not None
        self._server.close()

    async def die(self) -> None:
        """Take no new connection, and break those that are open."""
        await self.refuse()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def rise(self) -> None:
        """Take connections again."""
        port = int(self.url.rpartition(":")[2])
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)


@asynccontextmanager
async def serving(site: Site) -> AsyncIterator[Site]:
    """Let the hosts of a site listen."""
    async with contextlib.AsyncExitStack() as stack:
        for host in site.hosts:
            await stack.enter_async_context(host)
        yield site


def heading(call: str, before: str = "") -> dict[str, Any]:
    """Return the request of a call; `before` is what is said in front of the question."""
    messages = [{"role": "system", "content": before}] * bool(before)
    messages.append({"role": "user", "content": call})
    options = {"include_usage": True}
    return {"model": "m", "messages": messages, "max_tokens": 500, "stream_options": options}


def erroneous(code: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """Return an error as hosts put it."""
    return {"error": {"message": f"no: {code}", "type": kind, "code": code, "param": None}}


def after(seconds: float) -> Fault:
    """Answer well, but not at once, and only to who still waits."""

    async def fault(turn: Turn) -> None:
        try:
            async with asyncio.timeout(seconds):
                await turn.exchange.stall()
        except TimeoutError:
            await well(turn)

    return fault


def spread(every: float) -> Fault:
    """Stream a token after another, so many seconds apart."""

    async def fault(turn: Turn) -> None:
        await stream(turn.events(), pause=every)(turn.exchange)

    return fault


def in_band(error: dict[str, Any]) -> bytes:
    return event(error)

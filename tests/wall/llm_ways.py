"""Ways to ask hosts for a chat: ours, another SDK's on top of ours, and a careless one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, Self
from unittest.mock import patch

import httpx
import httpx2
import openai

from shared.infrastructure.balancing import httpx2_transport
from shared.infrastructure.balancing.classify import status_error
from shared.infrastructure.balancing.config import AnswerTimeoutConfig
from shared.infrastructure.balancing.distributed_llm import DistributedLLMClient
from shared.infrastructure.balancing.hosts import Capability, LLMHost
from shared.infrastructure.balancing.httpx_transport import Buffering
from shared.infrastructure.http import TimeoutConfig
from shared.infrastructure.http.library import HTTPX
from shared.infrastructure.resilience import RetryConfig, ServiceError
from shared.models import StreamRestarted
from tests.wall.llm_hosts import CHAT, Pace, heading

QUICK = RetryConfig(base_delay=0.05, max_delay=0.2)
EVERYTHING = frozenset(Capability)
# Ten tokens of the slow stream of `llm_faults` take as long as one window.
SLOW = 20.0


@dataclass
class Outcome:
    """What came of a call.

    Attributes:
        text: Text delivered, since the answer last began.
        error: What was raised.
        model: Model that is said to have answered.
        usage: Tokens that it is said to have cost.
        restarts: Times the answer began anew.
        took: Seconds.
    """

    text: str = ""
    error: Exception | None = None
    model: str | None = None
    usage: dict[str, Any] | None = None
    restarts: int = 0
    took: float = 0.0

    def hears(self, chunk: Any) -> None:
        """Take in a chunk of a stream: one of ours, or one of openai's."""
        if isinstance(chunk, StreamRestarted):
            self.restarts += 1
            self.text = ""
            return
        self.model = chunk.model
        self.text += "".join(choice.delta.content or "" for choice in chunk.choices)
        if chunk.usage is not None:
            self.usage = _plain(chunk.usage.model_dump())

    def reads(self, answer: dict[str, Any]) -> None:
        """Take in a whole answer."""
        self.text = answer["choices"][0]["message"]["content"]
        self.model, self.usage = answer["model"], _plain(answer["usage"])


def _plain(usage: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in usage.items() if isinstance(value, int)}


Ask = Callable[[Any, dict[str, Any], Outcome], Awaitable[None]]
Errors = tuple[type[Exception], ...]
Opened = Callable[..., AbstractAsyncContextManager[Any]]


def options_of(pace: Pace) -> dict[str, Any]:
    """Return the options of a pool whose time passes so fast."""
    return {
        "retry_config": QUICK,
        "timeout_config": TimeoutConfig(read=2 * pace.limit, total=pace.deadline),
        "answer_timeouts": AnswerTimeoutConfig(
            first_token=pace.limit,
            idle=pace.limit,
            min_chars_per_second=SLOW / pace.limit,
            slow_window=pace.limit,
        ),
    }


def hosts_of(urls: Sequence[str], **options: Any) -> list[LLMHost]:
    # With a key of its own: if that is refused, it is the host that is set up wrongly.
    options = {"capabilities": EVERYTHING, "api_key": "the host's", **options}
    return [LLMHost(f"host-{number}", url, **options) for number, url in enumerate(urls)]


_authorities = cache(HTTPX.default_tls)


def _one_tls() -> Any:
    """Read the public authorities once: it takes longer than most scenarios."""
    return patch.object(HTTPX, "default_tls", _authorities)


@asynccontextmanager
async def our_pool(
    urls: Sequence[str], pace: Pace, **options: Any
) -> AsyncIterator[DistributedLLMClient]:
    """Lend a pool over the hosts."""
    with _one_tls():
        pool = DistributedLLMClient(hosts_of(urls), **{**options_of(pace), **options})
    async with pool:
        yield pool


def openai_on_our_pool(recovery: Buffering) -> Opened:
    """Return what lends an unmodified openai client on a balanced transport."""

    @asynccontextmanager
    async def opened(
        urls: Sequence[str], pace: Pace, **options: Any
    ) -> AsyncIterator[openai.AsyncOpenAI]:
        with _one_tls():
            transport = httpx2_transport.balanced_transport(
                hosts_of(urls), recovery=recovery, **{**options_of(pace), **options}
            )
        async with httpx2.AsyncClient(transport=transport, trust_env=False) as http:
            yield openai.AsyncOpenAI(
                base_url="http://pool/v1", api_key="k", max_retries=0, http_client=http
            )

    return opened


class Way(NamedTuple):
    """A way to ask.

    Attributes:
        name: What it is called.
        ask: Asks, and lets the outcome hear what comes.
        is_streamed: Whether a stream is asked for.
        is_live: Whether text is delivered before all of it is there, and stays so.
        opened: Makes the client.
        clean: Errors that its callers can be expected to handle.
    """

    name: str
    ask: Ask
    is_streamed: bool
    is_live: bool
    opened: Opened = our_pool
    clean: Errors = (ServiceError,)

    async def call(self, client: Any, name: str, patience: float) -> Outcome:
        """Make one call, and end it after so many seconds."""
        outcome = Outcome()
        began = time.monotonic()
        try:
            async with asyncio.timeout(patience):
                await self.ask(client, heading(name), outcome)
        except Exception as error:  # whatever it is, it is to be judged
            outcome.error = error
        outcome.took = time.monotonic() - began
        return outcome


async def ask_chat(pool: DistributedLLMClient, request: dict[str, Any], outcome: Outcome) -> None:
    outcome.reads((await pool.chat(request)).model_dump())


async def ask_post(pool: DistributedLLMClient, request: dict[str, Any], outcome: Outcome) -> None:
    answer = await pool.post(CHAT, json=request)
    if answer.is_error:
        raise status_error(answer)
    outcome.reads(answer.json())


def ask_stream(recovery: str) -> Ask:
    async def ask(pool: DistributedLLMClient, request: dict[str, Any], outcome: Outcome) -> None:
        async with pool.stream(request, recovery=recovery) as chunks:  # type: ignore[arg-type]
            async for chunk in chunks:
                outcome.hears(chunk)

    return ask


async def ask_openai(client: openai.AsyncOpenAI, request: dict[str, Any], outcome: Outcome) -> None:
    options = {name: value for name, value in request.items() if name != "stream_options"}
    done = await client.chat.completions.create(**options)
    outcome.reads(done.model_dump())


async def ask_openai_stream(
    client: openai.AsyncOpenAI, request: dict[str, Any], outcome: Outcome
) -> None:
    stream = await client.chat.completions.create(**request, stream=True)
    async with stream:
        async for chunk in stream:
            outcome.hears(chunk)


@dataclass
class Careless:
    """What one writes in five minutes: turns, one retry elsewhere, a time limit on each read."""

    urls: Sequence[str]
    http: httpx.AsyncClient
    calls: int = field(default=0)

    @classmethod
    @asynccontextmanager
    async def opened(cls, urls: Sequence[str], pace: Pace, **_: Any) -> AsyncIterator[Self]:
        tls = _authorities()
        async with httpx.AsyncClient(timeout=2 * pace.limit, verify=tls) as http:
            yield cls(urls, http)

    def two_urls(self) -> list[tuple[bool, str]]:
        """Return whose turn it is, and who comes after; and which of them is the last."""
        self.calls += 1
        turns = (self.calls, self.calls + 1)
        return [(n > self.calls, self.urls[n % len(self.urls)] + CHAT) for n in turns]

    async def ask(self, request: dict[str, Any], outcome: Outcome) -> None:
        for is_last, url in self.two_urls():
            try:
                answer = await self.http.post(url, json=request)
                outcome.reads(answer.raise_for_status().json())
            except httpx.HTTPError:
                if is_last:
                    raise
            else:
                return

    async def ask_stream(self, request: dict[str, Any], outcome: Outcome) -> None:
        asked = {**request, "stream": True}
        for is_last, url in self.two_urls():
            try:
                async with self.http.stream("POST", url, json=asked) as answer:
                    answer.raise_for_status()
                    await answer.aread()
                    for line in answer.text.split("\n"):
                        _hear(line, outcome)
            except httpx.HTTPError:
                if is_last:
                    raise
            else:
                return


def _hear(line: str, outcome: Outcome) -> None:
    if not line.startswith("data: {"):
        return
    chunk = json.loads(line[6:])
    outcome.model, outcome.usage = chunk.get("model"), chunk.get("usage")
    for choice in chunk.get("choices", ()):
        outcome.text += choice["delta"].get("content") or ""


def _stream(recovery: str, *, is_live: bool) -> Way:
    return Way(f"stream, {recovery}", ask_stream(recovery), True, is_live)


CHAT_WAY = Way("chat", ask_chat, False, False)
POST_WAY = Way("post", ask_post, False, False)
LIVE_WAY = _stream("error", is_live=True)
RESTART_WAY = _stream("restart", is_live=False)
BUFFER_WAY = _stream("buffer", is_live=False)
CONTINUE_WAY = _stream("continue", is_live=True)
OURS = [CHAT_WAY, POST_WAY, LIVE_WAY, RESTART_WAY, BUFFER_WAY, CONTINUE_WAY]

# It says itself what it thinks of an event that is no JSON.
_OPENAI_ERRORS = (ServiceError, openai.OpenAIError, httpx2.HTTPError, json.JSONDecodeError)
_LIVE, _BUFFERED = openai_on_our_pool("error"), openai_on_our_pool("buffer")
UNDER_OPENAI = [
    Way("openai", ask_openai, False, False, _LIVE, _OPENAI_ERRORS),
    Way("openai, stream", ask_openai_stream, True, True, _LIVE, _OPENAI_ERRORS),
    Way("openai, buffer", ask_openai_stream, True, False, _BUFFERED, _OPENAI_ERRORS),
]

OPENAI_STREAMS = [way for way in UNDER_OPENAI if way.is_streamed]

_CARELESS = (Careless.opened, (httpx.HTTPError, ValueError, LookupError))
CARELESS = [
    Way("careless", Careless.ask, False, False, *_CARELESS),
    Way("careless, stream", Careless.ask_stream, True, False, *_CARELESS),
]

"""Requests with their calls, and scripted answers, for what counts and keeps them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from shared.infrastructure.balancing.accounting import CACHED, AnswerCacheConfig, AnswerCacheLayer
from shared.infrastructure.balancing.accounting.replay import ReplayedStream
from shared.infrastructure.balancing.answers import STREAM
from shared.infrastructure.balancing.call import CALL, Call, CallOptions
from shared.infrastructure.balancing.dialects import Dialect, Event, dialect_of
from shared.infrastructure.balancing.facts import facts_of
from shared.infrastructure.resilience import PLAIN_CALL, Send, stack
from shared.infrastructure.testing import FakeClock

CHAT_PATH = "/v1/chat/completions"
Ask = Send[httpx.Request, httpx.Response]
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def question(
    path: str = CHAT_PATH,
    *,
    headers: dict[str, str] | None = None,
    options: CallOptions | None = None,
    **changes: Any,
) -> httpx.Request:
    """Return a request, of a chat that may be kept unless `changes` say otherwise."""
    payload = {
        "model": "m",
        "temperature": 0,
        "messages": [{"role": "user", "content": "How are you?"}],
        **changes,
    }
    request = httpx.Request("POST", f"http://pool{path}", json=payload, headers=headers)
    facts = facts_of(path, payload)
    request.extensions = {CALL: Call(facts, 3, options=options or CallOptions())}
    return request


def chat_answer(text: str = "Fine.", reason: str = "stop", **changes: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "c-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m-1",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": USAGE,
        **changes,
    }


def chat_events(*texts: str, reason: str | None = "stop", usage: bool = True) -> bytes:
    head = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m-1"}
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None} for text in texts]
    if reason is not None:
        choices.append({"index": 0, "delta": {}, "finish_reason": reason})
    chunks: list[dict[str, Any]] = [{**head, "choices": [choice]} for choice in choices]
    if usage:
        chunks.append({**head, "choices": [], "usage": USAGE})
    events = b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks)
    return events + b"data: [DONE]\n\n"


class BrokenStream(ReplayedStream):
    """A stream that fails after what it has."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in super().__aiter__():
            yield piece
        raise httpx.ReadError("gone")

    async def events(self) -> AsyncIterator[Event]:
        async for event in super().events():
            yield event
        raise httpx.ReadError("gone")


class Hosts:
    """What stands for all that is below the cache: answers as scripted, and counts.

    Attributes:
        asked: Requests that came through.
        answer: What they get: a body, the bytes of a stream, a response or an error.
        gate: Nothing is answered before it is set.
    """

    def __init__(self, answer: Any = None) -> None:
        self.asked: list[httpx.Request] = []
        self.answer: Any = chat_answer() if answer is None else answer
        self.gate = asyncio.Event()
        self.gate.set()
        self.cancelled = 0
        self.stream_class: Callable[[bytes, Dialect], ReplayedStream] = ReplayedStream

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        answer = self.answer
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        extensions = {CALL: request.extensions[CALL]}
        if isinstance(answer, dict):
            return httpx.Response(200, json=answer, extensions=extensions)
        dialect = dialect_of(request.url.path)
        assert dialect is not None
        stream = self.stream_class(answer, dialect)
        return httpx.Response(
            200,
            headers={"content-type": "text/event-stream"},
            stream=stream,
            extensions={**extensions, STREAM: stream},
        )


def cached(hosts: Hosts, clock: FakeClock | None = None, **config: Any) -> Ask:
    layer = AnswerCacheLayer(AnswerCacheConfig(**config), clock=clock or FakeClock())
    return stack(hosts, layer, semantics=PLAIN_CALL)


def how(response: httpx.Response) -> str | None:
    return response.extensions.get(CACHED)

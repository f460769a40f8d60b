"""A pool by script: what each attempt of a call gets, without sockets or time."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

from shared.infrastructure.balancing.answers import STREAM
from shared.infrastructure.balancing.call import ATTEMPT, CALL, PARSED, Attempt, Call, call_of
from shared.infrastructure.balancing.classify import fault_of
from shared.infrastructure.balancing.dialects import Event
from shared.infrastructure.balancing.dialects.openai import OpenAIChat
from shared.infrastructure.balancing.facts import facts_of
from shared.infrastructure.balancing.typed import ChatStream, chat_payload
from tests.scripted_host import choice, completion

URL = "http://pool/v1/chat/completions"
DIALECT = OpenAIChat()
QUESTION = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


@dataclass
class Reply:
    """What one attempt gets.

    Attributes:
        events: JSON of the events of a stream.
        error: Raised at the end of the stream, or instead of a response if there are no events.
        body: JSON of an answer that is no stream.
        status: Of the response.
        hangs: Whether the stream falls silent for ever, in place of its end.
    """

    events: Iterable[Any] = ()
    error: Exception | None = None
    body: Any = None
    status: int = 200
    hangs: bool = False


def saying(text: str, error: Exception | None = None, **options: Any) -> Reply:
    """A stream of two characters an event; whole with reason and usage, unless it fails."""
    deltas: list[Any] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": text[at : at + 2]} for at in range(0, len(text), 2)]
    events = [choice(delta) for delta in deltas]
    if error is None and not options.get("hangs"):
        events.append(choice({}, "stop"))
        events.append({"object": "chat.completion.chunk", "choices": [], "usage": USAGE})
    return Reply(events, error, **options)


def whole(text: str, **more: Any) -> Reply:
    return Reply(body={**completion(text), **more})


def refusing(status: int, message: str) -> Reply:
    return Reply(status=status, body={"error": {"message": message}})


class _Stream(httpx.AsyncByteStream):
    def __init__(self, reply: Reply, attempt: Attempt, pool: "ScriptedPool", call: Call) -> None:
        self._reply, self._attempt, self._pool, self._call = reply, attempt, pool, call
        self.is_open = True
        pool.open += 1

    async def events(self) -> AsyncGenerator[Event, None]:
        for data in self._reply.events:
            event = DIALECT.read_event(None, json.dumps(data).encode())
            self._attempt.characters += event.characters
            self._attempt.usage = event.usage or self._attempt.usage
            if event.is_content and self._attempt.first_token_at is None:
                self._attempt.first_token_at = self._pool.now
            self._pool.now += 1.0
            yield event
        if self._reply.hangs:
            await asyncio.Event().wait()
        if self._reply.error is not None:
            self._end(self._reply.error)
            raise self._reply.error
        self._end(None)

    async def aclose(self) -> None:
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self.is_open:
            self.is_open = False
            self._pool.open -= 1
            fault = fault_of(error) if error else None
            self._call.end(self._attempt, self._pool.now, fault, "ended")


@dataclass
class ScriptedPool:
    """An exchange; attempts go to the hosts a, b, c, … and get the replies in that order.

    Attributes:
        open: Streams that nobody has closed yet.
        requests: Bodies of the requests so far.
        pauses: Attempts that were waited for.
        patient: What `pause` says.
        now: Instant; each event takes a second.
    """

    replies: list[Reply]
    open: int = 0
    requests: list[Any] = field(default_factory=list[Any])
    calls: list[Call] = field(default_factory=list[Call])
    pauses: int = 0
    patient: bool = True
    now: float = 10.0

    def request(self, payload: Any = None, url: str = URL, max_attempts: int = 4) -> httpx.Request:
        payload = QUESTION if payload is None else payload
        request = httpx.Request("POST", url, json=payload)
        call = Call(facts_of(request.url.path, payload), max_attempts, self.now)
        request.extensions = {CALL: call}
        return request

    def stream(self, payload: Any = None, recovery: Any = "error", **options: Any) -> ChatStream:
        body = chat_payload(payload or QUESTION, streamed=True)
        request = self.request(body, max_attempts=options.pop("max_attempts", 4))
        return ChatStream(self.exchange, request, recovery, pause=self.pause, **options)

    async def pause(self, call: Call) -> bool:
        self.pauses += 1
        return self.patient

    async def exchange(self, request: httpx.Request) -> httpx.Response:
        call = call_of(request.extensions)
        self.calls.append(call)
        attempt = call.depart("abcdefgh"[len(self.requests)], self.now, call.facts.model)
        reply = self.replies[len(self.requests)]
        self.requests.append(json.loads(request.content))
        extensions: dict[str, Any] = {CALL: call, ATTEMPT: attempt}
        if reply.error is not None and not reply.events:
            call.end(attempt, self.now, fault_of(reply.error), "failed")
            raise reply.error
        if reply.body is not None:
            self.now += 1.0
            response = httpx.Response(reply.status, json=reply.body)
            extensions |= {PARSED: reply.body} if reply.status == 200 else {}
            attempt.usage = reply.body.get("usage")
            call.end(attempt, self.now, fault_of(response), str(reply.status))
            response.extensions = extensions
            return response
        stream = _Stream(reply, attempt, self, call)
        return httpx.Response(200, stream=stream, extensions={**extensions, STREAM: stream})


def pool_with(*replies: Reply) -> ScriptedPool:
    return ScriptedPool(list(replies))

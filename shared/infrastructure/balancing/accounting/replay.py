"""Streams that are written down while they are read, and answers that are read out as streams."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Protocol, cast

import httpx

from shared.infrastructure.balancing.accounting.questions import CHAT
from shared.infrastructure.balancing.answers import ServerEvent, SSEParser
from shared.infrastructure.balancing.call import JSONObject
from shared.infrastructure.balancing.dialects import Dialect, Event
from shared.infrastructure.balancing.dialects.payloads import as_object, as_objects
from shared.infrastructure.balancing.errors import InvalidStreamError
from shared.infrastructure.resilience import Verdict
from shared.infrastructure.resilience.layer import Settle
from shared.models import ChatCompletionChunk

EVENT_STREAM = "text/event-stream"
JSON = "application/json"

# Dialects that name their events, after the type in them.
_NAMED = frozenset({"anthropic.messages", "openai.responses"})
# What an event takes on the wire beside its data.
_FRAME_BYTES = len(b"data: \n\n")
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


class EventSource(Protocol):
    """A stream of events that was checked: read it as bytes or as events, not as both."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    def events(self) -> AsyncIterator[Event]:
        """Yield its events."""
        ...

    def on_over(self, settle: Settle) -> None:
        """Call `settle` when it is over."""
        ...

    async def aclose(self) -> None:
        """Want no more of it."""
        ...


class RecordedStream(httpx.AsyncByteStream):
    """A stream that goes by, and is written down on the way.

    Args:
        inner: The stream.
        dialect: How its events are read.
        max_bytes: Of its events; what is longer is not written down.
        keep: Given the events, once all have come; never if it breaks off or is left before.
    """

    def __init__(
        self,
        inner: EventSource,
        dialect: Dialect,
        max_bytes: int,
        keep: Callable[[list[JSONObject]], None],
    ) -> None:
        self.on_over = inner.on_over
        self._inner = inner
        self._read_event = dialect.read_event
        self._left = max_bytes
        self._keep = keep
        self._said: list[JSONObject] = []
        self._has_ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parser = SSEParser()
        async for piece in self._inner:
            self._read(parser.feed, piece)
            yield piece
        self._read(parser.flush)
        self._finish(has_ended=True)

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events, as those of the stream itself."""
        events = cast("AsyncGenerator[Event, None]", self._inner.events())
        async with aclosing(events):
            async for event in events:
                # They come parsed: nobody knows any more how long they were.
                is_kept = event.data is not None and self._left >= 0
                self._take(event, len(_ENCODE(event.data)) if is_kept else 0)
                yield event
        self._finish(has_ended=True)

    async def aclose(self) -> None:
        # Some readers leave as soon as they have read that it is over.
        self._finish(has_ended=self._has_ended)
        await self._inner.aclose()

    def _read(self, parse: Callable[..., list[ServerEvent]], *piece: bytes) -> None:
        if self._left < 0:
            return
        try:
            for name, data in parse(*piece):
                self._take(self._read_event(name, data), len(data))
        except InvalidStreamError:
            self._forget()

    def _take(self, event: Event, length: int) -> None:
        if event.is_end:
            self._has_ended = True
        if event.data is not None and self._left >= 0:
            self._said.append(event.data)
            self._left -= length + _FRAME_BYTES
            if self._left < 0:
                self._forget()

    def _forget(self) -> None:
        self._left = -1
        self._said.clear()

    def _finish(self, *, has_ended: bool) -> None:
        said, self._said = self._said, []
        if has_ended and said:
            self._keep(said)


class ReplayedStream(httpx.AsyncByteStream):
    """A stream that is there as a whole."""

    def __init__(self, content: bytes, dialect: Dialect) -> None:
        self._content = content
        self._dialect = dialect

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events in it."""
        parser = SSEParser()
        for name, data in (*parser.feed(self._content), *parser.flush()):
            yield self._dialect.read_event(name, data)

    def on_over(self, settle: Settle) -> None:
        """It is over from the beginning."""
        settle(Verdict.OK)


def answer_of(said: list[JSONObject]) -> JSONObject | None:
    """Return the chat answer that was streamed, as it would have come whole; None if it is none."""
    # Not before it is needed: what is typed stands on accounting.
    from shared.infrastructure.balancing.typed.accumulate import AnswerBuilder  # noqa: PLC0415

    builder = AnswerBuilder()
    try:
        for chunk in said:
            builder.add(ChatCompletionChunk(chunk))
    except InvalidStreamError:
        return None
    return builder.completion()


def stream_of(answer: JSONObject, *, has_usage: bool) -> bytes:
    """Return a whole chat answer as the stream it would have come as.

    Args:
        answer: The answer.
        has_usage: Whether a last chunk says how many tokens it cost.
    """
    head = {k: v for k, v in answer.items() if k not in {"choices", "usage", "object"}}
    head["object"] = "chat.completion.chunk"
    chunks: list[JSONObject] = []
    for choice in as_objects(answer.get("choices")):
        index, reason = choice.get("index", 0), choice.get("finish_reason")
        delta = _delta_of(as_object(choice.get("message")))
        said: JSONObject = {"index": index, "delta": delta, "finish_reason": None}
        if choice.get("logprobs") is not None:
            said["logprobs"] = choice["logprobs"]
        end: JSONObject = {"index": index, "delta": {}, "finish_reason": reason}
        chunks += [{**head, "choices": [said]}, {**head, "choices": [end]}]
    if has_usage:
        chunks.append({**head, "choices": [], "usage": answer.get("usage")})
    return as_events(CHAT, chunks)


def as_events(dialect: str, said: list[JSONObject]) -> bytes:
    """Return events as the body of a stream."""
    if dialect in _NAMED:
        return b"".join(b"event: %s\n%s" % (_name(one), _data(one)) for one in said)
    return b"".join(map(_data, said)) + b"data: [DONE]\n\n"


def _delta_of(message: JSONObject) -> JSONObject:
    delta = {key: value for key, value in message.items() if value is not None}
    if calls := as_objects(delta.get("tool_calls")):
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    return delta


def _name(event: JSONObject) -> bytes:
    return str(event.get("type", "message")).encode()


def _data(event: JSONObject) -> bytes:
    return b"data: %s\n\n" % as_json(event)


def as_json(value: Any) -> bytes:
    """Return JSON as bytes, models in it included."""
    text = json.dumps(value, separators=(",", ":"), default=lambda model: model.model_dump())
    return text.encode()

"""Read what hosts and callers send as JSON, trusting none of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

from shared.infrastructure.balancing.dialects.protocol import Event, JSONObject
from shared.infrastructure.balancing.errors import InvalidResponseError, InvalidStreamError

END_MARK = b"[DONE]"
"""The data of the event that ends a stream of the OpenAI API."""

_END = Event(is_end=True)
_SKIPPED = Event()
_EXCERPT = 200
# Half the cost of `json.loads`, which looks for an encoding first: it is paid for every event.
_decode = json.JSONDecoder().raw_decode


def parse_object(content: bytes, error: type[InvalidResponseError]) -> JSONObject:
    """Return the JSON object that `content` is, or raise `error`."""
    value: object
    try:
        text = content.decode()
        value, end = _decode(text)
        if end != len(text):
            value = _loads(content)
    except (ValueError, RecursionError):
        value = _loads(content)
    if value is None:
        raise error(f"not valid JSON: {content[:_EXCERPT]!r}")
    if not isinstance(value, dict):
        raise error(f"not a JSON object: {content[:_EXCERPT]!r}")
    return cast("JSONObject", value)


def _loads(content: bytes) -> object:
    """Return what a JSON text in any encoding says; None if it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def parse_event(data: bytes) -> JSONObject | Event:
    """Return the JSON object that an event holds, or what an event means that holds none.

    Raises:
        InvalidStreamError: It begins like JSON and is no JSON object: it may have been a token.
    """
    if data[:1] != b"{":
        data = data.strip()
        if data[:1] != b"{":
            return _other_event(data)
    value: JSONObject  # it begins like one
    try:
        text = data.decode()
        value, end = _decode(text)
        if end != len(text) and not text[end:].isspace():
            raise ValueError
    except (ValueError, RecursionError):
        raise InvalidStreamError(f"not valid JSON: {data[:_EXCERPT]!r}") from None
    return value


def _other_event(data: bytes) -> Event:
    if data.startswith(END_MARK):
        return _END
    if data[:1] == b"[":
        raise InvalidStreamError(f"not a JSON object: {data[:_EXCERPT]!r}")
    return _SKIPPED


def as_object(value: object) -> JSONObject:
    """Return a JSON object; an empty one if `value` is something else."""
    return cast("JSONObject", value) if isinstance(value, dict) else {}


def as_objects(value: object) -> list[JSONObject]:
    """Return the JSON objects in a JSON array; none if `value` is something else."""
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("JSONObject", item) for item in items if isinstance(item, dict)]


def as_text(value: object) -> str:
    """Return a string; an empty one if `value` is something else."""
    return value if isinstance(value, str) else ""


def count_of(value: object) -> int | None:
    """Return a whole number above 0; None if `value` is something else."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return cast("int", value) if is_count else None


def usage_in(body: JSONObject) -> JSONObject | None:
    """Return the field `usage`, if it is an object that says anything."""
    return as_object(body.get("usage")) or None


def error_in(body: JSONObject) -> JSONObject | None:
    """Return the error that an answer, or an event of one, reports; None if it reports none."""
    error: Any = body if body.get("object") == "error" else body.get("error")
    if not error:
        return None
    if isinstance(error, dict):
        return cast("JSONObject", error)
    message = body.get("message")
    return {"message": str(error) if message is None else f"{error}: {message}"}


# What an event is called that hosts without a word for errors put them into.
_ERROR_WORDS = ("detail", "errors", "error_message")


def event_error(name: str | None, event: JSONObject) -> JSONObject | None:
    """Return the error that an event is, of whatever form; None if it is none.

    Args:
        name: Its name on the wire, if it has one.
        event: Its data, which is no piece of an answer.
    """
    error = error_in(event)
    if error is not None:
        return error
    is_error = "error" in (name, event.get("type"), event.get("status"))
    for word in _ERROR_WORDS:
        if said := event.get(word):
            first = next(iter(as_objects(said)), None)
            return first or as_object(said) or {**event, "message": str(said)}
    return event if is_error else None


def unknown_error(name: str | None, event: JSONObject) -> JSONObject | None:
    """Return the error that an event is which has no type, or is named one; an empty one is none.

    Args:
        name: Its name on the wire, if it has one.
        event: Its data.
    """
    error = event_error(name, event)
    return event or None if error is None else error


def as_json(value: object) -> str:
    """Return a value as JSON; empty text if it has none."""
    try:
        return json.dumps(value, default=str)
    except (ValueError, TypeError, RecursionError):
        return ""


def parts_text(content: object, depth: int = 4) -> Iterable[str]:
    """Yield the text in the content of a message: a string, or parts of any kind."""
    if isinstance(content, str):
        yield content
        return
    if not depth:
        return
    items = cast("list[object]", content) if isinstance(content, list) else []
    for item in items:
        if isinstance(item, str):
            yield item
        else:
            part = as_object(item)
            yield as_text(part.get("text")) or as_text(part.get("thinking"))
            yield from parts_text(part.get("content"), depth - 1)


def has_part(messages: object, kinds: frozenset[str]) -> bool:
    """Say whether a message has a part of one of `kinds`."""
    for message in as_objects(messages):
        content = message.get("content")
        if isinstance(content, str):  # most of them
            continue
        if any(as_text(part.get("type")) in kinds for part in as_objects(content)):
            return True
    return False


def as_prompt(first: object, messages: Iterable[JSONObject]) -> str:
    """Return what a model reads: tools or a system prompt first, then the messages in order."""
    lines: list[str] = []
    if first:
        lines.append(first if isinstance(first, str) else as_json(first))
    for message in messages:
        text = "".join(parts_text(message.get("content")))
        lines.append(f"{message.get('role')}: {text}{_calls_text(message)}")
    return "\n".join(lines)


def _calls_text(message: JSONObject) -> str:
    """Return what a message says of tools that were called, as the model reads it."""
    said = [message.get("arguments"), message.get("output")]
    for call in as_objects(message.get("tool_calls")):
        function = as_object(call.get("function"))
        said += [function.get("name"), function.get("arguments")]
    return "".join(map(as_text, said))

"""The dialect of the Messages API of Anthropic."""

from __future__ import annotations

from collections.abc import Callable

from shared.infrastructure.balancing.dialects.payloads import (
    as_json,
    as_object,
    as_objects,
    as_prompt,
    as_text,
    count_of,
    error_in,
    has_part,
    parse_event,
    parts_text,
    unknown_error,
    usage_in,
)
from shared.infrastructure.balancing.dialects.protocol import FIRST, Event, JSONObject
from shared.infrastructure.balancing.errors import InvalidResponseError

_IMAGES = frozenset({"image"})
# Deltas that say nothing; whatever else comes counts, that of tomorrow too.
_SILENT = frozenset({"signature_delta", "citations_delta"})
# What a block, or a delta, may hold without saying anything.
_LABELS = frozenset({"type", "id", "tool_use_id", "signature", "citations", "caller"})
# Where its text is.
_TEXTS = ("text", "thinking", "partial_json", "name", "content")


class AnthropicMessages:
    """`…/messages`."""

    name = "anthropic.messages"
    ending: tuple[str, str] = ("stop_reason", "message_stop")

    def is_streamed(self, payload: JSONObject) -> bool:
        return payload.get("stream") is True

    def answers(self, payload: JSONObject) -> int:
        return 1

    def needs(self, payload: JSONObject) -> frozenset[str]:
        needs = {"tools"} if payload.get("tools") else set[str]()
        if has_part(payload.get("messages"), _IMAGES):
            needs.add("vision")
        form = payload.get("output_format") or as_object(payload.get("output_config")).get("format")
        if as_object(form).get("type") == "json_schema":
            needs.add("json_schema")
        return frozenset(needs)

    def prompt(self, payload: JSONObject) -> str:
        system = "".join(parts_text(payload.get("system")))
        messages = [{"role": "system", "content": system}] if system else []
        return as_prompt(payload.get("tools"), [*messages, *as_objects(payload.get("messages"))])

    def max_output(self, payload: JSONObject) -> int | None:
        return count_of(payload.get("max_tokens"))

    def read_event(self, name: str | None, data: bytes) -> Event:
        event = parse_event(data)
        if isinstance(event, Event):
            return event
        kind = as_text(event.get("type")) or name
        if kind is None or name == "error":
            return Event(event, error=unknown_error(name, event))
        return _READ.get(kind, _other)(event)

    def error_of(self, body: JSONObject) -> JSONObject | None:
        error = error_in(body)
        return body if error is None and body.get("type") == "error" else error

    def check(self, body: JSONObject, payload: JSONObject) -> None:
        said = body.get("content")
        if not isinstance(said, list) or not (said or body.get("stop_reason")):
            raise InvalidResponseError(f"the answer has no 'content': {str(body)[:200]}")

    def usage_of(self, body: JSONObject) -> JSONObject | None:
        return usage_in(body)

    def content_length(self, body: JSONObject) -> int:
        return sum(map(_block_length, as_objects(body.get("content"))))


def _begun(event: JSONObject) -> Event:
    return Event(event, usage=usage_in(as_object(event.get("message"))))


def _begun_block(event: JSONObject) -> Event:
    """Read the beginning of a block: it may name a tool, or come as a whole."""
    return _spoken(event, as_object(event.get("content_block")))


def _said(event: JSONObject) -> Event:
    return _spoken(event, as_object(event.get("delta")))


def _spoken(event: JSONObject, piece: JSONObject) -> Event:
    if as_text(piece.get("type")) in _SILENT:
        return Event(event)
    is_content, characters = False, 0
    for key, value in piece.items():
        if value and key not in _LABELS:
            is_content = True
            if key in _TEXTS:
                characters += len(as_text(value))
    return Event(event, characters, FIRST if is_content else ())


def _reason(event: JSONObject) -> Event:
    has_finished = bool(as_object(event.get("delta")).get("stop_reason"))
    return Event(event, finished=FIRST if has_finished else (), usage=usage_in(event))


def _end(event: JSONObject) -> Event:
    return Event(event, finished=FIRST, is_end=True)


def _error(event: JSONObject) -> Event:
    return Event(event, error=error_in(event) or event)


def _other(event: JSONObject) -> Event:
    return Event(event, error=error_in(event) if "error" in event else None)


_READ: dict[str, Callable[[JSONObject], Event]] = {
    "message_start": _begun,
    "content_block_start": _begun_block,
    "content_block_delta": _said,
    "message_delta": _reason,
    "message_stop": _end,
    "error": _error,
}


def _block_length(block: JSONObject) -> int:
    said = sum(len(as_text(block.get(key))) for key in ("text", "thinking", "name"))
    arguments = block.get("input")
    return said + (len(as_json(arguments)) if arguments else 0)

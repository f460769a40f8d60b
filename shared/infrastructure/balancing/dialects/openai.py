"""The dialects of the OpenAI API that answer in choices, and that of its embeddings."""

from __future__ import annotations

from typing import cast

from shared.infrastructure.balancing.dialects.payloads import (
    as_object,
    as_objects,
    as_prompt,
    as_text,
    count_of,
    error_in,
    event_error,
    has_part,
    parse_event,
    usage_in,
)
from shared.infrastructure.balancing.dialects.protocol import FIRST, Event, JSONObject
from shared.infrastructure.balancing.errors import InvalidResponseError
from shared.models.embeddings import all_finite, decoded

_IMAGES = frozenset({"image_url", "input_image", "image"})
# What a piece of an answer, or a message, may hold without saying anything yet. Whatever else is
# in it counts: a field of tomorrow must not make a host that speaks look silent.
_SILENT = frozenset({"role", "annotations", "provider_specific_fields"})
# Said twice: `reasoning` is the text of it.
_UNCOUNTED = frozenset({"reasoning_details"})
# What an event without choices has that is no error: news of the request, of the load, of a filter.
_LIFECYCLE = frozenset(
    {
        *("usage", "object", "type", "event", "id", "model", "metadata", "provider"),
        *("prompt_filter_results", "prompt_annotations", "x_groq", "timings", "prompt_progress"),
        *("citations", "search_results", "obfuscation", "ping"),
    }
)
# With these a vector in base64 need not be one of float32.
_ENCODINGS = frozenset({"output_dtype", "embed_dtype", "embedding_type", "endianness"})
# Where text is, in parts of content and in calls of tools.
_TEXTS = ("text", "content", "thinking", "function", "name", "arguments", "transcript")


class _Choices:
    """What the dialects with `choices` have in common."""

    name: str
    ending: tuple[str, str] = ("finish_reason", "[DONE]")

    def is_streamed(self, payload: JSONObject) -> bool:
        return payload.get("stream") is True

    def answers(self, payload: JSONObject) -> int:
        return count_of(payload.get("n")) or 1

    def max_output(self, payload: JSONObject) -> int | None:
        most = count_of(payload.get("max_completion_tokens")) or count_of(payload.get("max_tokens"))
        return most and most * self.answers(payload)

    def read_event(self, name: str | None, data: bytes) -> Event:
        chunk = parse_event(data)
        if isinstance(chunk, Event):
            return chunk
        characters = 0
        said = finished = _NONE
        error: JSONObject | None = None
        choices = chunk.get("choices")
        if not choices or name is not None or "error" in chunk:
            error = _error_event(name, chunk)
        try:
            for choice in choices or ():
                index: int = choice.get("index")
                number = FIRST if not index or index.__class__ is not int else (index,)
                piece = choice.get("delta") or choice.get("text")
                length = len(piece) if isinstance(piece, str) else _length(piece or {})
                if length is not None:
                    said = said + number if said else number
                    characters += length
                if reason := choice.get("finish_reason"):
                    finished += number
                if reason == "error" or "error" in choice:
                    error = error or _failed_choice(choice)
        except (AttributeError, TypeError):
            pass  # a choice that is none says nothing
        usage = usage_in(chunk) if "usage" in chunk else None
        return Event(chunk, characters, said, finished, False, error, usage)

    def error_of(self, body: JSONObject) -> JSONObject | None:
        error = error_in(body)
        if error is not None:
            return error
        failures = map(_failed_choice, as_objects(body.get("choices")))
        return next(filter(None, failures), None)

    def usage_of(self, body: JSONObject) -> JSONObject | None:
        return usage_in(body)


class OpenAIChat(_Choices):
    """`…/chat/completions`."""

    name = "openai.chat"

    def needs(self, payload: JSONObject) -> frozenset[str]:
        needs: set[str] = set()
        if payload.get("tools") or payload.get("functions"):
            needs.add("tools")
        if has_part(payload.get("messages"), _IMAGES):
            needs.add("vision")
        if as_object(payload.get("response_format")).get("type") == "json_schema":
            needs.add("json_schema")
        if payload.get("logprobs"):
            needs.add("logprobs")
        return frozenset(needs) if needs else _NOTHING

    def prompt(self, payload: JSONObject) -> str:
        first = payload.get("tools") or payload.get("functions")
        return as_prompt(first, as_objects(payload.get("messages")))

    def check(self, body: JSONObject, payload: JSONObject) -> None:
        choices = as_objects(body.get("choices"))
        if not choices or not all(isinstance(one.get("message"), dict) for one in choices):
            raise InvalidResponseError(f"the answer has no 'choices': {str(body)[:200]}")

    def content_length(self, body: JSONObject) -> int:
        messages = [as_object(one.get("message")) for one in as_objects(body.get("choices"))]
        return sum(_length(message) or 0 for message in messages)


class OpenAICompletions(_Choices):
    """`…/completions`, the older API."""

    name = "openai.completions"

    def answers(self, payload: JSONObject) -> int:
        return super().answers(payload) * max(1, len(_texts(payload.get("prompt"))))

    def needs(self, payload: JSONObject) -> frozenset[str]:
        wanted = payload.get("logprobs")
        return frozenset({"logprobs"}) if wanted is not None and wanted is not False else _NOTHING

    def prompt(self, payload: JSONObject) -> str:
        return "\n".join(_texts(payload.get("prompt")))

    def check(self, body: JSONObject, payload: JSONObject) -> None:
        choices = as_objects(body.get("choices"))
        if not choices or not all(isinstance(one.get("text"), str) for one in choices):
            raise InvalidResponseError(f"the answer has no 'choices': {str(body)[:200]}")

    def content_length(self, body: JSONObject) -> int:
        return sum(len(as_text(one.get("text"))) for one in as_objects(body.get("choices")))


class OpenAIEmbeddings:
    """`…/embeddings`, which are never streamed."""

    name = "openai.embeddings"
    ending: tuple[str, str] = ("data", "[DONE]")

    def is_streamed(self, payload: JSONObject) -> bool:
        return False

    def answers(self, payload: JSONObject) -> int:
        return 1

    def needs(self, payload: JSONObject) -> frozenset[str]:
        return _NOTHING

    def prompt(self, payload: JSONObject) -> str:
        return "\n".join(_texts(payload.get("input")))

    def max_output(self, payload: JSONObject) -> int | None:
        return None

    def read_event(self, name: str | None, data: bytes) -> Event:
        body = parse_event(data)
        if isinstance(body, Event):
            return body
        return Event(body, error=error_in(body))

    def error_of(self, body: JSONObject) -> JSONObject | None:
        return error_in(body)

    def check(self, body: JSONObject, payload: JSONObject) -> None:
        items = as_objects(body.get("data"))
        if not items or not all(item.get("embedding") for item in items):
            raise InvalidResponseError(f"the answer has no 'data': {str(body)[:200]}")
        given = payload.get("input")
        if given and len(items) != (count := _inputs(given)):
            raise InvalidResponseError(f"asked for {count} vectors, got {len(items)}")
        is_float32 = _ENCODINGS.isdisjoint(payload)
        for number, item in enumerate(items):
            vector = item["embedding"]
            if isinstance(vector, str) and not is_float32:
                continue
            try:
                is_finite = all_finite(decoded(vector))
            except ValueError as exc:
                raise InvalidResponseError(f"vector {number}: {exc}") from None
            if not is_finite:
                raise InvalidResponseError(f"vector {number} holds what is no finite number")

    def usage_of(self, body: JSONObject) -> JSONObject | None:
        return usage_in(body)

    def content_length(self, body: JSONObject) -> int:
        return 0


_NOTHING: frozenset[str] = frozenset()
_NONE: tuple[int, ...] = ()


def _length(delta: JSONObject) -> int | None:
    """Return the characters of content in a piece of a message; None if it has no content."""
    length: int | None = None
    for key, value in delta.items():
        if value and key not in _SILENT:
            length = length or 0
            if isinstance(value, str):
                length += len(value)
            elif key not in _UNCOUNTED:
                length += _text_length(value)
    return length


def _text_length(value: object, depth: int = 4) -> int:
    """Return the characters in parts of content, or in calls of tools."""
    if isinstance(value, str):
        return len(value)
    if not depth:
        return 0
    if isinstance(value, dict):
        one = as_object(cast("object", value))
        return sum(_text_length(one.get(key), depth - 1) for key in _TEXTS)
    return sum(_text_length(item, depth - 1) for item in as_objects(value))


def _texts(value: object) -> list[str]:
    """Return the texts of a prompt or an input; tokens stand there as their numbers."""
    if isinstance(value, str):
        return [value]
    items = cast("list[object]", value) if isinstance(value, list) else []
    if items and isinstance(items[0], int):
        return [" ".join(map(str, items))]
    texts: list[str] = []
    for item in items:
        tokens = cast("list[object]", item) if isinstance(item, list) else []
        texts.append(item if isinstance(item, str) else " ".join(map(str, tokens)))
    return texts


def _inputs(given: object) -> int:
    """Return how many inputs a request has; the numbers of tokens are one input together."""
    if not isinstance(given, list):
        return 1
    items = cast("list[object]", given)
    return 1 if isinstance(items[0], int) else len(items)


def _error_event(name: str | None, chunk: JSONObject) -> JSONObject | None:
    """Return the error that an event reports, if it does, or if it says nothing that we know."""
    if "choices" in chunk and name != "error":
        return error_in(chunk)
    error = event_error(name, chunk)
    if error is None and chunk and name in {None, "message"} and _LIFECYCLE.isdisjoint(chunk):
        return chunk
    return error


def _failed_choice(choice: JSONObject) -> JSONObject | None:
    if choice.get("finish_reason") == "error":
        return as_object(choice.get("error")) or {"message": "finish_reason is error"}
    return error_in(choice)

"""Read what hosts send in the form of the OpenAI API, trusting none of it."""

from __future__ import annotations

import json
from typing import Any, cast

from shared.infrastructure.balancing.errors import InvalidResponseError

JSONObject = dict[str, Any]


def parse_object(content: bytes, error: type[InvalidResponseError]) -> JSONObject:
    """Return the JSON object that `content` is, or raise `error`."""
    try:
        value: object = json.loads(content)
    except (ValueError, RecursionError):
        raise error(f"not valid JSON: {content[:200]!r}") from None
    if not isinstance(value, dict):
        raise error(f"not a JSON object: {content[:200]!r}")
    return cast("JSONObject", value)


def as_object(value: object) -> JSONObject:
    """Return a JSON object; an empty one if `value` is something else."""
    return cast("JSONObject", value) if isinstance(value, dict) else {}


def as_objects(value: object) -> list[JSONObject]:
    """Return the JSON objects in a JSON array; none if `value` is something else."""
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("JSONObject", item) for item in items if isinstance(item, dict)]


def error_of(answer: JSONObject) -> JSONObject | None:
    """Return the error that an answer, or an event of one, reports; None if it reports none."""
    error = answer if answer.get("object") == "error" else answer.get("error")
    if not error:
        return None
    return as_object(error) or {"message": str(error)}


def status_of(error: JSONObject) -> int:
    """Return the HTTP status that an error names as its code; 500 if it names none."""
    code = str(error.get("code"))
    return int(code) if code.isdecimal() and 400 <= int(code) < 600 else 500


def has_content(event: JSONObject) -> bool:
    """Say whether an event of a stream holds more than the announcement of an answer."""
    for choice in as_objects(event.get("choices")):
        delta = as_object(choice.get("delta"))
        if choice.get("text") or any(delta[key] for key in delta if key != "role"):
            return True
    return False

"""Read what a request asks for, as far as the way of the call depends on it."""

from __future__ import annotations

import json
from typing import cast

from shared.infrastructure.balancing.call import JSONObject, RequestFacts
from shared.infrastructure.balancing.dialects import dialect_of
from shared.infrastructure.balancing.uploads import is_form, model_in

# What calls that belong together have in common; what is about a cache first.
_AFFINITY = ("prompt_cache_key", "user", "safety_identifier")


def facts_of(path: str, body: object) -> RequestFacts:
    """Return what a request asks for; it never fails.

    Args:
        path: Where it goes, without a query.
        body: The payload if it is at hand, or the bytes of the body; of a multipart form only the
            model is known, and of anything else but a JSON object nothing.
    """
    dialect = dialect_of(path)
    if isinstance(body, bytes) and is_form(body):
        return RequestFacts(dialect, model_in(body))
    payload = _payload_of(body)
    if payload is None:
        return RequestFacts(dialect)
    model = payload.get("model")
    return RequestFacts(
        dialect,
        model if isinstance(model, str) and model else None,
        dialect.is_streamed(payload) if dialect else payload.get("stream") is True,
        payload,
        dialect.needs(payload) if dialect else frozenset(),
        _affinity_of(payload),
    )


def _payload_of(body: object) -> JSONObject | None:
    if isinstance(body, dict):
        return cast("JSONObject", body)
    if not isinstance(body, bytes) or not body:
        return None
    try:
        parsed: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return cast("JSONObject", parsed) if isinstance(parsed, dict) else None


def _affinity_of(payload: JSONObject) -> str | None:
    for key in _AFFINITY:
        if (value := payload.get(key)) and isinstance(value, str):
            return value
    if isinstance(metadata := payload.get("metadata"), dict):
        value = cast("JSONObject", metadata).get("user_id")
        return value if isinstance(value, str) and value else None
    return None

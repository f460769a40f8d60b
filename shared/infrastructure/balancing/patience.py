"""How long a host asks to wait: in a header field, or in what its error says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import cast

import httpx

from shared.infrastructure.balancing.call import JSONObject
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.http.semantics import parse_retry_after

_PATIENCE = frozenset({Fault.THROTTLED, Fault.OVERLOADED, Fault.BROKEN})

# "try again in 6m0s", "retry after 12 seconds", "in 850ms": what OpenAI, Groq and Azure say.
_WISH = re.compile(
    r"(?:again|retry|wait) (?:in|after|for) ((?:[0-9.]+ ?(?:ms|s|m|h|d)[a-z]* ?)+)", re.IGNORECASE
)
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d)", re.IGNORECASE)
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def wait_asked(response: httpx.Response, fault: Fault | None) -> float | None:
    """Return the seconds that a response asks to wait: in a header field, or else in its body."""
    wait = parse_retry_after(response.headers)
    return _wish_of(response) if wait is None and fault in _PATIENCE else wait


def _wish_of(response: httpx.Response) -> float | None:
    try:
        content = response.content
    except httpx.ResponseNotRead:
        return None
    try:
        body: object = json.loads(content)
    except (ValueError, RecursionError):
        return None
    for error in _objects(body):
        details = error.get("details")
        for detail in cast("list[object]", details) if isinstance(details, list) else []:  # Google
            if isinstance(detail, dict) and (delay := cast("JSONObject", detail).get("retryDelay")):
                return _seconds_in(str(delay))
        headers = _member(_member(error, "metadata"), "headers")  # OpenRouter
        wait = parse_retry_after({str(name).lower(): str(headers[name]) for name in headers})
        if wait is not None:
            return wait
        if wish := _WISH.search(str(error.get("message", ""))):
            return _seconds_in(wish[1])
    return None


def _objects(body: object) -> Iterator[JSONObject]:
    """Yield the error objects of a body: vLLM has it bare, Google has a list of them."""
    for item in cast("list[object]", body) if isinstance(body, list) else [body]:
        if isinstance(item, dict):
            found = cast("JSONObject", item)
            yield _member(found, "error") or found


def _member(parent: JSONObject, name: str) -> JSONObject:
    value: object = parent.get(name)
    return cast("JSONObject", value) if isinstance(value, dict) else {}


def _seconds_in(text: str) -> float | None:
    parts = _PART.findall(text)
    seconds = sum(float(amount) * _UNITS[unit.lower()] for amount, unit in parts)
    return seconds if parts and math.isfinite(seconds) else None

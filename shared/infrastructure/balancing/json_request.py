"""Requests whose body is JSON, made for whichever host will be picked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import httpx

from shared.infrastructure.http.amend import extended
from shared.infrastructure.http.decoding import acceptable

# Stands for whichever host is picked.
_BASE = "http://pool"
# As httpx has it, but made once: `json.dumps` makes an encoder for every call.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
# What the wire would ask for anyway.
_ACCEPTED = {"Accept-Encoding": acceptable(None)}
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


def request_of(method: str, path: str, content: Mapping[str, Any]) -> httpx.Request:
    """Return the request that `httpx.Request` makes of a path and its content.

    Raises:
        TypeError, ValueError: What is to be sent as JSON is none.
    """
    payload = content.get("json")
    if payload is None or len(content) > 1:
        return httpx.Request(method, _blank(method, path).url, **content)
    return with_body(_blank(method, path), json_body(payload))


def json_body(payload: object) -> bytes:
    """Return `payload` as JSON, as httpx writes it.

    Raises:
        TypeError, ValueError: It is none.
    """
    return _encode(payload).encode()


def with_body(request: httpx.Request, content: bytes) -> httpx.Request:
    """Return a copy of a request with another body of the same type."""
    changed: httpx.Request = extended(request, {})
    headers: Any = request.headers.copy()
    # The public ways to the same end take five times as long.
    kept = [field for field in headers._list if field[1] not in _FRAMING]  # noqa: SLF001
    kept.append((b"Content-Length", b"content-length", b"%d" % len(content)))
    headers._list = kept  # noqa: SLF001
    changed.headers = headers
    changed.stream = httpx.ByteStream(content)
    vars(changed)["_content"] = content
    return changed


@lru_cache(maxsize=256)
def _blank(method: str, path: str) -> httpx.Request:
    """Return a request that has yet to get its body: its URL takes longer than all else."""
    return httpx.Request(method, _BASE + path, json={}, headers=_ACCEPTED)

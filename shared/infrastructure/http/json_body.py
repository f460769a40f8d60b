"""JSON as RFC 8259 has it, read from a service that is not to be trusted."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, NoReturn, Protocol

from shared.infrastructure.http.errors import UndecodableBodyError

# A surrogate written as an escape, to which no decoder objects; and one that is not half of a pair.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE = re.compile(
    rb"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|[c-fC-F](?<!\\u[dD][89abAB]..\\u[dD].))"
)
_BRACKETS = b"[{]}"
_OTHERS = bytes(set(range(256)) - set(_BRACKETS))
# As signed bytes: one level down, or up.
_STEPS = bytes.maketrans(_BRACKETS, b"\x01\x01\xff\xff")
# Scanned at a time. The rest of a string in which that ends is passed over in no time, as most of
# a vector in base64 is.
_SCANNED = 2048
_EXCERPT = 100
# No body, or only a part of one.
_NOT_WHOLE = frozenset({204, 205, 206})


class HTTPExchange(Protocol):
    """What is asked of a request."""

    @property
    def method(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


class BufferedResponse(Protocol):
    """A response that was read whole, and knows its request."""

    @property
    def request(self) -> HTTPExchange: ...
    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def content(self) -> bytes: ...


def parse_json(data: bytes, *, max_depth: int = 100) -> Any:
    """Return what a JSON text says; of equal names in an object, the last one counts.

    It must be UTF-8, where a byte order mark is passed over, and must have no NaN, no Infinity, no
    half of a surrogate pair, and no integer of more digits than Python converts (4,300). A float
    out of range becomes infinite all the same.

    Args:
        data: The text.
        max_depth: Arrays and objects it may have inside each other. They are counted before it is
            parsed.

    Raises:
        UndecodableBodyError: It is not JSON, or is nested too deeply.
    """
    problem = _problem_of(data, max_depth)
    if not problem:
        try:
            return _DECODER.decode(data.removeprefix(codecs.BOM_UTF8).decode())
        except (ValueError, RecursionError) as exc:
            problem = str(exc)
    # Out here, it has no context, which would hold on to the decoded text.
    raise UndecodableBodyError(f"not JSON that we read: {problem}: {data[:_EXCERPT]!r}")


def json_answer(response: BufferedResponse, *, max_depth: int = 100) -> None:
    """Check, within the attempt, that a success is what it should be where JSON is spoken.

    What says that it is JSON must be that; HTML is no answer to a request that accepts JSON and
    not HTML. Of anything else nothing is asked.

    Args:
        response: A response that was read whole.
        max_depth: Arrays and objects that JSON may have inside each other.

    Raises:
        UndecodableBodyError: The response is none.
    """
    status, request = response.status_code, response.request
    if not 200 <= status < 300 or status in _NOT_WHOLE or request.method == "HEAD":
        return
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        parse_json(response.content, max_depth=max_depth)
    elif kind == "text/html":
        accepted = request.headers.get("accept", "").lower()
        if "json" in accepted and "html" not in accepted:
            raise UndecodableBodyError(
                f"JSON was asked for, HTML came: {response.content[:_EXCERPT]!r}"
            )


def check_depth(data: bytes, max_depth: int) -> None:
    """Refuse a JSON text that no parser should be given; it is not parsed.

    Raises:
        UndecodableBodyError: It is nested too deeply.
    """
    if problem := _nesting(data, max_depth):
        raise UndecodableBodyError(f"{problem}: see ResponseLimits.max_json_depth")


def _problem_of(data: bytes, max_depth: int) -> str:
    """Return what the decoder would not object to, or could not stand."""
    if b"\\" in data and _SURROGATE.search(data) and _LONE.search(_without_pairs(data)):
        return "half of a surrogate pair"
    return _nesting(data, max_depth)


def _nesting(data: bytes, max_depth: int) -> str:
    if not _has_few_openers(data, max_depth) and _depth(data) > max_depth:
        return f"more than {max_depth} arrays and objects inside each other"
    return ""


def _without_pairs(data: bytes) -> bytes:
    """Return a text in which each backslash left begins an escape of something else."""
    return data.replace(b"\\\\", b"__")


def _has_few_openers(data: bytes, most: int) -> bool:
    """Whether no more arrays and objects begin than may be inside each other; in no time."""
    left = most
    for opener in (b"[", b"{"):
        at = data.find(opener)
        while at >= 0:
            left -= 1
            if left < 0:
                return False
            at = data.find(opener, at + 1)
    return True


def _depth(data: bytes) -> int:
    """Return how many arrays and objects are inside each other where there are most."""
    if b"\\" in data:
        data = _without_pairs(data).replace(b'\\"', b"")
    brackets: list[bytes] = []
    start = 0
    while start < len(data):
        parts = data[start : start + _SCANNED].split(b'"')
        brackets.append(b"".join(parts[::2]).translate(_STEPS, _OTHERS))
        start += _SCANNED
        if len(parts) % 2 == 0:  # within a string
            start = data.find(b'"', start) + 1 or len(data)
    steps = memoryview(b"".join(brackets)).cast("b")
    return max(accumulate(steps), default=0)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)

"""Large JSON, read in slices: on a thread, so that the event loop gets its turn in between.

A JSON library holds the interpreter's lock from the first byte to the last: for a body of 16 MiB
that is long enough for everybody else to notice.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

Positions = NDArray[np.int64]
Text = NDArray[np.uint8]

SLICE = 512 * 1024
"""Bytes that are read in one go; a millisecond or two."""

_OBJECT = re.compile(rb"[ \t\r\n]*\{")
_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_OPEN_LIST, _CLOSE_LIST = b"[]"
# By byte: what it does to the depth, and whether it matters outside of strings.
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1
_IS_MARK = _STEPS != 0
_IS_MARK[_COMMA] = True
# Stands for the list that is read apart; nobody outside can know it.
_PLACEHOLDER = secrets.token_hex(16)


class TooManyValuesError(ValueError):
    """The JSON has more values than it may have."""


def loads(body: bytes, max_values: int) -> dict[str, Any]:
    """Read a JSON object, and the longest list in it slice by slice.

    Raises:
        TooManyValuesError: It has more than some `max_values` values.
        orjson.JSONDecodeError: It is malformed, or no object.
    """
    if not _OBJECT.match(body):
        raise orjson.JSONDecodeError("expected an object", "", 0)
    marks, kinds = _marks(body, 2 * max_values)
    steps = _STEPS[kinds]
    if np.count_nonzero(steps >= 0) > max_values:
        raise TooManyValuesError
    depths = np.cumsum(steps, dtype=np.int32)
    # Within the object are lists, and within those their items.
    opened = np.flatnonzero((kinds == _OPEN_LIST) & (depths == 2))
    closed = np.flatnonzero((kinds == _CLOSE_LIST) & (depths == 1))
    if not len(opened) or len(opened) != len(closed) or (closed < opened).any():
        return cast("dict[str, Any]", orjson.loads(body))
    longest = int(np.argmax(marks[closed] - marks[opened]))
    first, last = int(opened[longest]), int(closed[longest])
    within = slice(first, last)
    cuts = marks[within][(kinds[within] == _COMMA) & (depths[within] == 2)]
    begin, end = int(marks[first]), int(marks[last])
    rest = b'%b"%b"%b' % (body[:begin], _PLACEHOLDER.encode(), body[end + 1 :])
    fields = cast("dict[str, Any]", orjson.loads(rest))
    items = _items(body, begin, end, cuts)
    return {name: items if value == _PLACEHOLDER else value for name, value in fields.items()}


def _marks(body: bytes, limit: int) -> tuple[Positions, Text]:
    """Return where commas and brackets are outside of strings, and which they are."""
    positions: list[Positions] = []
    kinds: list[Text] = []
    escape, quotes, found = b"", 0, 0
    for start in range(0, len(body), SLICE):
        piece = escape + body[start : start + SLICE]
        text = np.frombuffer(piece, np.uint8)
        its_quotes = _quotes(text)
        marks = np.flatnonzero(_IS_MARK[text])
        marks = marks[(np.searchsorted(its_quotes, marks) + quotes) % 2 == 0]
        positions.append(marks + (start - len(escape)))
        kinds.append(text[marks])
        quotes += len(its_quotes)
        found += len(marks)
        if found > limit or quotes > 2 * limit:
            raise TooManyValuesError
        escape = b"\\" * ((len(piece) - len(piece.rstrip(b"\\"))) % 2)
    return np.concatenate(positions), np.concatenate(kinds)


def _quotes(text: Text) -> Positions:
    """Return where quotes are that begin or end a string: no odd number of backslashes before."""
    quotes: Positions = np.flatnonzero(text == _QUOTE)
    backslashes = np.flatnonzero(text == _BACKSLASH)
    if not len(backslashes):
        return quotes
    runs = np.flatnonzero(np.diff(backslashes, prepend=-2) != 1)
    before = np.searchsorted(backslashes, quotes) - 1
    run = runs[np.searchsorted(runs, before, side="right") - 1]
    is_next = (before >= 0) & (backslashes[before] == quotes - 1)
    ends: Positions = quotes[~(is_next & ((before - run) % 2 == 0))]
    return ends


def _items(body: bytes, begin: int, end: int, cuts: Positions) -> list[Any]:
    """Return the items of the list whose brackets are at two positions, with commas at `cuts`."""
    items: list[Any] = []
    start = begin + 1
    while start <= end:
        # Up to the last comma within the slice, or to the next one if the item is longer.
        number = int(np.searchsorted(cuts, start + SLICE))
        if start + SLICE >= end:
            stop = end
        elif number and cuts[number - 1] > start:
            stop = int(cuts[number - 1])
        else:
            stop = int(cuts[number]) if number < len(cuts) else end
        part = cast("list[Any]", orjson.loads(b"[%b]" % body[start:stop]))
        if not part and len(cuts):
            raise orjson.JSONDecodeError("a value is missing", "", 0)
        items += part
        start = stop + 1
    return items

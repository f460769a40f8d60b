"""What hosts say of their limits in the headers of every answer; it is read on the hot path."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping

from shared.infrastructure.resilience.limits.headers import read_rate_headers

REQUESTS, TOKENS, INPUT, OUTPUT = "requests", "tokens", "input-tokens", "output-tokens"
"""What limits count, as headers spell it."""

# What a limit without a unit counts as, until it is known whether there is one with.
_UNITLESS = ""
# Seconds since 1970 have ten digits.
_SHORTEST_INSTANT = 10
_UNITS = (REQUESTS, TOKENS, INPUT, OUTPUT)
_PARTS = ("limit", "remaining", "reset")
# By the name of a field, what it is about, and which part of that it says.
_FIELDS: dict[bytes, tuple[str, int]] = {
    name.encode(): (unit, part)
    for part, word in enumerate(_PARTS)
    for unit, name in (
        (_UNITLESS, f"x-ratelimit-{word}"),
        *((unit, f"x-ratelimit-{word}-{unit}") for unit in _UNITS),
        *((unit, f"anthropic-ratelimit-{unit}-{word}") for unit in _UNITS),
    )
}


class Quota:
    """What a host says of one of its limits.

    Attributes:
        limit: Permits when nothing is used, at least 1; None if it did not say.
        remaining: Permits left; None if it did not say.
        is_by_minute: Whether the limit is one by the minute; else it holds until the reset.
    """

    __slots__ = ("_date", "_reset", "is_by_minute", "limit", "remaining")

    def __init__(self, parts: list[bytes], date: bytes, *, is_by_minute: bool) -> None:
        limit = _number(parts[0])
        self.limit = None if limit is None or limit < 1.0 else limit
        self.remaining = _number(parts[1])
        self.is_by_minute = is_by_minute
        self._reset = parts[2]
        self._date = date

    @property
    def names_rate(self) -> bool:
        """Whether it says how many permits there are in how long."""
        return self.limit is not None and (self.is_by_minute or self.reset is not None)

    @property
    def reset(self) -> float | None:
        """Seconds until it is whole again, above 0; None if the host did not say."""
        text = self._reset.decode("latin-1")
        # Short spans come again and again; an instant means something else each time.
        is_span = len(text) < _SHORTEST_INSTANT and ":" not in text
        return _span(text) if is_span else _seconds(text, self._date.decode("latin-1"))


def read_quotas(headers: Mapping[str, str]) -> dict[str, Quota]:
    """Return what the headers of an answer say of its host's limits, by what they count."""
    found: dict[str, list[bytes]] = {}
    date = b""
    for name, value in _raw(headers):
        name = name.lower()  # noqa: PLW2901 - the same name
        spot = _FIELDS.get(name)
        if spot is not None:
            unit, part = spot
            found.setdefault(unit, [b"", b"", b""])[part] = value
        elif name == b"date":
            date = value
    unitless = found.pop(_UNITLESS, None)
    quotas = {unit: Quota(parts, date, is_by_minute=True) for unit, parts in found.items()}
    if unitless is not None and REQUESTS not in quotas:
        quotas[REQUESTS] = Quota(unitless, date, is_by_minute=False)
    return {unit: q for unit, q in quotas.items() if q.limit or q.remaining is not None}


def _raw(headers: Mapping[str, str]) -> Iterable[tuple[bytes, bytes]]:
    raw: list[tuple[bytes, bytes]] | None = getattr(headers, "raw", None)
    if raw is not None:  # those of an HTTP library, which are much cheaper to read so
        return raw
    return ((name.encode(), value.encode()) for name, value in headers.items())


def _number(text: bytes) -> float | None:
    try:
        number = float(text) if text else -1.0
    except ValueError:
        return None
    return number if 0.0 <= number < math.inf else None


@functools.lru_cache(maxsize=512)
def _span(text: str) -> float | None:
    return _seconds(text, "")


def _seconds(text: str, date: str) -> float | None:
    fields = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": text, "date": date}
    quotas = read_rate_headers(fields).quotas
    return quotas[0].reset if quotas else None

"""What a service says about its rate limits in the headers of its answers, as plain numbers."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# The longest quotas are monthly; what claims to last longer is nonsense.
_LONGEST = 31 * 86400.0
# Anything above is an instant and not a span: 2001 in seconds, 1970 in milliseconds.
_EPOCH_SECONDS = 1e9
_EPOCH_MILLISECONDS = 1e11

_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?", re.ASCII)
_SPAN = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|us|µs|ns|d|h|m|s)")
_UNITS = {
    "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quota:
    """What is left of a quota.

    Attributes:
        remaining: Permits left; 0 or more.
        reset: Seconds until there are more; above 0.
    """

    remaining: float
    reset: float


@dataclass(frozen=True, slots=True)
class RateAdvice:
    """All that the headers of one answer say about rates.

    Attributes:
        retry_after: Seconds the service asks to wait; 0.0 if it does not.
        quotas: Those it named, in no particular order.
    """

    retry_after: float
    quotas: tuple[Quota, ...]


def read_rate_headers(
    headers: Mapping[str, str], *, unit: str = "requests", wall_clock: float | None = None
) -> RateAdvice:
    """Return what the headers of an answer say about rates; what makes no sense is left out.

    Read are `RateLimit` with `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers);
    `X-RateLimit-Remaining` and `-Reset`, also without the `X-`, with `-{unit}` behind (OpenAI), or
    as `Anthropic-RateLimit-{unit}-…`; and `Retry-After` or
    `Retry-After-Ms`. A reset is a number of seconds, an
    instant (seconds or milliseconds since 1970, ISO 8601, HTTP date) or a span such as `6m0s`.

    Args:
        headers: Names in any case.
        unit: Which quota to read where there are several: `requests` or `tokens`.
        wall_clock: Seconds since 1970, for an instant in an answer without a `Date`; default: the
            machine's clock.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    now = _instant(fields.get("date", ""))
    if now is None:
        now = time.time() if wall_clock is None else wall_clock
    retry_after = _seconds(fields.get("retry-after", ""), now)
    milliseconds = _number(fields.get("retry-after-ms", ""))
    if milliseconds is not None:
        retry_after = _plausible(milliseconds / 1000.0)
    quotas = (*_structured_quotas(fields), *_plain_quotas(fields, unit, now))
    return RateAdvice(retry_after or 0.0, quotas)


def _plain_quotas(fields: Mapping[str, str], unit: str, now: float) -> Iterator[Quota]:
    for remaining_name, reset_name in (
        ("x-ratelimit-remaining", "x-ratelimit-reset"),
        ("ratelimit-remaining", "ratelimit-reset"),
        (f"x-ratelimit-remaining-{unit}", f"x-ratelimit-reset-{unit}"),
        (f"anthropic-ratelimit-{unit}-remaining", f"anthropic-ratelimit-{unit}-reset"),
    ):
        remaining = _number(fields.get(remaining_name, ""))
        reset = _seconds(fields.get(reset_name, ""), now)
        if remaining is not None and reset:
            yield Quota(remaining, reset)


def _structured_quotas(fields: Mapping[str, str]) -> Iterator[Quota]:
    windows = {
        name: parameters.get("w", "")
        for name, parameters in _items(fields.get("ratelimit-policy", ""))
    }
    for name, parameters in _items(fields.get("ratelimit", "")):
        remaining = _number(parameters.get("r", ""))
        # Without a reset the quota is whole again after its window, at the latest.
        reset = _span(parameters.get("t") or windows.get(name, ""))
        if remaining is not None and reset:
            yield Quota(remaining, reset)


def _items(value: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the items of a structured field (RFC 9651) whose names hold no comma or semicolon."""
    for item in value.split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        pairs = (parameter.partition("=") for parameter in parameters)
        yield name.strip('"'), {key: text for key, _, text in pairs}


def _seconds(value: str, now: float) -> float | None:
    """Return the seconds from `now` that a span or an instant of any form names."""
    instant = _instant(value)
    number = _number(value)
    if number is not None and number >= _EPOCH_SECONDS:
        instant = number / 1000.0 if number >= _EPOCH_MILLISECONDS else number
    if instant is None:
        return _span(value)
    return _plausible(max(0.0, instant - now))


def _span(value: str) -> float | None:
    number = _number(value)
    if number is None:
        parts = _SPAN.findall(value)
        if not parts or "".join(amount + unit for amount, unit in parts) != value.strip():
            return None
        number = sum(float(amount) * _UNITS[unit] for amount, unit in parts)
    return _plausible(number)


def _plausible(seconds: float) -> float | None:
    return seconds if seconds <= _LONGEST else None


def _number(value: str) -> float | None:
    text = value.strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def _instant(value: str) -> float | None:
    # Neither parser needs to see what cannot be a date; both forms hold a colon.
    if ":" not in value:
        return None
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            date = parse(value.strip())
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError, TypeError, IndexError):
            continue
    return None

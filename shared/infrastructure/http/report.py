"""What a client says of itself: its pool in numbers, and all of it in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shared.infrastructure.resilience import Event, Inner, RetryScheduled


class RetryCount:
    """A listener that counts retries.

    Attributes:
        count: Attempts that were scheduled after a failed one.
    """

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, RetryScheduled):
            self.count += 1


class AttemptCount:
    """A layer that counts attempts.

    Position: innermost, where no layer can refuse a call any more.

    Attributes:
        count: Attempts made.
    """

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, request: Any, inner: Inner[Any, Any]) -> Any:
        self.count += 1
        return await inner.send(request)


def pool_status(transport: Any) -> dict[str, Any]:
    """Return what a transport tells of its connections; nothing if it tells nothing."""
    stats: Callable[[], dict[str, Any]] = getattr(transport, "stats", dict[str, Any])
    return stats()


def explained(status: dict[str, Any]) -> str:
    """Say in words what `get_status()` says in numbers."""
    lines = [_health(status), _calls(status), _attempts(status)]
    breaker, limiter, bulkhead = (
        status[part] for part in ("circuit_breaker", "rate_limiter", "bulkhead")
    )
    if breaker["enabled"] and breaker["state"] != "closed":
        wait = breaker.get("retry_after")
        rest = f"; the next probe in {wait:.1f} s" if wait else ""
        lines.append(f"The circuit is {breaker['state'].replace('_', ' ')}{rest}.")
    if limiter["enabled"] and limiter["waiting"]:
        lines.append(f"{limiter['waiting']} calls wait for a permit of the rate limiter.")
    if bulkhead["enabled"] and bulkhead["waiting"]:
        lines.append(f"{bulkhead['waiting']} calls wait for a slot of the bulkhead.")
    if status["pool"].get("waiting"):
        lines.append(f"{status['pool']['waiting']} requests wait for a connection.")
    return "\n".join(line for line in lines if line)


def _health(status: dict[str, Any]) -> str:
    health = status["health"]
    where = f" at {status['base_url']}" if status["base_url"] else ""
    because = f": {health['last_error']}" if health["last_error"] else ""
    condition = health["status"]
    if condition in {"healthy", "unknown"}:
        because = ""
    return f"{status['service_name']}{where} is {condition}{because}."


def _calls(status: dict[str, Any]) -> str:
    count = status["request_count"]
    if not count:
        return "No call has ended yet."
    kinds = ", ".join(f"{kind}: {number}" for kind, number in status["failures"].items())
    failed = f"{status['error_rate']:.1%} failed" + (f" ({kinds})" if kinds else "")
    times = f"half within {_seconds(status['response_time_p50'])}, 99 % within " + _seconds(
        status["response_time_p99"]
    )
    parts = [f"{count} calls", failed, times]
    if status["refused_count"]:
        parts.append(f"{status['refused_count']} refused by this client itself")
    if status["cancelled_count"]:
        parts.append(f"{status['cancelled_count']} cancelled")
    return "; ".join(parts) + "."


def _attempts(status: dict[str, Any]) -> str:
    retries, hedge, budget = status["retry_count"], status["hedge"], status["retry_budget"]
    parts = [f"{status['attempt_count']} attempts, {retries} of them retries"]
    if hedge["enabled"]:
        parts.append(f"{hedge['hedged_count']} hedges, {hedge['won_count']} of which came first")
    if budget["enabled"] and retries:
        parts.append(f"{budget['tokens']:g} tokens left to retry with")
    return "; ".join(parts) + "." if status["attempt_count"] else ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1.0 else f"{seconds * 1000.0:.0f} ms"

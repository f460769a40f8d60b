"""A lane: what is known of one model at one host."""

from __future__ import annotations

import math
from typing import Any

import httpx

from shared.infrastructure.balancing.config import BalanceConfig
from shared.infrastructure.balancing.hosts.latency import PeakEWMA
from shared.infrastructure.balancing.hosts.standing import HostState, Standing
from shared.infrastructure.resilience import CircuitBreaker, CircuitState, Send
from shared.infrastructure.resilience.histogram import RotatingHistogram

HTTPSend = Send[httpx.Request, httpx.Response]

# Seconds, and number, of the latest first tokens that an adaptive limit goes by.
FIRST_TOKEN_WINDOW = 300.0
_MIN_FIRST_TOKENS = 20
_READY = Standing(HostState.READY)
# After a pause all who waited would come at once, and how many the host takes only it knows: the
# calls that may be unanswered at a time double so often, in seconds, until nobody counts any more.
_DOUBLING = 0.25
_RAMP = 10 * _DOUBLING


class Lane:
    """One model at one host: its stack of layers, its circuit, its pauses and its latency.

    Args:
        send: The stack.
        send_anyway: The stack without the circuit breaker.
        breaker: The breaker of the stack, if it has one.
        config: Lengths of the pauses.
        first_tokens: Where the time of each first token goes, if a limit adapts to them.

    Attributes:
        breaker: As given.
        is_ramping: Whether calls are let through bit by bit once the pause is over.
        latency: Seconds to an answer, or to the first token of a stream.
        throttled_until: Instant before which the host asked not to be called.
        missing_until: Instant before which the host counts as not knowing the model.
    """

    __slots__ = (
        *("_config", "_first_tokens", "_let_through", "_throttled_at", "_throttles"),
        *(
            "breaker",
            "is_ramping",
            "latency",
            "missing_until",
            "send",
            "send_anyway",
            "throttled_until",
        ),
    )

    def __init__(
        self,
        send: HTTPSend,
        send_anyway: HTTPSend,
        breaker: CircuitBreaker | None,
        config: BalanceConfig,
        first_tokens: RotatingHistogram | None,
    ) -> None:
        self.send = send
        self.send_anyway = send_anyway
        self.breaker = breaker
        self.latency = PeakEWMA()
        self.throttled_until = self.missing_until = -math.inf
        self.is_ramping = False
        self._let_through = 0
        self._config = config
        self._first_tokens = first_tokens
        self._throttles = 0
        self._throttled_at = -math.inf

    def standing(self, now: float) -> Standing:
        """Return whether the model may be asked for here."""
        if self.missing_until > now:
            return Standing(HostState.MISSING, self.missing_until)
        if self.throttled_until > now:
            return Standing(HostState.THROTTLED, self.throttled_until)
        if self.is_ramping and (turn := self._next_turn(now)) > now:
            return Standing(HostState.THROTTLED, turn)
        return self.circuit(now)

    def circuit(self, now: float) -> Standing:
        """Return what the circuit alone says."""
        breaker = self.breaker
        if breaker is None or breaker.shared_permit is not None:
            return _READY
        state = breaker.state
        if state is CircuitState.HALF_OPEN:
            return Standing(HostState.HALF_OPEN)
        if not breaker.refuses_all:
            return _READY
        seconds: float | None = breaker.snapshot()["retry_after"]
        return Standing(HostState.OPEN, math.inf if seconds is None else now + seconds)

    def admits(self) -> bool:
        """Say whether the circuit would let a call through."""
        return self.breaker is None or self.breaker.admits()

    def is_worth_keeping(self, now: float) -> bool:
        """Say whether something is known here that should not be forgotten."""
        if self.breaker is not None and self.breaker.shared_permit is None:
            return True
        return max(self.throttled_until + _RAMP, self.missing_until) > now

    def let_through(self, now: float) -> None:
        """Take note of a call, while they are let through bit by bit."""
        if now >= self.throttled_until:
            self._let_through += 1

    def throttle(self, began: float, now: float, seconds: float | None) -> None:
        """Leave the model alone for as long as the host asks, or else ever longer.

        Args:
            began: When the attempt that was turned away was sent: many at once are turned away
                for the same reason, and lengthen the pause only once.
            now: This instant.
            seconds: What the host asks for, if it says.
        """
        if began >= self._throttled_at:
            self._throttles += 1
            self._throttled_at = now
        if not seconds:
            doubled = self._config.throttle * 2.0 ** min(self._throttles - 1, 32)
            seconds = min(doubled, self._config.max_throttle)
        self.throttled_until = max(self.throttled_until, now + seconds)
        self.is_ramping, self._let_through = True, 0

    def observe(self, seconds: float, now: float, *, is_first_token: bool) -> None:
        """Take note of a good answer, which took `seconds` to begin."""
        self._throttles = 0
        self._let_through = max(0, self._let_through - 1)
        self.latency.observe(seconds, now)
        if is_first_token and self._first_tokens is not None:
            self._first_tokens.record(seconds)

    def first_token_p99(self) -> float | None:
        """Return the seconds that 99 of 100 first tokens stayed within lately, if that is known."""
        if self._first_tokens is None:
            return None
        return self._first_tokens.percentile(0.99, _MIN_FIRST_TOKENS)

    def snapshot(self, now: float) -> dict[str, Any]:
        """Return circuit, pauses and latency as plain JSON types."""
        enabled = {"enabled": self.breaker is not None}
        return {
            "circuit_breaker": {**enabled, **(self.breaker.snapshot() if self.breaker else {})},
            "throttled_for": max(0.0, self.throttled_until - now),
            "missing_for": max(0.0, self.missing_until - now),
            "latency": self.latency.read(now),
        }

    def _next_turn(self, now: float) -> float:
        """Return the instant from which the next call is let through; one is at once."""
        if now >= self.throttled_until + _RAMP:
            self.is_ramping = False
            return now
        return self.throttled_until + _DOUBLING * math.log2(self._let_through + 1)

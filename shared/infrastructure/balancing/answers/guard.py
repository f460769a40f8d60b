"""Tell a true answer of an LLM host from what only looks like one, where breakers can still see it.

A host that dies in mid-stream often leaves a clean end of file behind, some report errors with
status 200, and some say nothing at all. All of these are failures of the attempt: an answer that
is none raises here, below every layer, and an error reported with status 200 gets the status it
should have had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from shared.infrastructure.balancing.answers.exchange import AnswerExchange
from shared.infrastructure.balancing.answers.stream import AnswerLimits
from shared.infrastructure.balancing.answers.watchdog import Watchdog
from shared.infrastructure.balancing.call import ATTEMPT, CALL, Attempt, Call
from shared.infrastructure.balancing.config import AnswerTimeoutConfig
from shared.infrastructure.balancing.errors import FirstTokenTimeoutError
from shared.infrastructure.http import TimeoutConfig
from shared.infrastructure.http.amend import extended
from shared.infrastructure.http.extensions import ANSWERS, BUFFERED, ON_PIECE, PATIENCE
from shared.infrastructure.http.transport import Wire
from shared.infrastructure.resilience import Clock

MAY_RESTART = "may_restart"
"""Request extension: a stream that is too slow may begin anew elsewhere, whatever was delivered."""

TYPED = "typed"
"""Request extension: its stream is read by `events`, which pass over what is no JSON; whoever reads
the bytes would stumble over it."""

FirstTokenP99 = Callable[[str | None], float | None]
"""Seconds that the 99th percentile of a model's latest first tokens took; None if unknown."""

# "adaptive": so many times the 99th percentile, within these.
_ADAPTIVE, _SHORTEST, _LONGEST = 3.0, 10.0, 120.0
# The wire waits this much longer than the watchdog, which knows better what it waits for.
_SLACK = 1.0


class AnswerGuard(httpx.AsyncBaseTransport):
    """A transport whose 200 means that an answer came, or is coming.

    A stream is handed up once its first content is there, or all of it if the call says so: until
    then a failure is that of the attempt, and another host can take over unnoticed. A plain answer
    is read whole.

    Requests carry their `Call` and their `Attempt`; those that do not, such as a health check, and
    those of no known dialect pass as they are.

    Args:
        inner: Does the exchange; closed with this one.
        timeouts: Of the pool; `read` is what the others default to.
        answers: How long a host may keep a caller waiting.
        clock: Source of monotonic time.
        first_token_p99: Asked for "adaptive".
    """

    def __init__(
        self,
        inner: Wire,
        timeouts: TimeoutConfig,
        answers: AnswerTimeoutConfig,
        *,
        clock: Clock,
        first_token_p99: FirstTokenP99,
    ) -> None:
        self._inner = inner
        self._answers = answers
        self._read = timeouts.read
        self._usual = AnswerLimits(
            idle=answers.idle or timeouts.read,
            idle_bytes=answers.idle_bytes or timeouts.read,
            silence=timeouts.read,
            min_rate=answers.min_chars_per_second,
            window=answers.slow_window,
        )
        self._clock = clock
        self._first_token_p99 = first_token_p99

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call: Call | None = request.extensions.get(CALL)
        if call is None or call.facts.dialect is None or request.method != "POST":
            response: httpx.Response = await self._inner(request)
            return response
        attempt: Attempt = request.extensions[ATTEMPT]
        limits, first_token = self._usual, self._first_token(call.facts.model, attempt.model)
        own = self._patience(request)
        if own is not None:
            first_token, limits = min(own, first_token), _cut(limits, own)
        if limits.min_rate is not None:
            # What was handed up cannot be had elsewhere unnoticed any more.
            may_be_slow = call.hold != "whole" and MAY_RESTART not in request.extensions
            limits = limits._replace(min_rate=None) if may_be_slow else limits
        watchdog = Watchdog(self._clock, call.deadline, attempt.host)
        watchdog.allow(first_token, FirstTokenTimeoutError)
        is_typed = TYPED in request.extensions
        exchange = AnswerExchange(
            request, call, attempt, limits, watchdog, self._clock, is_typed=is_typed
        )
        between = limits.idle_bytes if exchange.is_streamed else limits.silence
        extensions: dict[str, Any] = {
            "timeout": {
                **request.extensions.get("timeout", {}),
                "read": _SLACK + max(first_token, between),
            },
            PATIENCE: between,
        }
        if exchange.is_streamed:
            extensions[BUFFERED] = False
        else:
            extensions[ON_PIECE] = exchange.hear
            if exchange.is_known:
                extensions[BUFFERED] = ANSWERS
        return await exchange.run(self._inner, extended(request, extensions))

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _first_token(self, *models: str | None) -> float:
        by_model = self._answers.first_token_by_model
        for model in models if by_model else ():
            if model is not None and model in by_model:
                return by_model[model]
        seconds = self._answers.first_token or self._read
        if not isinstance(seconds, str):
            return seconds
        p99 = self._first_token_p99(models[0])
        usual = self._read if p99 is None else _ADAPTIVE * p99
        return min(max(usual, _SHORTEST), _LONGEST)

    def _patience(self, request: httpx.Request) -> float | None:
        """Return what the caller allows at the most, if that is less than the pool does."""
        extensions = request.extensions
        own: float | None = extensions.get(PATIENCE) or extensions.get("timeout", {}).get("read")
        return None if own is None or own >= self._read else own


def _cut(limits: AnswerLimits, most: float) -> AnswerLimits:
    return limits._replace(
        idle=min(most, limits.idle),
        idle_bytes=min(most, limits.idle_bytes),
        silence=min(most, limits.silence),
    )

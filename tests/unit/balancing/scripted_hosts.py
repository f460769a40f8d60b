"""A scripted stand-in for the balancing: hosts that play their outcomes, on a clock."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from shared.infrastructure.balancing.call import (
    ATTEMPT,
    CALL,
    FAULT,
    Attempt,
    Call,
    CallOptions,
    Outlook,
    RequestFacts,
    call_of,
)
from shared.infrastructure.balancing.classify import fault_of, fault_of_error, note_silence
from shared.infrastructure.balancing.config import BalanceConfig
from shared.infrastructure.balancing.dialects import dialect_of
from shared.infrastructure.balancing.errors import NoHostAvailableError
from shared.infrastructure.balancing.failover import Failover
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.balancing.semantics import POOL
from shared.infrastructure.resilience import (
    Event,
    Listeners,
    RetryConfig,
    ServiceError,
    stack,
)
from shared.infrastructure.resilience.timeout import remaining_time
from shared.infrastructure.testing import FakeClock

Outcome = int | Exception | Callable[[], httpx.Response] | tuple[float, Any]
"""A status, an error, what makes a response, or one of these after so many seconds."""

_CHAT = dialect_of("/v1/chat/completions")
NO_JITTER = RetryConfig(jitter=False)


class TrackedStream(httpx.AsyncByteStream):
    """A body that knows whether it was closed."""

    def __init__(self) -> None:
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"{}"

    async def aclose(self) -> None:
        self.is_closed = True


class Fleet:
    """Hosts by name, each with its outcomes; the last one is played for ever.

    Attributes:
        sent: (instant since the beginning, host) of every attempt.
        verdicts: What each attempt said about its host.
        models: Model that the body of each attempt named.
        deadlines: Seconds that were left of the deadline at each attempt.
        streams: Bodies of the answers.
        running: Attempts under way.
    """

    def __init__(self, **plans: Outcome | list[Outcome]) -> None:
        self.clock = FakeClock()
        self.sent: list[tuple[float, str]] = []
        self.verdicts: list[tuple[str, str]] = []
        self.models: list[str | None] = []
        self.deadlines: list[float | None] = []
        self.streams: list[TrackedStream] = []
        self.running = 0
        self.throttled: dict[str, float] = {}
        self.disabled: set[str] = set()
        self._plans = {k: v if isinstance(v, list) else [v] for k, v in plans.items()}

    @property
    def hosts(self) -> list[str]:
        """Host of every attempt."""
        return [host for _, host in self.sent]

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send an attempt to a host, as the balancing would."""
        call = call_of(request.extensions)
        host = self._pick(call)
        self.sent.append((round(self.clock.now() - 1000.0, 3), host))
        self.models.append(_model_in(request))
        self.deadlines.append(remaining_time())
        attempt = call.depart(host, self.clock.now(), call.facts.model)
        self.running += 1
        try:
            response = await self._play(host, self.hosts.count(host))
        except BaseException as exc:
            if isinstance(exc, ServiceError):
                exc.host = host
            self._end(call, attempt, exc)
            raise
        finally:
            self.running -= 1
        response.extensions = {**response.extensions, CALL: call, ATTEMPT: attempt}
        self._end(call, attempt, response)
        return response

    def outlook(self, call: Call) -> Outlook | None:
        """Return what `Balance.outlook` would."""
        now = self.clock.now()
        waits = [
            Outlook(max(0.0, self.throttled.get(name, now) - now), call.is_fresh(name))
            for name in self._plans
            if name not in self.disabled and call.may_try(name)
        ]
        return min(waits, key=lambda each: (each.seconds, not each.is_fresh), default=None)

    def _pick(self, call: Call) -> str:
        able = [name for name in self._plans if name not in self.disabled and call.may_try(name)]
        if not able:
            raise NoHostAvailableError(dict.fromkeys(self._plans, "had its turn"))
        now = self.clock.now()
        calm = [name for name in able if self.throttled.get(name, now) <= now] or able
        return next((name for name in calm if call.is_fresh(name)), calm[0])

    async def _play(self, host: str, number: int) -> httpx.Response:
        plan = self._plans[host]
        outcome = plan[min(number, len(plan)) - 1]
        if isinstance(outcome, tuple):
            seconds, outcome = outcome
            await self.clock.sleep(seconds)
        if isinstance(outcome, Exception):
            raise outcome
        if not isinstance(outcome, int):
            made: httpx.Response = outcome()
            return made
        if outcome >= 400:
            return httpx.Response(outcome, json={"error": {"message": f"of {host}"}})
        self.streams.append(TrackedStream())
        return httpx.Response(outcome, stream=self.streams[-1])

    def _end(self, call: Call, attempt: Attempt, outcome: httpx.Response | BaseException) -> None:
        if isinstance(outcome, asyncio.CancelledError):
            note_silence(outcome, attempt)
        fault, verdict = fault_of(outcome), POOL.judge(outcome)
        call.end(attempt, self.clock.now(), fault, verdict.value)
        self.verdicts.append((attempt.host, verdict.value))
        if fault in (Fault.THROTTLED, Fault.OVERLOADED) and isinstance(outcome, httpx.Response):
            wait = POOL.retry_after(outcome)
            if wait is not None:
                self.throttled[attempt.host] = self.clock.now() + wait


class Run:
    """One call through `Failover`, driven on the clock of its hosts.

    Attributes:
        outcome: The response, or what was raised.
        took: Seconds until then.
        told: Events, in order.
    """

    def __init__(self, fleet: Fleet, **options: Any) -> None:
        self.fleet = fleet
        self.told: list[Event] = []
        self.outcome: Any = None
        self.took = -1.0
        self.request = options.pop("request", None) or request_of(options.pop("call", None))
        self.layers = options.pop("layers", ())
        self.below = options.pop("below", ())
        options.setdefault("rng", random.Random(7))
        self.failover = Failover(
            options.pop("outlook", fleet.outlook),
            options.pop("retry", NO_JITTER),
            options.pop("config", BalanceConfig()),
            clock=fleet.clock,
            listeners=Listeners([self.told.append]),
            **options,
        )

    def start(self) -> asyncio.Task[httpx.Response]:
        """Begin the call."""
        send = stack(self.fleet.send, *self.layers, self.failover, *self.below, semantics=POOL)

        async def call() -> httpx.Response:
            return await send(self.request)

        return asyncio.create_task(call())

    async def done(self, limit: float = 200.0) -> Run:
        """Let the call go on until it is over."""
        began, task = self.fleet.clock.now(), self.start()
        await self.fleet.clock.advance(0.0)
        while not task.done() and self.fleet.clock.now() - began < limit:
            await self.fleet.clock.advance(0.125)
        assert task.done(), "the call hangs"
        self.took = self.fleet.clock.now() - began
        self.outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        return self

    @property
    def call(self) -> Call:
        """The call of the request."""
        return call_of(self.request.extensions)

    @property
    def kinds(self) -> list[str]:
        """Kinds of the events, in order."""
        return [event.kind for event in self.told]


def call_for(model: str | None = "m", *, max_attempts: int = 4, **fields: Any) -> Call:
    """Return a call of a chat."""
    payload = {"model": model, **fields.pop("payload", {})}
    options = CallOptions(fallbacks=fields.pop("fallbacks", None))
    facts = RequestFacts(fields.pop("dialect", _CHAT), model, payload=payload)
    return Call(facts, max_attempts, began=1000.0, options=options, **fields)


def request_of(call: Call | None = None) -> httpx.Request:
    """Return the request of a call."""
    call = call or call_for()
    return httpx.Request(
        "POST", "http://pool/v1/chat/completions", json=call.facts.payload, extensions={CALL: call}
    )


def saying(status: int, error: dict[str, Any], **headers: str) -> Callable[[], httpx.Response]:
    """Return what makes an error response that was read and classified."""
    fault = fault_of_error(status, error)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: httpx.Response(
        status, headers=named, json={"error": error}, extensions={FAULT: fault}
    )


def _model_in(request: httpx.Request) -> str | None:
    if not isinstance(request.stream, httpx.ByteStream):
        return None
    model: str | None = json.loads(b"".join(request.stream) or b"{}").get("model")
    return model

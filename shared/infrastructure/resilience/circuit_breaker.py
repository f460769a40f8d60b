"""Circuit breaker: stop calling a service that keeps failing, and find out when it is back.

Four promises hold under any concurrency: half-open admits no more probes than it may; an outcome
of a call that began before the last transition is ignored; a cancelled call or probe counts for
nothing and gives its slot back; a probe that never ends loses its slot when its lease runs out.
"""

from __future__ import annotations

import enum
from typing import Any

from pydantic import BaseModel, Field

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import CircuitOpenError
from shared.infrastructure.resilience.events import NO_LISTENERS, CircuitStateChanged, Listeners
from shared.infrastructure.resilience.layer import Inner, Req, Res, Verdict


class CircuitState(enum.StrEnum):
    """What a circuit breaker does with the next call."""

    CLOSED = "closed"
    """Lets it through."""
    OPEN = "open"
    """Refuses it."""
    HALF_OPEN = "half_open"
    """Lets it through as a probe, if a probe is free."""


class CircuitBreakerConfig(BaseModel, frozen=True, extra="forbid"):
    """When a circuit breaker opens, and how it closes again.

    Attributes:
        failure_threshold: Failures in a row that open the circuit; 5; at least 1.
        success_threshold: Successful probes that close it again; 2; at least 1.
        timeout: Seconds open before the first probe; 60; above 0.
        half_open_max_calls: Probes in flight at the same time; 1; at least 1.
        probe_lease: Seconds after which a probe that has not ended counts as failed; 30; above 0.
    """

    failure_threshold: int = Field(default=5, ge=1)
    success_threshold: int = Field(default=2, ge=1)
    timeout: float = Field(default=60.0, gt=0)
    half_open_max_calls: int = Field(default=1, ge=1)
    probe_lease: float = Field(default=30.0, gt=0)


class Permit:
    """Leave to make one call; tell it how the call ended.

    All calls of one closed period share a permit, so that the ordinary case allocates nothing.
    """

    __slots__ = ("_breaker", "epoch", "expires", "is_probe")

    def __init__(self, breaker: CircuitBreaker, epoch: int, expires: float | None = None) -> None:
        self._breaker = breaker
        self.epoch = epoch
        self.is_probe = expires is not None
        self.expires = expires or 0.0

    def settle(self, verdict: Verdict) -> None:
        """Report the outcome; a second report of a probe, or a stale one, changes nothing."""
        self._breaker.settle(self, verdict)


class CircuitBreaker:
    """The state machine; it never waits, so asyncio needs no lock around it.

    Args:
        name: Service it guards, used in errors and events.
        config: Thresholds and times.
        clock: Source of monotonic time.
        listeners: Told of every transition.
    """

    def __init__(
        self,
        name: str = "service",
        config: CircuitBreakerConfig | None = None,
        *,
        clock: Clock = MONOTONIC,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self.name = name
        self.config = config or CircuitBreakerConfig()
        self._clock = clock
        self._listeners = listeners
        self._state = CircuitState.CLOSED
        self._epoch = 0
        self._closed_permit = Permit(self, 0)
        self._failures_in_row = 0
        self._open_until = 0.0
        self._probes: set[Permit] = set()
        self._probe_successes = 0
        self._changed_at = clock.now()
        self._refused = self._stale = self._opened = 0

    @property
    def state(self) -> CircuitState:
        """What the next call will meet; reading it changes nothing."""
        if self._state is CircuitState.OPEN and self._clock.now() >= self._open_until:
            return CircuitState.HALF_OPEN
        return self._state

    def check(self) -> None:
        """Raise `CircuitOpenError` if `admit` would refuse; take nothing."""
        if self._state is not CircuitState.CLOSED:
            self._advance()
            if not self._has_room():
                self._refuse()

    def admit(self) -> Permit:
        """Return a permit that must be settled once, or raise `CircuitOpenError`."""
        if self._state is CircuitState.CLOSED:
            return self._closed_permit
        self._advance()
        if not self._has_room():
            self._refuse()
        probe = Permit(self, self._epoch, self._clock.now() + self.config.probe_lease)
        self._probes.add(probe)
        return probe

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        """Take note of how the call of `permit` ended."""
        if permit.epoch != self._epoch:
            self._stale += 1
        elif permit.is_probe:
            self._settle_probe(permit, verdict)
        elif verdict is Verdict.OK:
            self._failures_in_row = 0
        elif verdict is Verdict.FAILED:
            self._failures_in_row += 1
            if self._failures_in_row >= self.config.failure_threshold:
                self._open(f"{self._failures_in_row} failures in a row")

    def snapshot(self) -> dict[str, Any]:
        """Return state, counters and times as plain JSON types; times are seconds."""
        now = self._clock.now()
        return {
            "state": self.state.value,
            "failure_count": self._failures_in_row,
            "failure_threshold": self.config.failure_threshold,
            "probes_in_flight": len(self._probes),
            "probe_successes": self._probe_successes,
            "opened_count": self._opened,
            "refused_count": self._refused,
            "stale_outcome_count": self._stale,
            "seconds_in_state": now - self._changed_at,
            "retry_after": self._retry_after(),
        }

    def _settle_probe(self, probe: Permit, verdict: Verdict) -> None:
        if probe not in self._probes:
            return
        self._probes.discard(probe)
        if verdict is Verdict.FAILED:
            self._open("a probe failed")
        elif verdict is Verdict.OK:
            self._probe_successes += 1
            if self._probe_successes >= self.config.success_threshold:
                self._enter(CircuitState.CLOSED, f"{self._probe_successes} probes succeeded")

    def _advance(self) -> None:
        """Make the transition that only the passing of time asks for."""
        now = self._clock.now()
        if self._state is CircuitState.OPEN and now >= self._open_until:
            self._enter(CircuitState.HALF_OPEN, "open time is over")
        elif any(now >= probe.expires for probe in self._probes):
            self._open("a probe did not end within its lease")

    def _has_room(self) -> bool:
        if self._state is not CircuitState.HALF_OPEN:
            return False
        # More probes than successes still missing could only delay the verdict.
        missing = self.config.success_threshold - self._probe_successes
        return len(self._probes) < min(self.config.half_open_max_calls, missing)

    def _refuse(self) -> None:
        self._refused += 1
        reason = (
            "every probe is taken" if self._state is CircuitState.HALF_OPEN else "it keeps failing"
        )
        raise CircuitOpenError(
            f"circuit of {self.name!r} is {self._state.value}: {reason}",
            service=self.name,
            retry_after=self._retry_after(),
        )

    def _retry_after(self) -> float | None:
        if self._state is CircuitState.OPEN:
            return max(0.0, self._open_until - self._clock.now())
        return None

    def _open(self, reason: str) -> None:
        self._open_until = self._clock.now() + self.config.timeout
        self._opened += 1
        self._enter(CircuitState.OPEN, reason)

    def _enter(self, state: CircuitState, reason: str) -> None:
        old, self._state = self._state, state
        self._epoch += 1
        self._closed_permit = Permit(self, self._epoch)
        self._failures_in_row = self._probe_successes = 0
        self._probes.clear()
        self._changed_at = self._clock.now()
        self._listeners(CircuitStateChanged(self.name, old.value, state.value, reason))


class CircuitGate:
    """Refuse a call while the circuit is open, before it queues for anything.

    Position: above rate limiter and bulkhead, so that nobody waits behind an open circuit. It
    takes no permit: that is for `CircuitBreakerLayer`, below the queues, over the same breaker.
    """

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        self._breaker.check()
        return await inner.send(request)


class CircuitBreakerLayer:
    """Count every attempt's outcome, and hold a permit until its answer is over.

    Position: below retry, so that it counts attempts; below the queues, so that no half-open probe
    is spent on waiting; above the attempt timeout, so that it sees one.
    """

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        permit = self._breaker.admit()
        try:
            response = await inner.send(request)
        except BaseException as exc:
            permit.settle(inner.semantics.judge(exc))
            raise
        return inner.semantics.watch(response, permit.settle)

"""Circuit breaker: stop calling a service that keeps failing, and find out when it is back.

Four promises hold under any concurrency: half-open admits no more probes than it may; an outcome
of a call that began before the last transition is ignored; a cancelled call or probe counts for
nothing and gives its slot back; a probe that never ends loses its slot when its lease runs out.
"""

from __future__ import annotations

import enum
import random
from typing import Any, NoReturn

from pydantic import Field

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import CircuitOpenError
from shared.infrastructure.resilience.events import (
    NO_LISTENERS,
    CallRefused,
    CircuitStateChanged,
    Listeners,
)
from shared.infrastructure.resilience.layer import Verdict
from shared.infrastructure.resilience.trip_rules import TripConfig, TripRules
from shared.infrastructure.resilience.windows import OutcomeWindow

# Bound once: both are read on every call.
_OK, _FAILED = Verdict.OK, Verdict.FAILED
# Share of the calls let through at the very beginning of a ramp.
_RAMP_FLOOR = 0.1


class CircuitState(enum.StrEnum):
    """What a circuit breaker does with the next call."""

    CLOSED = "closed"
    """Lets it through."""
    OPEN = "open"
    """Refuses it."""
    HALF_OPEN = "half_open"
    """Lets it through as a probe, if a probe is free."""
    FORCED_OPEN = "forced_open"
    """Refuses it, whatever happens, until told otherwise."""
    DISABLED = "disabled"
    """Lets it through and looks away."""
    METRICS_ONLY = "metrics_only"
    """Lets it through and counts it, but never opens."""


class CircuitBreakerConfig(TripConfig, frozen=True, extra="forbid"):
    """When a circuit breaker opens, by the fields of `TripConfig`, and how it closes again.

    Attributes:
        success_threshold: Successful probes that close it again; 2; at least 1.
        timeout: Seconds open before the first probe; 60; above 0.
        max_timeout: Each failed round of probes doubles the seconds open, up to this; 300. What is
            added is jittered, so that a fleet does not come back all at once.
        half_open_max_calls: Probes in flight at the same time; 1; at least 1.
        probe_lease: Seconds after which a probe that has not ended counts as failed; 30; above 0.
        ramp_up: Seconds after closing in which only a growing share of the calls is let through,
            from a tenth on; 0 (default) lets all through at once.
        obey_retry_after: Open at once, for as long as it asks, when a failed answer comes with
            Retry-After; False.
    """

    success_threshold: int = Field(default=2, ge=1)
    timeout: float = Field(default=60.0, gt=0)
    max_timeout: float = Field(default=300.0, gt=0)
    half_open_max_calls: int = Field(default=1, ge=1)
    probe_lease: float = Field(default=30.0, gt=0)
    ramp_up: float = Field(default=0.0, ge=0)
    obey_retry_after: bool = False

    def open_time(self, failed_rounds: int, rng: random.Random) -> float:
        """Return the seconds to stay open after so many rounds of probes that failed."""
        if failed_rounds == 0:
            return self.timeout
        longest = max(self.timeout, min(self.max_timeout, self.timeout * 2.0**failed_rounds))
        return rng.uniform(longest / 2.0, longest) if longest > self.timeout else self.timeout


class Permit:
    """Leave to make one call; tell it how the call ended.

    Calls of one closed period may share a permit, so that the ordinary case allocates nothing.
    """

    __slots__ = ("_breaker", "_now", "_rules", "_window", "epoch", "expires", "is_probe")

    def __init__(self, breaker: CircuitBreaker, epoch: int, expires: float | None = None) -> None:
        self._breaker = breaker
        self.epoch = epoch
        self.is_probe = expires is not None
        self.expires = expires or 0.0
        self._now = breaker.clock.now
        self._rules: TripRules | None = None
        self._window: OutcomeWindow | None = None

    def share(self, rules: TripRules | None) -> None:
        """Let a success go straight to `rules` while the period lasts; None ends that."""
        self._rules = rules
        self._window = rules.window if rules else None

    def settle(self, verdict: Verdict) -> None:
        """Report the outcome; a second report of a probe, or a stale one, changes nothing."""
        if verdict is _OK and self._rules is not None and self._window is not None:
            self._rules.failures_in_row = 0
            self._window.succeed(self._now())
        else:
            self._breaker.settle(self, verdict)


class CircuitBreaker:
    """The state machine; it never waits, so asyncio needs no lock around it.

    Args:
        name: Service it guards, used in errors and events.
        config: Thresholds and times.
        clock: Source of monotonic time.
        rng: Source of jitter.
        listeners: Told of every transition and every refusal.

    Attributes:
        name: As given.
        config: As given.
        clock: As given.
        shared_permit: What `admit` returns while it has nothing to decide; None otherwise.
    """

    def __init__(
        self,
        name: str = "service",
        config: CircuitBreakerConfig | None = None,
        *,
        clock: Clock = MONOTONIC,
        rng: random.Random | None = None,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self.name = name
        self.config = config or CircuitBreakerConfig()
        self.clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._listeners = listeners
        self._rules = TripRules(self.config)
        self._state = CircuitState.CLOSED
        self._epoch = 0
        self._changed_at = clock.now()
        self._open_until = self._ramp_began = 0.0
        self._failed_rounds = 0
        self._probes: set[Permit] = set()
        self._probe_successes = 0
        self._refused = self._stale = self._opened = self._would_open = 0
        self.shared_permit = self._make_shared_permit()

    @property
    def state(self) -> CircuitState:
        """What the next call will meet; reading it changes nothing."""
        if self._state is CircuitState.OPEN and self.clock.now() >= self._open_until:
            return CircuitState.HALF_OPEN
        return self._state

    @property
    def refuses_all(self) -> bool:
        """Whether every call would be refused now, without the price of an exception."""
        return self.state in {CircuitState.OPEN, CircuitState.FORCED_OPEN}

    def admits(self) -> bool:
        """Say whether a call would get a permit now, but for chance while it ramps up."""
        if self.shared_permit is None:
            self._advance(self.clock.now())
            return self._lets_through() or self._has_room()
        return True

    def check(self) -> None:
        """Raise `CircuitOpenError` if no call may pass; take nothing."""
        if not self.admits():
            self._refuse()

    def admit(self) -> Permit:
        """Return a permit that must be settled once, or raise `CircuitOpenError`."""
        if self.shared_permit is not None:
            return self.shared_permit
        now = self.clock.now()
        self._advance(now)
        if self._lets_through():
            if self._is_held_back(now):
                self._refuse()
            permit = Permit(self, self._epoch)
            if self._rules.watches_time:
                self._rules.begin(permit, now)
            return permit
        if not self._has_room():
            self._refuse()
        probe = Permit(self, self._epoch, now + self.config.probe_lease)
        self._probes.add(probe)
        return probe

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        """Take note of how the call of `permit` ended."""
        if permit.epoch != self._epoch:
            self._stale += 1
        elif permit.is_probe:
            self._settle_probe(permit, verdict)
        elif verdict is Verdict.VOID or verdict is Verdict.BUSY:
            self._rules.forget(permit)
        elif self._state is not CircuitState.DISABLED:
            now = self.clock.now()
            reason = self._rules.end(permit, now, failed=verdict is _FAILED)
            if reason is not None:
                self._trip(reason)

    def open_for(self, seconds: float, reason: str = "the service asked for it") -> None:
        """Open now and stay so for `seconds`; see `open_until`."""
        self.open_until(self.clock.now() + seconds, reason)

    def open_until(self, instant: float, reason: str = "the service asked for it") -> None:
        """Open now and stay so until `instant` on the breaker's clock, `max_timeout` at most.

        Nothing happens if it is switched by hand, or open for longer anyway.
        """
        latest = self.clock.now() + max(self.config.timeout, self.config.max_timeout)
        if self._state in {CircuitState.CLOSED, CircuitState.HALF_OPEN}:
            self._open(min(instant, latest), reason)
        elif self._state is CircuitState.OPEN:
            self._open_until = max(self._open_until, min(instant, latest))

    def invite_probe(self) -> None:
        """End the open time now, for there is reason to believe that the service is back."""
        if self._state is CircuitState.OPEN:
            self._open_until = self.clock.now()

    def force_open(self) -> None:
        """Refuse every call until `reset`."""
        self._switch(CircuitState.FORCED_OPEN)

    def disable(self) -> None:
        """Let every call through and count nothing until `reset`."""
        self._switch(CircuitState.DISABLED)

    def metrics_only(self) -> None:
        """Let every call through and count when it would have opened, until `reset`."""
        self._switch(CircuitState.METRICS_ONLY)

    def reset(self) -> None:
        """Close, forget everything, and go by the rules again."""
        self._failed_rounds = 0
        self._switch(CircuitState.CLOSED)

    def snapshot(self) -> dict[str, Any]:
        """Return state, counters and times as plain JSON types; times are seconds."""
        now = self.clock.now()
        window = self._rules.window
        window.advance(now)
        return {
            "state": self.state.value,
            "failure_count": self._rules.failures_in_row,
            "failure_threshold": self.config.failure_threshold,
            "window_calls": window.calls,
            "window_failures": window.failures,
            "window_slow_calls": window.slow,
            "probes_in_flight": len(self._probes),
            "probe_successes": self._probe_successes,
            "failed_rounds": self._failed_rounds,
            "opened_count": self._opened,
            "would_open_count": self._would_open,
            "refused_count": self._refused,
            "stale_outcome_count": self._stale,
            "seconds_in_state": now - self._changed_at,
            "retry_after": self._retry_after(),
        }

    def _switch(self, state: CircuitState) -> None:
        self._ramp_began = 0.0
        self._enter(state, "switched by hand")

    def _settle_probe(self, probe: Permit, verdict: Verdict) -> None:
        if probe not in self._probes:
            return
        self._probes.discard(probe)
        if verdict is Verdict.FAILED:
            self._fail_round("a probe failed")
        elif verdict is Verdict.OK:
            self._probe_successes += 1
            if self._probe_successes >= self.config.success_threshold:
                self._failed_rounds = 0
                self._ramp_began = self.clock.now() if self.config.ramp_up else 0.0
                self._enter(CircuitState.CLOSED, f"{self._probe_successes} probes succeeded")

    def _advance(self, now: float) -> None:
        """Make the transition that only the passing of time asks for."""
        if self._state is CircuitState.OPEN:
            if now >= self._open_until:
                self._enter(CircuitState.HALF_OPEN, "open time is over")
        elif any(now >= probe.expires for probe in self._probes):
            self._fail_round("a probe did not end within its lease")
        elif (reason := self._rules.overdue(now)) is not None:
            self._trip(reason)

    def _lets_through(self) -> bool:
        return self._state in {CircuitState.CLOSED, CircuitState.METRICS_ONLY}

    def _is_held_back(self, now: float) -> bool:
        """Draw whether a call waits for the end of the ramp; stop asking once it is over."""
        ramp = self.config.ramp_up
        share = max(_RAMP_FLOOR, (now - self._ramp_began) / ramp) if self._ramp_began else 1.0
        if share < 1.0:
            return self._rng.random() >= share
        if self._ramp_began:
            self._ramp_began = 0.0
            self.shared_permit = self._make_shared_permit()
        return False

    def _has_room(self) -> bool:
        if self._state is not CircuitState.HALF_OPEN:
            return False
        # More probes than successes still missing could only delay the verdict.
        missing = self.config.success_threshold - self._probe_successes
        return len(self._probes) < min(self.config.half_open_max_calls, missing)

    def _refuse(self) -> NoReturn:
        self._refused += 1
        retry_after = self._retry_after()
        if self._listeners.has_audience:
            self._listeners(CallRefused(self.name, CircuitOpenError.code, retry_after))
        raise CircuitOpenError(
            f"circuit of {self.name!r} is {self._state.value}: {_REFUSALS[self._state]}",
            service=self.name,
            retry_after=retry_after,
        )

    def _retry_after(self) -> float | None:
        if self._state is CircuitState.OPEN:
            return max(0.0, self._open_until - self.clock.now())
        return None

    def _trip(self, reason: str) -> None:
        if self._state is CircuitState.METRICS_ONLY:
            self._would_open += 1
            self._rules.clear()
        else:
            self._open(self.clock.now() + self.config.open_time(0, self._rng), reason)

    def _fail_round(self, reason: str) -> None:
        self._failed_rounds += 1
        seconds = self.config.open_time(self._failed_rounds, self._rng)
        self._open(self.clock.now() + seconds, reason)

    def _open(self, until: float, reason: str) -> None:
        self._open_until = until
        self._opened += 1
        self._enter(CircuitState.OPEN, reason)

    def _enter(self, state: CircuitState, reason: str) -> None:
        old, self._state = self._state, state
        self._epoch += 1
        self._rules.clear()
        self._probes.clear()
        self._probe_successes = 0
        self._changed_at = self.clock.now()
        if self.shared_permit is not None:
            self.shared_permit.share(None)
        self.shared_permit = self._make_shared_permit()
        self._listeners(CircuitStateChanged(self.name, old.value, state.value, reason))

    def _make_shared_permit(self) -> Permit | None:
        """Return the permit of every call to come, where none needs one of its own."""
        is_ramping = self._ramp_began > 0.0
        if self._state is CircuitState.DISABLED or (
            self._lets_through() and not (is_ramping or self._rules.watches_time)
        ):
            permit = Permit(self, self._epoch)
            permit.share(self._rules if self._lets_through() else None)
            return permit
        return None


_REFUSALS = {
    CircuitState.OPEN: "it keeps failing",
    CircuitState.HALF_OPEN: "every probe is taken",
    CircuitState.FORCED_OPEN: "it was switched off by hand",
    CircuitState.CLOSED: "it has just come back and gets its calls little by little",
    CircuitState.METRICS_ONLY: "it has just come back and gets its calls little by little",
}

"""Balance: a `Send` that gives each attempt to one of several hosts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass

import httpx

from shared.infrastructure.balancing.accounting import Estimate
from shared.infrastructure.balancing.call import Call, Outlook, call_of
from shared.infrastructure.balancing.config import BalanceConfig
from shared.infrastructure.balancing.errors import (
    NoHostAvailableError,
    NotRunningError,
    TokenLimitError,
)
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.balancing.hosts import (
    Admission,
    Host,
    Obstacle,
    RoomLine,
    Roster,
    obstacle_of,
)
from shared.infrastructure.balancing.strategies import BalancingStrategy
from shared.infrastructure.balancing.strategies.protocol import PickContext
from shared.infrastructure.resilience import (
    MONOTONIC,
    CallRefusedError,
    CircuitOpenError,
    Clock,
    RateLimitExceededError,
)
from shared.infrastructure.resilience.hedge import UNSENT
from shared.infrastructure.resilience.timeout import within_deadline

_UNKNOWN = Estimate(0, 0)
_OTHERS = Obstacle("it has room, but other calls came before")
Refusals = dict[str, CallRefusedError]
"""Hosts whose own stack refused the call, within one attempt."""


class Balance:
    """Filters the hosts, lets a strategy pick one, and sends the request there.

    Position: below failover and hedging, above one stack per host and model. Hosts the call has not
    tried come first, then those that may be asked again; those that asked for patience are never
    asked early. If so many are open or down that it is more likely our own trouble, that is
    ignored. Where it is only a matter of room, the call waits in one line for all hosts. A host
    whose own stack refuses the call is passed over within the same attempt.

    Args:
        roster: The hosts.
        strategy: Picks among those that are left.
        config: How long to wait for room.
        clock: Source of monotonic time.

    Attributes:
        failovers: Attempts that went to another host than the one before them in their call.
    """

    def __init__(
        self,
        roster: Roster,
        strategy: BalancingStrategy,
        config: BalanceConfig,
        *,
        clock: Clock = MONOTONIC,
    ) -> None:
        self.failovers = 0
        self._roster = roster
        self._strategy = strategy
        self._config = config
        self._clock = clock
        self._line = RoomLine[Admission](clock)
        self._is_closed = False
        roster.on_room = self._line.pump
        roster.on_change = self._line.review

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if self._is_closed:
            raise _stopped()
        call = call_of(request.extensions)
        previous = call.host
        refusals: Refusals = {}
        while True:
            admission = None
            if not (self._line and _key_of(call, refusals) in self._line):
                admission = self._admit(call, refusals)
            if admission is None:
                admission = await self._wait(call, refusals)
            host = admission.host
            try:
                return await host.send(request, admission)
            except CallRefusedError as exc:
                refusals[host.name] = exc
            except asyncio.CancelledError as exc:
                if not admission.is_sent:
                    vars(exc)[UNSENT] = True
                raise
            finally:
                is_elsewhere = previous is not None and host.name != previous
                if is_elsewhere and admission.is_sent and not admission.attempt.is_hedge:
                    self.failovers += 1

    def outlook(self, call: Call) -> Outlook | None:
        """Return when some host may take another attempt of a call; None if none ever may."""
        roster, now = self._roster, self._clock.now()
        view = roster.view(call.facts, now)
        candidates, _ = roster.eligible(view, call)
        if candidates:
            return Outlook(0.0, call.is_fresh(candidates[0].name))
        waits = [
            Outlook(obstacle.seconds, call.is_fresh(name))
            for name, obstacle in self._look(call, {})
            if obstacle and obstacle.seconds is not None and not obstacle.is_for_good
        ]
        return min(waits, key=lambda each: (each.seconds, not each.is_fresh), default=None)

    def has_room(self, call: Call) -> bool:
        """Say whether a well host that a call has not tried would take it at once."""
        if self._line:
            return False  # nobody barges
        view = self._roster.view(call.facts, self._clock.now())
        estimate = self._estimate(call) if view.has_limits else _UNKNOWN
        return any(
            call.is_fresh(host.name)
            and host.in_flight < host.room
            and host.has_pace()
            and host.takes(estimate)
            for host in view.well
        )

    def close(self) -> None:
        """Let go whoever waits for room, and refuse all calls from now on."""
        self._is_closed = True
        self._line.close(_stopped)

    def snapshot(self) -> dict[str, int]:
        """Return counters as plain JSON types."""
        return {"failover_count": self.failovers, "waiting": len(self._line)}

    def _admit(self, call: Call, refusals: Collection[str]) -> Admission | None:
        """Pick a host for a call, and take a place there; None if no host has one."""
        roster, now = self._roster, self._clock.now()
        view = roster.view(call.facts, now)
        candidates, in_panic = roster.eligible(view, call, refusals)
        if not candidates:
            return None
        estimate = None
        if view.has_limits:
            estimate = self._estimate(call)
            candidates = [host for host in candidates if host.takes(estimate)]
            if not candidates:
                return None
            candidates = _of_length(candidates, estimate)
        host = self._pick(candidates, PickContext(call.facts, now))
        return host.admit(call, estimate, ignores_circuit=in_panic)

    def _pick(self, candidates: Sequence[Host], context: PickContext) -> Host:
        """Pick a host, if possible one where the call gets its permit at once."""
        host = self._strategy.pick(candidates, context)
        if host.has_pace():
            return host
        left = [other for other in candidates if other.has_pace()]
        return self._strategy.pick(left, context) if left else host

    async def _wait(self, call: Call, refusals: Refusals) -> Admission:
        """Wait for room.

        Raises:
            NoHostAvailableError: There will be none in time.
        """
        config, want = self._config, self._wanted_by(call, refusals)
        patience = within_deadline(config.queue_timeout) or 0.0
        if patience > 0.0 and len(self._line) < config.max_queued:
            error = want.hopeless(patience)
            if error is not None:
                raise error
            try:
                admission = await self._line.join(want, patience)
            except asyncio.CancelledError as exc:
                vars(exc)[UNSENT] = True
                raise
            if admission is not None:
                return admission
        raise self._nobody(call, refusals)

    def _due(self, call: Call) -> float:
        """Return the seconds after which there may be room although no call has ended."""
        now = self._clock.now()
        return min(self._roster.view(call.facts, now).until - now, self._refill(call))

    def _refill(self, call: Call) -> float:
        """Return the seconds after which token limits leave room somewhere; inf: they do now."""
        view = self._roster.view(call.facts, self._clock.now())
        if not view.has_limits:
            return math.inf
        estimate = self._estimate(call)
        delays = [host.tokens.delay(estimate) for host in view.well]
        return min((delay for delay in delays if delay > 0.0), default=math.inf)

    def _hopeless(
        self, call: Call, refusals: Refusals, patience: float
    ) -> NoHostAvailableError | None:
        """Return the error of a call for which there is no room now, nor soon enough."""
        longest = min(patience, self._config.max_wait)
        for _, obstacle in self._look(call, refusals):
            # One without an obstacle has room, but others came before.
            if obstacle is None:
                return None
            if obstacle.is_worth_waiting and (obstacle.seconds or 0.0) <= longest:
                return None
        return self._nobody(call, refusals)

    def _estimate(self, call: Call) -> Estimate:
        facts = call.facts
        if facts.dialect is None or facts.payload is None:
            return _UNKNOWN
        return self._roster.estimator.estimate(facts.dialect, facts.payload, facts.model)

    def _look(self, call: Call, refusals: Refusals) -> Iterator[tuple[str, Obstacle | None]]:
        """Yield each host, and why it cannot have an attempt of a call now, if it cannot."""
        now, estimate = self._clock.now(), self._estimate(call)
        for name, host in self._roster.hosts.items():
            refusal = refusals.get(name)
            if refusal is not None:
                yield name, Obstacle(str(refusal), refusal.retry_after, fault=_fault_of(refusal))
            else:
                yield name, obstacle_of(host, call, estimate, now)

    def _nobody(self, call: Call, refusals: Refusals) -> NoHostAvailableError:
        found = {name: obstacle or _OTHERS for name, obstacle in self._look(call, refusals)}
        waits = [obstacle.seconds for obstacle in found.values() if obstacle.seconds]
        return NoHostAvailableError(
            {name: obstacle.reason for name, obstacle in found.items()},
            faults={name: obstacle.fault for name, obstacle in found.items()},
            retry_after=min(waits, default=None),
        )

    def _wanted_by(self, call: Call, refusals: Refusals) -> _Want:
        view = self._roster.view(call.facts, self._clock.now())
        return _Want(
            key=_key_of(call, refusals),
            size=sum(self._estimate(call)[:2]) if view.has_limits else 0.0,
            take=lambda: self._admit(call, refusals),
            due=lambda: self._due(call),
            refill=lambda: self._refill(call),
            hopeless=lambda patience: self._hopeless(call, refusals, patience),
        )


@dataclass(frozen=True, slots=True)
class _Want:
    """What a call waits for in line; see `Want`."""

    key: Hashable
    size: float
    take: Callable[[], Admission | None]
    due: Callable[[], float]
    refill: Callable[[], float]
    hopeless: Callable[[float], NoHostAvailableError | None]


def _of_length(hosts: Sequence[Host], estimate: Estimate) -> Sequence[Host]:
    """Return those that can read so much; all if none can, for an estimate may be wrong."""
    return [host for host in hosts if host.config.reads(estimate.input)] or hosts


def _key_of(call: Call, refusals: Collection[str]) -> Hashable:
    """Return what calls have in common that can go to the same hosts."""
    if call.left or call.busy or refusals:
        return object()
    return call.facts.model, call.facts.needs


def _fault_of(refusal: CallRefusedError) -> Fault | None:
    if isinstance(refusal, (TokenLimitError, RateLimitExceededError)):
        return Fault.THROTTLED
    return Fault.BROKEN if isinstance(refusal, CircuitOpenError) else None


def _stopped() -> NotRunningError:
    return NotRunningError("this client has been stopped; make a new one")

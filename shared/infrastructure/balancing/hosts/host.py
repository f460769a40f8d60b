"""A host at run time."""

from __future__ import annotations

import math
import random
from typing import Any

import httpx

from shared.infrastructure.balancing.accounting import Estimate, TokenLimits
from shared.infrastructure.balancing.call import ATTEMPT, Attempt, Call, call_of
from shared.infrastructure.balancing.fallback import with_model
from shared.infrastructure.balancing.faults import Fault, is_good
from shared.infrastructure.balancing.hosts.admission import ADMISSION, Admission
from shared.infrastructure.balancing.hosts.config import HostPolicy, LLMHost
from shared.infrastructure.balancing.hosts.host_stack import HostStack
from shared.infrastructure.balancing.hosts.idleness import Idleness
from shared.infrastructure.balancing.hosts.keeper import Keeper, Nobody
from shared.infrastructure.balancing.hosts.lane import Lane
from shared.infrastructure.balancing.hosts.lanes import Lanes
from shared.infrastructure.balancing.hosts.slow_start import SlowStart
from shared.infrastructure.balancing.hosts.standing import BADNESS, SHOWN, HostState, Standing
from shared.infrastructure.balancing.semantics import POOL
from shared.infrastructure.http import UpstreamError
from shared.infrastructure.resilience import (
    CallRefusedError,
    CallStats,
    Clock,
    Listeners,
    ServiceError,
    Verdict,
)
from shared.infrastructure.resilience.guard import status_of

# What a host may name a time for, after which it will be better.
_TROUBLES = frozenset({Fault.BROKEN, Fault.OVERLOADED})
_REFUSED_KEY = frozenset({401, 403})
_READY = Standing(HostState.READY)


class Host:
    """A host: its transport, what guards it, its load, its counters, and a lane for each model.

    Args:
        config: What the user said about it.
        policy: What guards it.
        transport: Does the exchanges; closed with it.
        clock: Source of monotonic time.
        listeners: Told of what the layers decide; the service is its name.
        rng: Source of jitter.

    Attributes:
        config: As given.
        name: Its name.
        base_weight: Its weight.
        weight: The same, less while it is in slow start.
        priority: Its tier.
        load: Calls it has been given and that are not over, relative to its weight.
        in_flight: Calls it has been given and that are not over.
        room: Calls it may be given at a time; `inf` is any number.
        turn: Virtual time of its next turn; the round robin's own.
        enabled: Whether it may be given calls.
        drains: Whoever waits for its calls to end, to disable it then: it gets no new ones.
        is_metered: Whether what calls cost is known to be limited.
        misconfigured_until: Instant before which its key counts as refused.
        health: How it has been doing.
        tokens: What is left of its limits.
        lanes: By model.
        keeper: Told of what changes.
        idle: Those who wait until no call is in flight.
        now: Reads the clock.
    """

    def __init__(
        self,
        config: LLMHost,
        policy: HostPolicy,
        transport: httpx.AsyncBaseTransport,
        *,
        clock: Clock,
        listeners: Listeners,
        rng: random.Random,
    ) -> None:
        self.config = config
        self.name = config.name
        self.base_weight = self.weight = config.weight
        self.priority = config.priority
        self.load = self.turn = 0.0
        self.in_flight = 0
        self.enabled = True
        self.drains: set[object] = set()
        self.misconfigured_until = -math.inf
        self.keeper: Keeper = Nobody()
        self.now = clock.now
        self._policy = policy
        self._slow_start = SlowStart(policy.balance.slow_start)
        self._stats = CallStats()
        self.idle = Idleness(clock)
        self.tokens = TokenLimits(config.limits, clock=clock)
        self.is_metered = bool(self.tokens.snapshot())
        self._stack = HostStack(
            config,
            policy,
            transport,
            self._ask_health,
            first_token_p99=self._first_token_p99,
            clock=clock,
            listeners=listeners,
            rng=rng,
        )
        self.health = self._stack.health
        self.health.on_change = self._heed_checks
        self.lanes = Lanes(self._stack.make_lane, self.now)
        self.room = self._measure()

    def latency(self, model: str | None, now: float) -> float | None:
        """Return the peak-sensitive mean of its seconds to an answer, or to a first token."""
        lane = self.lanes.peek(model)
        return None if lane is None else lane.latency.read(now)

    def standing(self, model: str | None, now: float) -> Standing:
        """Return whether it may be given a call, its room left aside, and when that may change."""
        if not self.enabled:
            return Standing(HostState.DISABLED)
        if self.drains:
            return Standing(HostState.DRAINING)
        if self.misconfigured_until > now:
            return Standing(HostState.MISCONFIGURED, self.misconfigured_until)
        if self.health.is_down and (until := self.health.down_until) > now:
            return Standing(HostState.DOWN, until)
        lane = self.lanes.peek(model)
        standing = None if lane is None else lane.standing(now)
        if standing is not None and standing.state is not HostState.READY:
            return standing
        return self._grow(now)

    def admits(self, model: str | None) -> bool:
        """Say whether the circuit of a model would let a call through."""
        lane = self.lanes.peek(model)
        return lane is None or lane.admits()

    def is_ramping(self, model: str | None, now: float) -> bool:
        """Say whether a pause is over after which calls for a model are let through bit by bit."""
        lane = self.lanes.peek(model)
        return lane is not None and lane.is_ramping and lane.throttled_until <= now

    def takes(self, estimate: Estimate) -> bool:
        """Say whether its token limits leave room for a call."""
        return not self.is_metered or self.tokens.delay(estimate) <= 0.0

    def has_pace(self) -> bool:
        """Say whether a call would get its permit from the rate limiter at once."""
        limiter = self._stack.guard.limiter
        return limiter is None or limiter.utilization <= 1.0 - 1.0 / limiter.capacity

    def admit(
        self,
        call: Call,
        estimate: Estimate | None = None,
        *,
        ignores_circuit: bool = False,
        is_direct: bool = False,
    ) -> Admission:
        """Give it a call; `send` takes the admission, or else it has to be withdrawn.

        Args:
            call: The call; an attempt of it departs.
            estimate: What it may cost, if the host is metered.
            ignores_circuit: Whether it goes through even where the circuit is open.
            is_direct: See `Admission`.
        """
        lane = self.lanes.get(call.facts.model)
        admission = Admission(
            self, lane, call, self.now(), ignores_circuit=ignores_circuit, is_direct=is_direct
        )
        if estimate is not None and self.is_metered:
            admission.reserve(self.tokens.reserve(estimate), estimate)
        self.in_flight += 1
        self.load = self.in_flight / self.weight
        if self.in_flight >= self.room:
            self.keeper.filled(self)
        if lane.is_ramping:
            lane.let_through(admission.attempt.began)
            self.keeper.changed()
        return admission

    async def send(
        self, request: httpx.Request, admission: Admission | None = None
    ) -> httpx.Response:
        """Send a request that was made for the pool to this host; it carries its `Call`.

        The response has the `Call` and the `Attempt` as extensions. The attempt is over when its
        body is: at its end, at an error, when it is closed, or when nobody has it any more.
        """
        call = call_of(request.extensions)
        held = admission or self.admit(call, is_direct=True)
        try:
            own = self._readdress(request, call, held)
            response = await held.send(own)
            response.request = own
            try:
                return held.answer(response)
            except BaseException:
                await response.aclose()
                raise
        except BaseException as exc:
            held.fail(exc)
            if isinstance(exc, ServiceError):
                exc.host = self.name
            raise

    def leave(self) -> None:
        """Take note that a call is over."""
        self.in_flight -= 1
        self.load = self.in_flight / self.weight
        if self._stack.guard.bulkhead is not None:
            self.room = self._measure()  # one that adapts has heard of the answer by now
        if not self.in_flight:
            self.idle.wake()
        self.keeper.freed(self)

    async def emptied(self, timeout: float) -> bool:
        """Wait until no call is in flight, or `timeout` seconds; return whether none is."""
        if self.in_flight:
            await self.idle.wait(timeout)
        return not self.in_flight

    def set_weight(self, weight: float) -> None:
        """Change its weight; in slow start, what it grows to."""
        self.weight *= weight / self.base_weight
        self.base_weight = weight
        self.load = self.in_flight / self.weight

    def is_limited(self) -> bool:
        """Say whether it matters what a call costs, or how long it is."""
        return self.is_metered or self.config.context_length is not None

    def start_slowly(self) -> None:
        """Give it a small share at first, which grows to its weight."""
        now = self.now()
        self._slow_start.begin(now)
        self._grow(now)

    def note_recovery(self) -> None:
        """Take note that the circuit of a model has closed; others may have been well all along."""
        if self.lanes.closed(self.now()) <= 1:
            self.start_slowly()

    def start(self) -> None:
        """Begin the active health checks; a second call changes nothing."""
        self.health.start()

    async def aclose(self) -> None:
        """Stop the health checks and close every connection."""
        await self._stack.aclose()

    def snapshot(self) -> dict[str, Any]:
        """Return counters, load, and the state of all that guards it as plain JSON types."""
        now = self.now()
        lanes = self.lanes.snapshot(now)
        self._stats.in_flight = self.in_flight
        guards = self._stack.guard.snapshot()
        worst = self.lanes.worst(now)
        breaker = self._stack.make_breaker() if worst is None else worst.breaker
        guards["circuit_breaker"] = status_of(breaker)
        return {
            "url": self.config.url,
            "weight": self.base_weight,
            "effective_weight": self.weight,
            "priority": self.priority,
            "models": None if self.config.models is None else sorted(self.config.models),
            "enabled": self.enabled,
            "state": self.state(now).value,
            "throttled_for": max((lane["throttled_for"] for lane in lanes.values()), default=0.0),
            **self._stats.snapshot(),
            **guards,
            "token_limits": self.tokens.snapshot(),
            "lanes": lanes,
        }

    def state(self, now: float) -> HostState:
        """Return its state; where models differ, the worst of them."""
        standings = [self.standing(model, now).state for model in self.lanes.models]
        state = max(standings or [self.standing(None, now).state], key=BADNESS.__getitem__)
        return SHOWN.get(state, state)

    # What its admissions tell it.

    def note_answer(self, lane: Lane, attempt: Attempt) -> None:
        """Take note that an answer has begun."""
        now = self.now()
        first = attempt.first_token_at
        seconds = (now if first is None else first) - attempt.began
        lane.observe(seconds, now, is_first_token=first is not None)
        if lane.is_ramping:
            self.keeper.changed()
        if self.misconfigured_until > now:
            self.misconfigured_until = -math.inf
            self.keeper.changed()

    def note_end(self, held: Admission, now: float, retry_after: float | None) -> None:
        """Take note of what became of an attempt, at this instant."""
        lane, attempt, fault = held.lane, held.attempt, held.attempt.fault
        if fault is Fault.OURS:
            self._stats.cancelled += 1
            return
        good = is_good(fault)
        self._stats.settle(good, now - attempt.began, "" if good or not fault else fault)
        if fault is Fault.THROTTLED or (fault in _TROUBLES and retry_after):
            lane.throttle(attempt.began, now, retry_after)
        elif fault is Fault.MISCONFIGURED and not held.is_direct:
            self._note_refused_key(now)
        elif fault is Fault.NO_MODEL and held.is_model_named:
            lane.missing_until = now + self._policy.balance.missing
        else:
            if fault is Fault.SILENT:
                lane.latency.observe(now - attempt.began, now)
            return
        self.keeper.changed()

    def note_unsent(self, error: BaseException) -> None:
        """Count a call that was refused here, or that nobody wanted any more before it was sent."""
        if isinstance(error, CallRefusedError):
            self._stats.refused += 1
        else:
            self._stats.cancelled += 1

    def observe_headers(self, headers: httpx.Headers) -> None:
        """Heed what an answer says of limits."""
        fields: Any = headers
        for _, name, _ in fields._list:  # noqa: SLF001 - the public way takes five times as long
            if b"ratelimit-" in name:
                break
        else:
            return
        self.tokens.observe(headers)
        if not self.is_metered and self.tokens.snapshot():
            self.is_metered = True
            self.keeper.changed()

    def _readdress(self, request: httpx.Request, call: Call, held: Admission) -> httpx.Request:
        facts, name = call.facts, held.attempt.model
        if name is not None and name != facts.model:
            request = with_model(request, name)
        extensions = {ATTEMPT: held.attempt, ADMISSION: held}
        return self._stack.addressing.readdress(request, extensions, streamed=facts.streamed)

    def _first_token_p99(self, model: str | None) -> float | None:
        lane = self.lanes.peek(model)
        return None if lane is None else lane.first_token_p99()

    def _measure(self) -> float:
        """Return how many calls there is room for."""
        bulkhead = self._stack.guard.bulkhead
        # A call that waits for a connection waits for us, and other hosts may have one.
        bounds = (
            self.config.limits.max_in_flight,
            self._policy.max_connections,
            None if bulkhead is None else bulkhead.limit,
        )
        return min((bound for bound in bounds if bound is not None), default=math.inf)

    def _grow(self, now: float) -> Standing:
        """Take the weight that is due in slow start."""
        if self._slow_start.is_over:
            return _READY
        share, until = self._slow_start.share(now)
        self.weight = self.base_weight * share
        self.load = self.in_flight / self.weight
        return Standing(HostState.SLOW_START, until) if share < 1.0 else _READY

    async def _ask_health(self) -> None:
        """Ask it how it is, and heed what only the answer tells."""
        response = await self._stack.ask_health()
        if response.status_code in _REFUSED_KEY:
            self._note_refused_key(self.now())
        elif POOL.judge(response) is Verdict.FAILED:
            raise UpstreamError(f"health check answered {response.status_code}", host=self.name)
        elif response.status_code < 400:
            self.misconfigured_until = -math.inf
            self.lanes.invite_probes()
        self.keeper.changed()

    def _note_refused_key(self, now: float) -> None:
        """Leave it alone, unless it is the caller's own key that was refused, or none."""
        if self._stack.addressing.has_credentials:
            self.misconfigured_until = now + self._policy.balance.misconfigured

    def _heed_checks(self) -> None:
        if not self.health.is_down:
            self.start_slowly()
        self.keeper.changed()

"""Which hosts of a pool may be called at the moment."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from shared.infrastructure.balancing.accounting import Estimate, TokenEstimator, TokenUsage
from shared.infrastructure.balancing.call import Call, RequestFacts
from shared.infrastructure.balancing.config import BalanceConfig
from shared.infrastructure.balancing.hosts.host import Host
from shared.infrastructure.balancing.hosts.standing import AWAY, CALLABLE, ILL, WELL, HostState
from shared.infrastructure.resilience import (
    CircuitState,
    CircuitStateChanged,
    Clock,
    ConfigurationError,
    Event,
)

_MAX_VIEWS = 1000

Hosts = tuple[Host, ...]


class View(NamedTuple):
    """The hosts, as calls that want the same see them.

    Attributes:
        well: Those that may be called, their room left aside.
        probed: Those that may be called if nobody probes them already.
        maybe: Both, in the order of the roster.
        panic: Those that are open or down, if there are so many of them that it is ignored.
        has_limits: Whether it matters to any of them what a call costs, or how long it is.
        until: Instant at which it changes, if nothing happens.
    """

    well: Hosts
    probed: Hosts
    maybe: Hosts
    panic: Hosts
    has_limits: bool
    until: float


class Roster:
    """The hosts, sorted by whether they may be called.

    That is sorted out when something happens, or when a pause is over, and not for each call: while
    nothing does, asking costs one look-up, however many hosts there are, and returns the very same
    tuple. A change makes a new tuple; whoever has the old one goes on undisturbed.

    Args:
        config: How hosts are chosen.
        clock: Source of monotonic time.

    Attributes:
        hosts: All hosts by name.
        on_room: Called whenever there may be room where there was none.
        on_change: Called whenever some host may be called where it might not, or the reverse.
        estimator: Knows what calls cost.
    """

    def __init__(self, config: BalanceConfig, *, clock: Clock) -> None:
        self.hosts: dict[str, Host] = {}
        self.on_room: Callable[[], None] = _nothing
        self.on_change: Callable[[], None] = _nothing
        self.estimator = TokenEstimator()
        self._panic_threshold = config.panic_threshold
        self._clock = clock
        self._views: dict[tuple[str | None, frozenset[str]], View] = {}
        self._same: dict[Hosts, Hosts] = {}
        self._full: set[Host] = set()

    def add(self, host: Host, *, slow_start: bool = False) -> None:
        """Take a host in; with `slow_start` its share grows to its weight.

        Raises:
            ConfigurationError: There is one of this name.
        """
        if host.name in self.hosts:
            raise ConfigurationError(f"host names must be unique: there are two {host.name!r}")
        self.hosts[host.name] = host
        host.keeper = self
        if slow_start:
            host.start_slowly()
        self.changed()

    def remove(self, name: str) -> Host:
        """Let a host go, and return it; its calls go on, and it is not closed."""
        host = self._named(name)
        del self.hosts[name]
        self._full.discard(host)
        host.drains.clear()
        host.idle.wake()
        self.changed()
        return host

    def enable(self, name: str, enabled: bool) -> None:
        """Say whether a host may be given new calls; one that comes back starts slowly."""
        host = self._named(name)
        if enabled and (host.drains or not host.enabled):
            host.start_slowly()
        host.enabled = enabled
        host.drains.clear()
        self.changed()

    def set_weight(self, name: str, weight: float) -> None:
        """Change a host's share of the work relative to the others; above 0."""
        host = self._named(name)
        if not (weight > 0 and math.isfinite(weight)):
            raise ConfigurationError(f"weight of {name} must be above 0, not {weight}")
        host.set_weight(weight)
        self._same.clear()  # what was derived from the weights is out of date
        self.changed()

    async def drain(self, name: str, timeout: float) -> bool:
        """Give a host no new calls, wait for those it has, and disable it.

        Enabling it meanwhile, or cancelling this, leaves it as it was, unless it is drained twice.

        Returns:
            Whether its calls were over within `timeout` seconds.
        """
        host, drain = self._named(name), object()
        host.drains.add(drain)
        self.changed()
        try:
            was_empty = await host.emptied(timeout)
        except BaseException:
            host.drains.discard(drain)
            self.changed()
            raise
        if drain in host.drains:
            host.enabled = False
            host.drains.clear()
            self.changed()
        return was_empty

    async def retire(self, name: str, timeout: float) -> tuple[Host, bool]:
        """Drain a host and let it go; return it, and whether its calls were over in time.

        Raises:
            ConfigurationError: There is no such host, or it was let go meanwhile.
        """
        host = self._named(name)
        was_empty = await self.drain(name, timeout)
        if self.hosts.get(name) is not host:
            raise ConfigurationError(f"host {name!r} was let go meanwhile")
        return self.remove(name), was_empty

    def view(self, facts: RequestFacts, now: float) -> View:
        """Return the hosts as a call with these facts sees them."""
        key = facts.model, facts.needs
        view = self._views.get(key)
        if view is None or now >= view.until:
            view = self._sort(facts, now)
            if len(self._views) >= _MAX_VIEWS:
                self._views.clear()
            self._views[key] = view
        return view

    def eligible(
        self, view: View, call: Call, refused: Collection[str] = ()
    ) -> tuple[Sequence[Host], bool]:
        """Return the hosts that may have an attempt of a call, and whether that is panic.

        Args:
            view: The hosts as the call sees them.
            call: The call.
            refused: Names of hosts that have refused this attempt.
        """
        hosts = _without(self.candidates(view, call), refused)
        if hosts:
            return hosts, False
        return _without(self.in_panic(view, call), refused), True

    def candidates(self, view: View, call: Call) -> Sequence[Host]:
        """Return the hosts that may have an attempt of a call, the ones not tried if there are."""
        hosts: Sequence[Host] = view.well
        if view.probed:
            model = call.facts.model
            taken = [host for host in view.probed if not host.admits(model)]
            if len(taken) < len(view.probed):
                hosts = view.maybe
                if taken:
                    hosts = [host for host in hosts if host not in taken]
        if not (call.left or call.busy or self._full):
            return hosts
        return self._sift(hosts, call)

    def served_by(self, model: str) -> list[tuple[str, str]]:
        """Return the names of the hosts that serve a model, and what each of them calls it."""
        hosts = self.hosts.values()
        serving = [host.config for host in hosts if host.enabled and host.config.serves(model)]
        return [(config.name, config.own_name(model) or model) for config in serving]

    @property
    def is_callable(self) -> bool:
        """Whether some host takes calls now, for one of its models at least."""
        return any(
            host.standing(model, host.now()).state in CALLABLE
            for host in self.hosts.values()
            for model in host.lanes.models or (None,)
        )

    def in_panic(self, view: View, call: Call) -> Sequence[Host]:
        """Return the hosts that may have an attempt if it is ignored that they are open or down.

        That is nobody, unless so many are that the trouble is more likely our own. If all of them
        are, only a call that has had an attempt may: a burst that opened every circuit is not lost,
        and a new call does not go to hosts that refuse.
        """
        if not view.panic or not (view.well or call.attempts):
            return ()
        return self._sift(view.panic, call)

    def on_event(self, event: Event) -> None:
        """Take note of circuits that open or close; a listener."""
        if isinstance(event, CircuitStateChanged) and event.service in self.hosts:
            if event.new == CircuitState.CLOSED:
                self.hosts[event.service].note_recovery()
            self.changed()

    # What its hosts tell it.

    def changed(self) -> None:
        self._views.clear()
        self.on_change()

    def filled(self, host: Host) -> None:
        if self.hosts.get(host.name) is host:
            self._full.add(host)

    def freed(self, host: Host) -> None:
        if host in self._full and host.in_flight < host.room:
            self._full.discard(host)
        self.on_room()

    def learn(self, model: str | None, estimate: Estimate, usage: TokenUsage) -> None:
        self.estimator.learn(model, estimate, usage)

    def _sift(self, hosts: Sequence[Host], call: Call) -> Sequence[Host]:
        full, tried = self._full, {*call.left, *call.busy}
        fresh = [host for host in hosts if host.name not in tried and host not in full]
        if fresh or not tried:
            return fresh
        left = [host for host in hosts if host not in full and call.may_try(host.name)]
        if len(left) < 2:
            return left
        # Another round: who was just asked comes last.
        asked = Counter(attempt.host for attempt in call.attempts)
        fewest = min(asked[host.name] for host in left)
        return [host for host in left if asked[host.name] == fewest]

    def _sort(self, facts: RequestFacts, now: float) -> View:
        well: list[Host] = []
        probed: list[Host] = []
        maybe: list[Host] = []
        ill: list[Host] = []
        present, until, has_limits = 0, math.inf, False
        for host in self.hosts.values():
            if not (host.config.serves(facts.model) and host.config.can(facts.needs)):
                continue
            state, changes = host.standing(facts.model, now)
            until = min(until, changes)
            has_limits = has_limits or host.is_limited()
            present += state not in AWAY
            if state in WELL:
                well.append(host)
                maybe.append(host)
            elif state in ILL:
                ill.append(host)
                if state is HostState.HALF_OPEN:
                    probed.append(host)
                    maybe.append(host)
        # One that asked for patience, say, is no better a place for its calls than an open circuit.
        is_panic = bool(well or len(ill) == present)
        panic = tuple(ill) if is_panic and len(ill) > self._panic_threshold * present else ()
        one = self._one(well)
        both = self._one(maybe) if probed else one
        return View(one, tuple(probed), both, panic, has_limits, until)

    def _one(self, hosts: Sequence[Host]) -> Hosts:
        """Return the one tuple of these hosts: strategies keep what they derive from it."""
        if len(self._same) >= _MAX_VIEWS:
            self._same.clear()
        key = tuple(hosts)
        return self._same.setdefault(key, key)

    def _named(self, name: str) -> Host:
        if name not in self.hosts:
            raise ConfigurationError(f"no host {name!r}: the hosts are {', '.join(self.hosts)}")
        return self.hosts[name]


def _without(hosts: Sequence[Host], refused: Collection[str]) -> Sequence[Host]:
    return [host for host in hosts if host.name not in refused] if refused else hosts


def _nothing() -> None:
    return

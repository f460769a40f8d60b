"""Balance: a `Send` that gives each attempt to one of several hosts."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from shared.infrastructure.balancing.errors import NoHostAvailableError
from shared.infrastructure.balancing.hosts import Host
from shared.infrastructure.balancing.roster import Roster
from shared.infrastructure.balancing.route import POOL, ROUTE, Route, route_of
from shared.infrastructure.balancing.strategies import BalancingStrategy
from shared.infrastructure.resilience import CallRefusedError, ServiceError, Verdict

Refusals = dict[str, CallRefusedError]
"""Hosts whose own stack refused the call, within one attempt."""


class Balance:
    """Filters the hosts, lets a strategy pick one, and sends the request there.

    Position: below retry, above one stack per host. Hosts that are disabled or whose circuit is
    open are out of the question. Of the rest those come first that did not ask for patience, then
    those this call has not tried, then those where it need not wait in line. A host whose own
    stack refuses the call is passed over within the same attempt.

    Args:
        roster: The hosts.
        strategy: Picks among those that are left.

    Attributes:
        failovers: Attempts that went to another host than the one before them in their call.
    """

    def __init__(self, roster: Roster, strategy: BalancingStrategy) -> None:
        self.failovers = 0
        self._roster = roster
        self._strategy = strategy

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        route = route_of(request)
        refusals: Refusals = {}
        while candidates := self._candidates(route, refusals):
            host = self._pick(candidates)
            try:
                return await self._attempt(host, request, route)
            except CallRefusedError as exc:
                refusals[host.name] = exc
        raise self._nobody(refusals)

    def has_fresh_host(self, request: httpx.Request) -> bool:
        """Say whether the next attempt of a call would go to a host it has not tried."""
        tried = route_of(request).tried
        calm, _ = self._roster.usable()
        return any(host.name not in tried for host in calm)

    def _candidates(self, route: Route, refusals: Refusals) -> Sequence[Host]:
        calm, throttled = self._roster.usable()
        if not (route.tried or refusals):
            return calm or throttled
        left = [host for host in calm if host.name not in refusals] or [
            host for host in throttled if host.name not in refusals
        ]
        fresh = [host for host in left if host.name not in route.tried]
        return fresh or [host for host in left if host.name != route.host] or left

    def _pick(self, candidates: Sequence[Host]) -> Host:
        left = candidates
        while left:
            host = self._strategy.pick(left)
            if not host.is_full:
                return host
            left = [other for other in left if other is not host]
        return self._strategy.pick(candidates)

    async def _attempt(self, host: Host, request: httpx.Request, route: Route) -> httpx.Response:
        previous = route.host
        try:
            response = await host.send(request)
        except ServiceError as exc:
            exc.host = host.name
            raise
        finally:
            self.failovers += previous is not None and route.host != previous
        wait = POOL.retry_after(response) if POOL.judge(response) is Verdict.BUSY else None
        if wait:
            self._roster.throttle(host, wait)
        response.extensions = {**response.extensions, ROUTE: route}
        return response

    def _nobody(self, refusals: Refusals) -> NoHostAvailableError:
        reasons: dict[str, str] = {}
        waits: list[float | None] = []
        for host in self._roster.hosts.values():
            refusal = refusals.get(host.name)
            if not host.enabled:
                reasons[host.name] = "disabled"
            elif refusal is not None:
                reasons[host.name] = str(refusal)
                waits.append(refusal.retry_after)
            else:
                reasons[host.name] = "its circuit is open"
                waits.append(host.open_for)
        known = [wait for wait in waits if wait is not None]
        return NoHostAvailableError(reasons, retry_after=min(known, default=None))

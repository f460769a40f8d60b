"""The pool itself: hosts, and the stack of layers that every call to them goes through."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx

from shared.infrastructure.balancing.accounting import (
    AnswerCacheConfig,
    AnswerCacheLayer,
    Ledger,
    LedgerLayer,
    PriceTable,
)
from shared.infrastructure.balancing.balance import Balance
from shared.infrastructure.balancing.call import (
    CALL,
    Call,
    CallOptions,
    Hold,
    RequestFacts,
    call_of,
)
from shared.infrastructure.balancing.config import (
    AnswerTimeoutConfig,
    BalanceConfig,
    FallbackConfig,
)
from shared.infrastructure.balancing.errors import NotRunningError
from shared.infrastructure.balancing.failover import Failover
from shared.infrastructure.balancing.fallback import FallbackChain
from shared.infrastructure.balancing.hedging import PoolHedge
from shared.infrastructure.balancing.hosts import Host, HostPolicy, LLMHost, Roster
from shared.infrastructure.balancing.semantics import POOL
from shared.infrastructure.balancing.shared_transport import SharedTransport
from shared.infrastructure.balancing.strategies import (
    BalancingStrategy,
    LoadBalancingStrategy,
    strategy_of,
)
from shared.infrastructure.http import ConnectionPoolConfig, TimeoutConfig, WireTransport
from shared.infrastructure.http.extensions import TRACE
from shared.infrastructure.http.library import HTTPX
from shared.infrastructure.http.transport import HTTPLayer
from shared.infrastructure.http.wires import timeouts_of
from shared.infrastructure.resilience import (
    MONOTONIC,
    AdaptiveBulkheadConfig,
    AdaptiveRateConfig,
    BulkheadConfig,
    CallStats,
    CircuitBreakerConfig,
    Clock,
    ConfigurationError,
    DeadlineLayer,
    HealthConfig,
    HealthStatus,
    HedgeConfig,
    Listener,
    Listeners,
    ObserveLayer,
    RateLimitConfig,
    RetryBudget,
    RetryBudgetConfig,
    RetryConfig,
    ServiceError,
    stack,
)
from shared.infrastructure.resilience.guard import status_of
from shared.infrastructure.resilience.retry_budget import budget_of
from shared.infrastructure.resilience.timeout import within_deadline
from shared.infrastructure.resilience.trace import trace_call

NAME = "llm"
"""What events about the whole pool name as their service."""

_POOL = ConnectionPoolConfig()
_TIMEOUT = TimeoutConfig()
_ANSWERS = AnswerTimeoutConfig()
_BALANCE = BalanceConfig()
_FALLBACKS = FallbackConfig()
_RETRY = RetryConfig()
# A host that was restarted is back within half a minute, and a probe costs nobody anything.
_BREAKER = CircuitBreakerConfig(timeout=5.0, max_timeout=30.0)
# Pays for all calls in flight at one host, should it die: 100 connections, 10 tokens a retry.
_BUDGET = RetryBudgetConfig(capacity=1000)
# Seconds between two looks at hosts that are awaited.
_LOOK = 0.1


class HostPool:
    """Hosts that serve as one: `DistributedLLMClient` and the transports stand on it.

    Args:
        hosts: At least one; names are unique.
        strategy: Which host gets the next call: one of the enum, or an object with `pick`.
        retry_config: Attempts on all hosts together, and the waits once each had its turn; None is
            a single attempt.
        retry_budget: Bounds the retries and hedges of all calls together; 1000 tokens by default,
            so that the calls in flight at a host that dies can all go on elsewhere; None is no
            bound.
        circuit_breaker_config: Breaker of each model at each host; by default it opens for 5
            seconds at first and 30 at most; None switches it off.
        rate_limit_config: Rate limit of each host; None (default) is no limit.
        bulkhead_config: Bound on calls in flight of each host; None (default) is no bound.
        pool_config: Connection pool of each host.
        timeout_config: Time limits; `total` is also that of a whole stream.
        answer_timeouts: Time limits in terms of content: first token, idle.
        balance_config: How hosts are chosen, beside the strategy.
        hedge_config: Send a late request to another host, too; None (default) never does.
        fallback_config: Which models answer in place of others; by default only those a call
            names.
        answer_cache: Keep answers, and give them again to the very same question; None (default)
            keeps none.
        prices: What tokens cost; None (default) leaves it unknown.
        ledger: Where it is booked, and whose budgets are kept to; it needs prices; None (default)
            books nothing.
        health_config: Active checks, and when a host counts as degraded or unhealthy.
        listeners: Told of what the layers decide; the service is the host's name, or "llm" where
            it is about the whole pool.
        clock: Source of monotonic time.
        rng: Source of jitter and of random picks.
        transport: Transport for all hosts instead of the SDK's own; it brings its own pool and TLS.

    Attributes:
        clock: As given.
        prices: As given.
        roster: The hosts.

    Raises:
        ConfigurationError: There is no host, or two have the same name.
    """

    def __init__(
        self,
        hosts: Sequence[LLMHost],
        strategy: LoadBalancingStrategy | BalancingStrategy = LoadBalancingStrategy.ROUND_ROBIN,
        *,
        retry_config: RetryConfig | None = _RETRY,
        retry_budget: RetryBudget | RetryBudgetConfig | None = _BUDGET,
        circuit_breaker_config: CircuitBreakerConfig | None = _BREAKER,
        rate_limit_config: RateLimitConfig | AdaptiveRateConfig | None = None,
        bulkhead_config: BulkheadConfig | AdaptiveBulkheadConfig | None = None,
        pool_config: ConnectionPoolConfig = _POOL,
        timeout_config: TimeoutConfig = _TIMEOUT,
        answer_timeouts: AnswerTimeoutConfig = _ANSWERS,
        balance_config: BalanceConfig = _BALANCE,
        hedge_config: HedgeConfig | None = None,
        fallback_config: FallbackConfig = _FALLBACKS,
        answer_cache: AnswerCacheConfig | None = None,
        prices: PriceTable | None = None,
        ledger: Ledger | None = None,
        health_config: HealthConfig | None = None,
        listeners: Sequence[Listener] = (),
        clock: Clock = MONOTONIC,
        rng: random.Random | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not hosts:
            raise ConfigurationError("give at least one host")
        self._rng = rng or random.Random()  # noqa: S311 - balancing and jitter are no secrets
        self.clock = clock
        self.prices = prices
        self._ledger = ledger
        self._given = transport
        self._transport = SharedTransport(transport) if transport else None
        self._pool_config = pool_config
        self._timeouts = timeouts_of(timeout_config)
        self._total = timeout_config.total
        further = hedge_config.max_hedges if hedge_config else 0
        self._max_attempts = 1 + (retry_config.max_retries if retry_config else further)
        self._stats = CallStats()
        self._is_started = self._is_stopped = False
        self._policy = HostPolicy(
            timeout=timeout_config,
            answers=answer_timeouts,
            circuit_breaker=circuit_breaker_config,
            rate_limit=rate_limit_config,
            bulkhead=bulkhead_config,
            health=health_config,
            balance=balance_config,
            max_connections=None if transport else pool_config.max_connections,
        )
        self.roster = Roster(balance_config, clock=clock)
        self._listeners = Listeners((*listeners, self.roster.on_event))
        # One TLS context for all: reading the certificates takes longer than all else here.
        self._tls = None if transport else HTTPX.default_tls()
        for host in hosts:
            self.roster.add(self._make(host))
        told: dict[str, Any] = {"clock": clock, "listeners": self._listeners}
        self.balance = Balance(
            self.roster,
            strategy_of(strategy, self._rng),
            balance_config,
            clock=clock,
        )
        self._budget = (
            budget_of(retry_budget, clock=clock) if retry_config or hedge_config else None
        )
        self.failover = Failover(
            self.balance.outlook,
            retry_config,
            balance_config,
            budget=self._budget,
            rng=self._rng,
            **told,
        )
        self._hedge = (
            PoolHedge(
                hedge_config,
                name=NAME,
                budget=self._budget,
                may_hedge=self.balance.has_room,
                **told,
            )
            if hedge_config
            else None
        )
        self._cache = AnswerCacheLayer(answer_cache, clock=clock) if answer_cache else None
        per_call: list[HTTPLayer] = [ObserveLayer(self._stats, clock=clock)]
        if self._cache is not None:
            per_call.append(self._cache)
        if ledger is not None:
            if prices is None:
                raise ConfigurationError("a ledger books what tokens cost: give prices, too")
            per_call.append(
                LedgerLayer(ledger, prices, self.roster.estimator, self.roster.served_by)
            )
        if self._total is not None:
            per_call.append(DeadlineLayer(self._total, name=NAME, **told))
        chain = FallbackChain(fallback_config, name=NAME, listeners=self._listeners)
        per_call += [chain, self.failover]
        if self._hedge is not None:
            per_call.append(self._hedge)
        self._send = stack(self.balance, *per_call, semantics=POOL)

    async def start(self) -> None:
        """Begin the active health checks; a second call changes nothing."""
        self.refuse_if_stopped()
        if not self._is_started:
            self._is_started = True
            for host in self.hosts:
                host.start()

    async def stop(self) -> None:
        """End the health checks and close every connection; a second call changes nothing.

        Raises:
            ConfigurationError: The checks were begun on another event loop; all else is closed.
        """
        self._is_stopped = True
        self.balance.close()
        closing = [host.aclose() for host in self.hosts]
        if self._given is not None:
            closing.append(self._given.aclose())
        outcomes = await asyncio.gather(*closing, return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    @property
    def hosts(self) -> list[Host]:
        """All hosts, in the order in which they came."""
        return list(self.roster.hosts.values())

    @property
    def is_running(self) -> bool:
        """Whether calls are possible."""
        return not self._is_stopped

    def refuse_if_stopped(self) -> None:
        """Raise `NotRunningError` if the pool has been stopped."""
        if self._is_stopped:
            raise NotRunningError("this client has been stopped; make a new one")

    def in_new_call(
        self,
        facts: RequestFacts,
        hold: Hold,
        options: CallOptions,
        extensions: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Return the extensions of a request as those of a new call."""
        if options.session is not None:
            facts = replace(facts, affinity=options.session)
        now, left = self.clock.now(), within_deadline(self._total)
        deadline = None if left is None else now + left
        call = Call(facts, self._max_attempts, now, hold, options, deadline)
        asked = extensions.get("timeout")
        timeouts = _shorter(self._timeouts, asked) if asked else self._timeouts
        return {**extensions, "timeout": timeouts, CALL: call}

    async def exchange(self, request: httpx.Request) -> httpx.Response:
        """Send a request, whose extensions hold its `Call`, until there is an answer."""
        self.refuse_if_stopped()
        try:
            with trace_call(clock=self.clock) as trace:
                response = await self._send(request)
        except ServiceError as exc:
            exc.attempts = len(call_of(request.extensions).attempts)
            raise
        response.extensions = {**response.extensions, TRACE: trace}
        return response

    def add(self, config: LLMHost) -> None:
        """Take a host in.

        Raises:
            ConfigurationError: There is one of this name.
        """
        self.refuse_if_stopped()
        host = self._make(config)
        self.roster.add(host, slow_start=True)
        if self._is_started:
            host.start()

    async def remove(self, name: str, timeout: float) -> bool:
        """Let a host go once its calls are over, or `timeout` seconds have passed.

        Returns:
            Whether its calls were over.
        """
        host, was_empty = await self.roster.retire(name, timeout)
        await host.aclose()
        return was_empty

    async def check_all(self) -> dict[str, dict[str, Any]]:
        """Ask every host at once, the disabled ones too; return each one's health snapshot."""
        self.refuse_if_stopped()
        hosts = self.hosts
        await asyncio.gather(*(host.health.check() for host in hosts))
        return {host.name: host.health.snapshot() for host in hosts}

    async def wait_ready(self, count: int) -> None:
        """Wait until so many hosts have been found well."""
        while True:
            await self.check_all()
            well = {HealthStatus.HEALTHY, HealthStatus.DEGRADED}
            if sum(host.health.status in well for host in self.hosts if host.enabled) >= count:
                return
            await self.clock.sleep(_LOOK)

    def metrics(self) -> dict[str, Any]:
        """Return counters as plain JSON types; times are seconds."""
        hedge = self._hedge.snapshot() if self._hedge else {}
        return {
            "totals": {
                **self._stats.snapshot(),
                "failover_count": self.balance.failovers,
                "hedged_count": hedge.get("hedged_count", 0),
            },
            "hosts": {host.name: host.snapshot() for host in self.hosts},
        }

    def status(self) -> dict[str, Any]:
        """Return the metrics, what all hosts share, whether it runs, and who may be called."""
        metrics = self.metrics()
        ready = {"ready", "slow_start"}
        return {
            "running": self.is_running,
            "available_hosts": [
                name for name, host in metrics["hosts"].items() if host["state"] in ready
            ],
            "retry_budget": status_of(self._budget),
            "hedge": status_of(self._hedge),
            "answer_cache": status_of(self._cache),
            "ledger": status_of(self._ledger),
            **metrics,
        }

    def _make(self, config: LLMHost) -> Host:
        transport = self._transport or WireTransport(self._pool_config, tls=self._tls)
        return Host(
            config,
            self._policy,
            transport,
            clock=self.clock,
            listeners=self._listeners,
            rng=self._rng,
        )


def _shorter(
    ours: Mapping[str, float | None], theirs: Mapping[str, float | None]
) -> dict[str, float | None]:
    """Return the smaller one of each two limits; None is none."""
    pairs = {name: (own, theirs.get(name)) for name, own in ours.items()}
    return {
        name: min((limit for limit in pair if limit is not None), default=None)
        for name, pair in pairs.items()
    }

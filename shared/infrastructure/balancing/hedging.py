"""Hedging in a pool: a late request goes to another host too, and the first good answer counts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from shared.infrastructure.balancing.call import Call, call_of
from shared.infrastructure.balancing.semantics import is_hedgeable
from shared.infrastructure.resilience import (
    MONOTONIC,
    Clock,
    HedgeConfig,
    HedgeLayer,
    Keyed,
    Listeners,
    RetryBudget,
)
from shared.infrastructure.resilience.events import NO_LISTENERS
from shared.infrastructure.resilience.layer import Inner

Kind = tuple[str | None, bool, str]


class PoolHedge:
    """Sends a late request to a second host, and returns the first answer; see `HedgeLayer`.

    Position: below failover, above balancing, which keeps the legs of a race apart. A race is one
    attempt to failover: it fails when all of its legs did.

    What is late depends on the kind of call, for a whole answer takes longer than a first token:
    each model has its own latencies, and of each model streams, plain answers and streams that are
    held until they are whole. Calls with tools, those that store their answer, and those of an API
    that we do not know are sent once. Hedges are attempts of their call, which may take so many.

    A leg that was sent and stayed silent until a later one had its answer speaks against its host:
    the reason why a frozen host is found out although no call waits for it.

    Args:
        config: Delay and number of hedges.
        name: The pool, in events.
        budget: Pays for hedges; that of failover, which pays in.
        may_hedge: Says whether there is room for a hedge of a call now; by default there always
            is: that one host asks for patience is nothing against a hedge at another.
        clock: Source of monotonic time.
        listeners: Told of every hedge: sent, skipped, won or lost.
    """

    def __init__(
        self,
        config: HedgeConfig,
        *,
        name: str = "llm",
        budget: RetryBudget | None = None,
        may_hedge: Callable[[Call], bool] = lambda _call: True,
        clock: Clock = MONOTONIC,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self._config = config
        self._layers = Keyed(
            lambda _kind: HedgeLayer(
                config,
                name=name,
                budget=budget,
                pays_in=False,
                may_hedge=lambda request: may_hedge(call_of(request.extensions)),
                clock=clock,
                listeners=listeners,
            )
        )

    def describe(self) -> str:
        """Say the main numbers in one line."""
        return f"PoolHedge: {self._config.describe()}"

    def snapshot(self) -> dict[str, Any]:
        """Return how many hedges were sent, have won and were skipped, of all kinds of calls."""
        kinds = self._layers.snapshot().values()
        counts = ("hedged_count", "won_count", "skipped_count")
        return {count: sum(kind[count] for kind in kinds) for count in counts}

    def __call__(
        self, request: httpx.Request, inner: Inner[httpx.Request, httpx.Response]
    ) -> Awaitable[httpx.Response]:
        if not is_hedgeable(request):
            return inner.send(request)
        return self._layers.get(_kind_of(request))(request, inner)


def _kind_of(request: httpx.Request) -> Kind:
    call = call_of(request.extensions)
    return call.facts.model, call.facts.streamed, call.hold

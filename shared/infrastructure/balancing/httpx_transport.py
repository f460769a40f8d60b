"""The pool as an httpx transport: under any SDK that takes an `httpx.AsyncClient`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import httpx

from shared.infrastructure.balancing.hosts import LLMHost
from shared.infrastructure.balancing.options import PoolOptions
from shared.infrastructure.balancing.pool import HostPool
from shared.infrastructure.balancing.pool_transport import Buffering, PoolTransport
from shared.infrastructure.balancing.strategies import BalancingStrategy, LoadBalancingStrategy
from shared.infrastructure.http.library import HTTPX


class BalancedTransport(PoolTransport[httpx.Request, httpx.Response], httpx.AsyncBaseTransport):
    """A pool of hosts as a transport; `PoolTransport` says what it takes and does."""

    library = HTTPX

    def _answer(self, response: httpx.Response) -> httpx.Response:
        return response


def balanced_transport(
    hosts: Sequence[LLMHost],
    strategy: LoadBalancingStrategy | BalancingStrategy = LoadBalancingStrategy.ROUND_ROBIN,
    *,
    recovery: Buffering = "error",
    **options: Unpack[PoolOptions],
) -> BalancedTransport:
    """Return a transport over `hosts` that is closed with the client on it.

    Args:
        hosts: At least one; names are unique.
        strategy: Which host gets the next call.
        recovery: See `PoolTransport`.
        options: The other arguments of `HostPool`.
    """
    return BalancedTransport(HostPool(hosts, strategy, **options), recovery, owns_pool=True)

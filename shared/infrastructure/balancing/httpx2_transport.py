"""The pool as an httpx2 transport: under openai, anthropic, and any other SDK on httpx2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import httpx

from shared.infrastructure.balancing.hosts import LLMHost
from shared.infrastructure.balancing.options import PoolOptions
from shared.infrastructure.balancing.pool import HostPool
from shared.infrastructure.balancing.pool_transport import Buffering, PoolTransport
from shared.infrastructure.balancing.strategies import BalancingStrategy, LoadBalancingStrategy
from shared.infrastructure.http.httpx2 import HTTPX2
from shared.infrastructure.resilience import MissingExtraError

try:
    import httpx2
except ImportError as exc:
    raise MissingExtraError("the pool as a transport of httpx2", "httpx2") from exc


class BalancedTransport(PoolTransport[httpx2.Request, httpx2.Response], httpx2.AsyncBaseTransport):
    """A pool of hosts as a transport; `PoolTransport` says what it takes and does."""

    library = HTTPX2

    def _answer(self, response: httpx.Response) -> httpx2.Response:
        stream: Any = response.stream
        body: dict[str, Any] = (
            {"content": response.content} if response.is_closed else {"stream": stream}
        )
        return httpx2.Response(
            response.status_code,
            headers=response.headers.raw,
            extensions=dict(response.extensions),
            **body,
        )


def balanced_transport(
    hosts: Sequence[LLMHost],
    strategy: LoadBalancingStrategy | BalancingStrategy = LoadBalancingStrategy.ROUND_ROBIN,
    *,
    recovery: Buffering = "error",
    **options: Unpack[PoolOptions],
) -> BalancedTransport:
    """Return a transport over `hosts`; its namesake for httpx says what it takes."""
    return BalancedTransport(HostPool(hosts, strategy, **options), recovery, owns_pool=True)

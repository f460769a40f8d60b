"""Several LLM hosts that answer as one: balancing, failover, and streams that tell the truth."""

from shared.infrastructure.balancing.distributed_llm import DistributedLLMClient
from shared.infrastructure.balancing.errors import (
    InBandError,
    InvalidResponseError,
    InvalidStreamError,
    NoHostAvailableError,
    NotRunningError,
    StreamInterruptedError,
    StreamTruncatedError,
    UpstreamStatusError,
)
from shared.infrastructure.balancing.hosts import Host, LLMHost
from shared.infrastructure.balancing.route import Route, route_of
from shared.infrastructure.balancing.sse import SSEParser
from shared.infrastructure.balancing.strategies import BalancingStrategy, LoadBalancingStrategy
from shared.infrastructure.balancing.streaming import Recovery

__all__ = [
    # errors.py
    "InBandError",
    "InvalidResponseError",
    "InvalidStreamError",
    "NoHostAvailableError",
    "NotRunningError",
    "StreamInterruptedError",
    "StreamTruncatedError",
    "UpstreamStatusError",
    # hosts.py
    "Host",
    "LLMHost",
    # route.py
    "Route",
    "route_of",
    # strategies.py
    "BalancingStrategy",
    "LoadBalancingStrategy",
    # sse.py
    "SSEParser",
    # streaming.py
    "Recovery",
    # distributed_llm.py
    "DistributedLLMClient",
]

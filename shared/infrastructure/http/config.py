"""What an HTTP client needs to know about its connections and their time limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from shared.infrastructure.resilience import AdaptiveTimeoutConfig


class ConnectionPoolConfig(BaseModel, frozen=True, extra="forbid"):
    """Bounds of the connection pool.

    Attributes:
        max_connections: Connections open at the same time; 100; at least 1.
        max_keepalive_connections: Idle connections kept; 20; at least 0.
        keepalive_expiry: Seconds an idle connection is kept; 5; at least 0.
    """

    max_connections: int = Field(default=100, ge=1)
    max_keepalive_connections: int = Field(default=20, ge=0)
    keepalive_expiry: float = Field(default=5.0, ge=0)


class TimeoutConfig(BaseModel, frozen=True, extra="forbid"):
    """Time limits in seconds; the first four are about one operation on one connection.

    Attributes:
        connect: To open a connection, TLS included; 5; above 0.
        read: Silence tolerated while reading; 30; above 0. It starts again with every byte.
        write: To send a piece of the request; 10; above 0.
        pool: To get a connection out of a full pool; 5; above 0.
        attempt: One whole attempt, its body included, of one that is streamed the first byte; or
            how to find that out from the latest ones; None (default) is no limit.
        total: The whole call: queueing, every attempt and the waits in between; None (default) is
            no limit.
    """

    connect: float = Field(default=5.0, gt=0)
    read: float = Field(default=30.0, gt=0)
    write: float = Field(default=10.0, gt=0)
    pool: float = Field(default=5.0, gt=0)
    attempt: Annotated[float, Field(gt=0)] | AdaptiveTimeoutConfig | None = None
    total: float | None = Field(default=None, gt=0)

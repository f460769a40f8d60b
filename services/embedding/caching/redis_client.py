"""The package redis, as far as the cache needs it; imported when a tier on it is made."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from redis.exceptions import RedisError, ResponseError

from services.embedding.caching.redis import RedisAwayError, RedisRefusesError
from shared.infrastructure.resilience.layer import summary
from shared.infrastructure.resilience.limits.redis_wire import connected


class _Pipeline(Protocol):
    def set(self, name: bytes, value: bytes, *, px: int | None) -> Any: ...

    async def execute(self) -> Any: ...


class _Client(Protocol):
    async def execute_command(self, *args: Any) -> Any: ...

    def pipeline(self, transaction: bool) -> _Pipeline: ...

    async def aclose(self) -> None: ...


class RedisClient:
    """Connections to a Redis; nothing is sent twice.

    Raises:
        ConfigurationError: The URL makes no sense.
    """

    def __init__(self, url: str) -> None:
        self._client: _Client = connected(url)

    async def mget(self, names: Sequence[bytes]) -> Sequence[object]:
        """Return what is at each name, None where there is no string.

        Raises:
            RedisAwayError: There is no answer.
            RedisRefusesError: It answers that it will not.
        """
        try:
            reply = await self._client.execute_command("MGET", *names)
        except (RedisError, OSError) as error:
            raise _translated(error) from error
        if len(reply) != len(names):
            raise RedisRefusesError(f"{len(reply)} values for {len(names)} names")
        return cast("Sequence[object]", reply)

    async def mset(self, values: Mapping[bytes, tuple[bytes, float | None]]) -> int:
        """Put values at names, each for so many seconds, or for ever; raises as `mget` does."""
        pipeline = self._client.pipeline(transaction=False)
        for name, (value, ttl) in values.items():
            pipeline.set(name, value, px=None if ttl is None else max(1, int(ttl * 1000)))
        try:
            await pipeline.execute()
        except (RedisError, OSError) as error:
            raise _translated(error) from error
        return len(values)

    async def aclose(self) -> None:
        """Close the connections; the next call opens one again."""
        with contextlib.suppress(RedisError, OSError):
            await self._client.aclose()


def _translated(error: Exception) -> Exception:
    kind = RedisRefusesError if isinstance(error, ResponseError) else RedisAwayError
    return kind(summary(error))

"""The package redis, as far as a store needs it; imported when a store is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from redis.asyncio import from_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    NoScriptError,
    RedisError,
    ResponseError,
)

from shared.infrastructure.resilience.errors import ConfigurationError
from shared.infrastructure.resilience.layer import summary
from shared.infrastructure.resilience.limits.redis_scripts import Script
from shared.infrastructure.resilience.limits.redis_store import StoreAwayError, StoreRefusesError


class _Client(Protocol):
    async def execute_command(self, *args: Any) -> Any: ...

    async def aclose(self) -> None: ...


class RedisWire:
    """Connections to a Redis; nothing is sent twice.

    Raises:
        ConfigurationError: The URL makes no sense.
    """

    def __init__(self, url: str) -> None:
        self._client: _Client = connected(url)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[object]) -> list[int]:
        """Run a script and return its reply.

        Raises:
            StoreAwayError: There is no answer, or one that will be another in a while.
            StoreRefusesError: This is the answer until somebody changes something.
        """
        try:
            return await self._evaluate(script, keys, args)
        except (RedisError, OSError) as error:
            raise _translated(error) from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _evaluate(
        self, script: Script, keys: Sequence[str], args: Sequence[object]
    ) -> list[int]:
        execute = self._client.execute_command
        try:
            reply = await execute("EVALSHA", script.sha, len(keys), *keys, *args)
        except NoScriptError:  # never seen, or forgotten in a restart
            reply = await execute("EVAL", script.text, len(keys), *keys, *args)
        return [int(number) for number in reply]


def connected(url: str) -> Any:
    """Return redis-py's client for a URL; it sends nothing twice.

    Raises:
        ConfigurationError: The URL makes no sense.
    """
    try:
        return from_url(url, retry=Retry(NoBackoff(), 0))
    except ValueError:
        # Its message may quote a part of the password.
        raise ConfigurationError(
            "the URL of Redis makes no sense: write redis://[user:password@]host[:port][/db], "
            "with what is special in the password percent-encoded"
        ) from None


def _translated(error: Exception) -> Exception:
    lasting = (AuthenticationError, AuthorizationError, NoPermissionError)
    # A response error with a class of its own, such as that of a read-only replica, passes.
    if isinstance(error, lasting) or type(error) is ResponseError:
        return StoreRefusesError(summary(error))
    return StoreAwayError(summary(error))

"""Small layers that only HTTP exchanges need."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable
from typing import Any

from shared.infrastructure.http.errors import CrossOriginError
from shared.infrastructure.http.extensions import BUFFERED
from shared.infrastructure.http.library import HTTPLibrary
from shared.infrastructure.http.secrecy import public_url
from shared.infrastructure.resilience import RateLimiter
from shared.infrastructure.resilience.layer import Inner, Position

_UNSAFE = frozenset({"POST", "PATCH"})
_RETRY_COUNT = "x-stainless-retry-count"


class OriginLayer:
    """Refuse requests to any other origin: they would carry credentials there.

    Position: outermost. A redirect that the client above follows passes here too.

    Args:
        url: Of the origin, as the library has it.
    """

    def __init__(self, url: Any) -> None:
        self._url = url
        self._origin = _origin(url)

    async def __call__(self, request: Any, inner: Inner[Any, Any]) -> Any:
        if _origin(request.url) != self._origin:
            raise CrossOriginError(
                f"this client is for {public_url(self._url)}: a request to {request.url.host} "
                "would carry its headers and credentials there; use a client of its own for that "
                "service"
            )
        return await inner.send(request)


@Position.CALL
class IdempotencyKeyLayer:
    """Give each POST and PATCH a key that stays the same over its attempts.

    Position: above retry. With a key such a request may be sent again after a failure, since the
    service can tell; without, only if it certainly was never sent. A key that is there is kept;
    so one request that its caller sends twice is one and the same to the service.

    Args:
        header: Name of the header.
    """

    def __init__(self, header: str = "Idempotency-Key") -> None:
        self._header = header

    async def __call__(self, request: Any, inner: Inner[Any, Any]) -> Any:
        if request.method in _UNSAFE:
            request.headers.setdefault(self._header, secrets.token_hex(16))
        return await inner.send(request)


class ForeignRetriesLayer:
    """Warn once of an SDK above that retries too, so that its attempts and ours multiply.

    Position: outermost. The SDKs of OpenAI, Anthropic and others tell in a header.
    """

    def __init__(self) -> None:
        self._has_warned = False

    async def __call__(self, request: Any, inner: Inner[Any, Any]) -> Any:
        if not self._has_warned and request.headers.get(_RETRY_COUNT, "0") != "0":
            self._has_warned = True
            message = "the SDK above retries, and so do the layers of this transport: their "
            warnings.warn(f"{message}attempts multiply; give the SDK max_retries=0", stacklevel=2)
        return await inner.send(request)


class RateHeadersLayer:
    """Let a limiter follow what the headers of answers say about quotas.

    Position: anywhere below the layer of the limiter.

    Args:
        limiter: The one that slows down.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter

    async def __call__(self, request: Any, inner: Inner[Any, Any]) -> Any:
        response = await inner.send(request)
        headers = response.headers
        if any("ratelimit" in name for name in headers):
            self._limiter.observe(headers)
        return response


class CheckLayer:
    """Make an answer that passes no check of the user a failed attempt.

    Position: innermost. A streamed answer is not there to be checked.

    Args:
        check: Called with each answer that was read; raises an `UpstreamError` if it is no good.
        library: Whose errors are raised.
    """

    def __init__(self, check: Callable[[Any], None], library: HTTPLibrary) -> None:
        self._check = check
        self._library = library

    async def __call__(self, request: Any, inner: Inner[Any, Any]) -> Any:
        response = await inner.send(request)
        if request.extensions.get(BUFFERED):
            response.request = request  # the client above sets it later, too late for a check
            try:
                self._check(response)
            except self._library.failures as exc:
                self._library.fail(exc, request)
        return response


def _origin(url: Any) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port

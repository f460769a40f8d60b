"""How one call goes over the hosts of a pool: what its attempts share, and how they are read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, cast

import httpx

from shared.infrastructure.http import HTTPSemantics
from shared.infrastructure.http.semantics import HTTPRequest, HTTPResponse
from shared.infrastructure.resilience import Semantics

ROUTE = "route"
"""Request and response extension: the `Route` of the call."""

STREAMED = "streamed"
"""Request extension: the body asks for a stream of events."""


@dataclass(slots=True, eq=False)
class Route:
    """The way of one call, shared by its attempts.

    Attributes:
        max_attempts: Attempts it may take in all, restarts of its stream included.
        attempts: Attempts sent so far.
        host: Host the last of them went to.
        tried: Hosts that had an attempt since there last was one that had none.
    """

    max_attempts: int
    attempts: int = 0
    host: str | None = None
    tried: set[str] = field(default_factory=set[str])

    def depart(self, host: str) -> None:
        """Take note that an attempt goes to `host`."""
        self.attempts += 1
        self.host = host
        if host in self.tried:  # all the others had theirs: a new round
            self.tried.clear()
        self.tried.add(host)

    @property
    def is_spent(self) -> bool:
        """Whether no attempt is left."""
        return self.attempts >= self.max_attempts


def route_of(message: httpx.Request | httpx.Response) -> Route:
    """Return the route of a call from its request or its response."""
    return cast("Route", message.extensions[ROUTE])


def new_call(request: httpx.Request, max_attempts: int) -> dict[str, Any]:
    """Return the extensions of `request` as a new call, with a route of its own."""
    route = Route(max_attempts)
    return {**request.extensions, ROUTE: route, STREAMED: _asks_for_stream(request)}


class PoolSemantics(HTTPSemantics):
    """Semantics of a call to a pool of equal hosts that compute answers.

    Every request may be repeated if its body is at hand, POST or not: computing an answer twice
    harms nobody.
    """

    def repeatable(self, request: HTTPRequest, outcome: HTTPResponse | BaseException) -> bool:
        # Layers above the balancing see httpx requests that carry their route.
        sent = cast("httpx.Request", request)
        return isinstance(sent.stream, httpx.ByteStream) and not route_of(sent).is_spent

    def describe(self, request: HTTPRequest, outcome: HTTPResponse | BaseException) -> str:
        host = route_of(cast("httpx.Request", request)).host
        return f"{host}: {super().describe(request, outcome)}"


class WireSemantics(HTTPSemantics):
    """Semantics of one exchange with a host, below the route of the call.

    Args:
        may_resend: Whether what was not processed may be sent again at once.
    """

    def __init__(self, *, may_resend: bool) -> None:
        self._may_resend = may_resend

    def repeatable(self, request: HTTPRequest, outcome: HTTPResponse | BaseException) -> bool:
        return self._may_resend and isinstance(request.stream, httpx.ByteStream)


POOL: Semantics[httpx.Request, httpx.Response] = PoolSemantics()
"""The semantics of a pool of LLM hosts."""


def _asks_for_stream(request: httpx.Request) -> bool:
    if not isinstance(request.stream, httpx.ByteStream):
        return False
    content = b"".join(request.stream)  # a request that follows a redirect has no `content`
    if b'"stream"' not in content:
        return False
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and cast("dict[str, Any]", body).get("stream") is True

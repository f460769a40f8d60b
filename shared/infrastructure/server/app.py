"""What every application of a server does alike: routes, keys, errors and readiness."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import orjson

from shared.infrastructure.resilience import MONOTONIC
from shared.infrastructure.server import asgi
from shared.infrastructure.server.config import ServerConfig
from shared.infrastructure.server.keys import Keyring
from shared.infrastructure.server.messages import (
    HTTPError,
    Reply,
    Request,
    StreamedReply,
    json_reply,
    openai_error,
)
from shared.infrastructure.server.metrics import CONTENT_TYPE, RequestMetrics
from shared.infrastructure.server.problems import Problems
from shared.infrastructure.server.routes import Routes

_log = logging.getLogger(__name__)

CLIENT_GONE = 499
"""nginx's number for a client who hung up; never sent, only counted."""

INTERRUPTED = 599
"""Number of a streamed answer that broke off; never sent, only counted."""


class App:
    """An application: it answers, for the connections of our own server or of any ASGI server.

    What it serves is in its routes, which the subclass fills; it is started and stopped by the
    lifespan, or by `start` and `stop`.

    Args:
        config: Limits on requests.
        keys: Who may ask.
        metrics: Counts requests.
        problems: How errors are answered.

    Attributes:
        config: As above.
        routes: What each path leads to.
        draining: Whether it says "not ready" and closes connections, while it still answers.
        on_failure: Told when what it serves cannot be had at all; None (default) logs it.
    """

    def __init__(
        self, config: ServerConfig, keys: Keyring, metrics: RequestMetrics, problems: Problems
    ) -> None:
        self.config = config
        self.routes = Routes()
        self.draining = False
        self.on_failure: Callable[[Exception], None] | None = None
        self._keys = keys
        self._metrics = metrics
        self._problems = problems

    async def __call__(
        self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.SendMessage
    ) -> None:
        if scope["type"] == "http":
            await asgi.serve_http(self, scope, receive, send)
        elif scope["type"] == "lifespan":
            await asgi.serve_lifespan(self, receive, send)

    @property
    def is_started(self) -> bool:
        """Whether what it serves is there."""
        return True

    async def start(self) -> None:
        """Begin to get ready."""
        self._metrics.start()

    async def stop(self) -> None:
        """Let go of everything."""
        self.draining = True
        self._metrics.stop()

    def refuse(self, request: Request) -> Reply | None:
        """Return the answer to a request if that does not depend on its body, or None."""
        request.began = MONOTONIC.now()
        found = self.routes.find(request.path)
        try:
            if found is None:
                raise HTTPError(404, "there is nothing at this path", code="not_found")
            request.template, request.route, request.params = found
            route = request.route
            if request.method not in route.methods:
                allowed = ", ".join(route.methods)
                raise HTTPError(
                    405,
                    f"use {allowed}",
                    code="method_not_allowed",
                    headers=[(b"allow", allowed.encode())],
                )
            if route.needs_key:
                self.authorize(request)
            if request.headers.get(b"content-encoding", b"identity") != b"identity":
                raise HTTPError(
                    415,
                    "send the body as it is, without Content-Encoding",
                    code="encoding_not_supported",
                    headers=[(b"accept-encoding", b"identity")],
                )
        except HTTPError as error:
            return self.failed(request, error)
        return None

    def authorize(self, request: Request) -> None:
        """Take note of who asks.

        Raises:
            HTTPError: He may not (401).
        """
        request.tenant = self._keys.tenant(request)

    def recall(self, request: Request) -> Reply | None:
        """Return the answer to a request if it needs no work at all, or None."""
        return None

    async def answer(self, request: Request) -> Reply | StreamedReply:
        """Answer a request that was not refused."""
        if request.route is None:
            raise LookupError("the request has been refused")
        try:
            reply = await request.route.handler(request)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Something below was cancelled, not this request.
            return self.failed(request, RuntimeError(f"cancelled from inside: {exc}"))
        except Exception as exc:
            return self.failed(request, exc)
        if isinstance(reply, Reply):
            self.observe(request, reply.status)
        return reply

    def failed(self, request: Request, error: Exception) -> Reply:
        """Return the answer to a request that ended in `error`, in the shape of its route."""
        route = request.route
        told = self._problems(error, route.items if route else "input")
        shape = route.error if route else openai_error
        self.observe(request, told.status)
        return json_reply(shape(told), told.status, told.headers)

    def interrupted(self, request: Request, error: Exception) -> bytes:
        """Return the last event of a stream that broke off, in the shape of its route.

        A subclass may return nothing, if the client has been told already.
        """
        self.observe(request, INTERRUPTED)
        route = request.route
        told = self._problems(error)
        if route is None or route.event is None:
            return b"data: %b\n\n" % orjson.dumps(openai_error(told))
        return route.event(told)

    def gone(self, request: Request) -> None:
        """Count a request whose client hung up before its answer was complete."""
        self.observe(request, CLIENT_GONE)

    def observe(self, request: Request, status: int) -> None:
        """Count a request that is over."""
        path = request.template or "other"
        self._metrics.observe(path, status, MONOTONIC.now() - request.began)

    def _fail(self, error: Exception) -> None:
        if self.on_failure is None:
            _log.error("cannot serve", exc_info=error)
        else:
            self.on_failure(error)

    async def _exposition(self, _request: Request) -> Reply:
        return Reply(self._metrics.exposition(), 200, ((b"content-type", CONTENT_TYPE.encode()),))

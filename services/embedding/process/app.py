"""The application of the embedding process: routes, keys, errors and readiness."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from services.embedding.process import asgi
from services.embedding.process.health import HealthHandlers
from services.embedding.process.keys import Keyring
from services.embedding.process.messages import HTTPError, Reply, Request, json_reply
from services.embedding.process.metrics import CONTENT_TYPE, Metrics
from services.embedding.process.openai import OpenAIDialect
from services.embedding.process.openapi import document
from services.embedding.process.problems import problem
from services.embedding.process.replies import ReplyCache
from services.embedding.process.routes import Route, routes_of
from services.embedding.service import ProductionEmbeddingService
from shared.infrastructure.resilience import MONOTONIC

_log = logging.getLogger(__name__)

CLIENT_GONE = 499
"""nginx's number for a client who hung up; never sent, only counted."""


class EmbeddingApp:
    """All that the process answers, for the connections of its own server or any ASGI server.

    It loads the model in the background: the process lives at once, and is ready when the model
    has embedded a text.

    Args:
        service: What embeds; started and stopped by the lifespan, or by `start` and `stop`.
        on_failure: Told when the model cannot be loaded.
        on_ready: Told when it has been.

    Attributes:
        settings: Those of the service.
        routes: What each path leads to.
    """

    def __init__(
        self,
        service: ProductionEmbeddingService,
        *,
        on_failure: Callable[[Exception], None] | None = None,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self.settings = service.settings
        self._service = service
        self._on_failure = on_failure
        self._on_ready = on_ready
        self._replies = ReplyCache(service)
        self._metrics = Metrics(service, self._replies)
        self._health = HealthHandlers(service)
        self._keys = Keyring(self.settings.api_keys)
        self._loading: asyncio.Task[None] | None = None
        self.routes = routes_of(service, self._health, self._replies)
        for path, handler, summary in (
            ("/metrics", self._exposition, "Metrics in Prometheus' format"),
            ("/openapi.json", self._openapi, "This document"),
        ):
            self.routes[path] = Route(
                method="GET", handler=handler, summary=summary, response="Any", needs_key=False
            )
        self._document = json_reply(document(self.routes))

    async def __call__(
        self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.SendMessage
    ) -> None:
        if scope["type"] == "http":
            await asgi.serve_http(self, scope, receive, send)
        elif scope["type"] == "lifespan":
            await asgi.serve_lifespan(self, receive, send)

    @property
    def draining(self) -> bool:
        """Whether it says "not ready" and closes connections, while it still answers."""
        return self._health.draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self._health.draining = value

    @property
    def is_started(self) -> bool:
        """Whether the model has been loaded."""
        return self._service.is_started

    async def start(self) -> None:
        """Begin to load the model."""
        self._metrics.start()
        self._loading = asyncio.create_task(self._load(), name="load-model")

    async def stop(self) -> None:
        """Let go of the model, and write down what is to be kept."""
        self.draining = True
        await self._service.stop()
        if self._loading is not None:
            await self._loading
        self._metrics.stop()
        self._replies.clear()

    def refuse(self, request: Request) -> Reply | None:
        """Return the answer to a request if that does not depend on its body, or None."""
        request.began = MONOTONIC.now()
        request.route = route = self.routes.get(request.path)
        try:
            if route is None:
                raise HTTPError(404, "there is nothing at this path", code="not_found")
            if request.method != route.method:
                raise HTTPError(
                    405,
                    f"use {route.method}",
                    code="method_not_allowed",
                    headers=[(b"allow", route.method.encode())],
                )
            if route.needs_key:
                request.tenant = self._keys.tenant(request)
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

    def recall(self, request: Request) -> Reply | None:
        """Return the answer to a request if it needs no work at all, or None."""
        reply = self._replies.recall(request)
        if reply is not None:
            self._observe(request, reply.status)
        return reply

    async def answer(self, request: Request) -> Reply:
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
        self._observe(request, reply.status)
        return reply

    def failed(self, request: Request, error: Exception) -> Reply:
        """Return the answer to a request that ended in `error`, in the shape of its route."""
        route = request.route
        told = problem(error, route.items if route else "input")
        shape = route.error if route else OpenAIDialect.error
        self._observe(request, told.status)
        return json_reply(shape(told), told.status, told.headers)

    def gone(self, request: Request) -> None:
        """Count a request whose client hung up before its answer was there."""
        self._observe(request, CLIENT_GONE)

    def _observe(self, request: Request, status: int) -> None:
        path = request.path if request.route else "other"
        self._metrics.observe(path, status, MONOTONIC.now() - request.began)

    async def _exposition(self, _request: Request) -> Reply:
        return Reply(self._metrics.exposition(), 200, ((b"content-type", CONTENT_TYPE.encode()),))

    async def _openapi(self, _request: Request) -> Reply:
        return self._document

    async def _load(self) -> None:
        began = MONOTONIC.now()
        try:
            await self._service.start()
        except Exception as exc:
            if self._on_failure is None:
                _log.exception("the model cannot be loaded")
            else:
                self._on_failure(exc)
        else:
            if self._on_ready is not None:
                self._on_ready()
            _log.info("ready after %.1f s", MONOTONIC.now() - began)

"""The application of the LLM process."""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from typing import TypeVar

from services.llm.process.admin import AdminHandlers
from services.llm.process.forwarding import Forwarder, about
from services.llm.process.limits import Limits, names_of
from services.llm.process.metrics import SECONDS, LLMMetrics
from services.llm.process.openapi import document
from services.llm.process.problems import PROBLEMS, is_told
from services.llm.process.routes import forwarding_routes
from services.llm.service import ProductionLLMService
from services.llm.settings import LLMProcessSettings
from shared.infrastructure.resilience import ServiceError
from shared.infrastructure.server import (
    App,
    HealthHandlers,
    Keyring,
    Reply,
    Request,
    Route,
    ServerConfig,
    StreamedReply,
    health_routes,
    json_reply,
)
from shared.infrastructure.server.metrics import RequestMetrics

# Of a client's own name for its request, which is told to hosts and may be logged.
_REQUEST_ID = re.compile(rb"[!-~]{1,128}\Z")
_ADMIN = "/admin/"

AnyReply = TypeVar("AnyReply", Reply, Reply | StreamedReply)


class LLMApp(App):
    """All that the process answers: the pool as one host, and the pool itself to administrators.

    Args:
        service: Whose pool it is; started and stopped by the lifespan, or by `start` and `stop`.
        settings: Keys and limits.
    """

    def __init__(self, service: ProductionLLMService, settings: LLMProcessSettings) -> None:
        self._service = service
        self._client = client = service.client
        self._llm_metrics = LLMMetrics(client, names_of(settings.api_keys))
        self._admins = Keyring(settings.admin_keys, header=b"x-api-key")
        self._is_started = False
        super().__init__(
            config_of(settings),
            Keyring((each.key for each in settings.api_keys), header=b"x-api-key"),
            RequestMetrics("llm", self._llm_metrics.families, bounds=SECONDS),
            PROBLEMS,
        )
        self._forwarder = forwarder = Forwarder(
            client,
            Limits(settings),
            self._llm_metrics,
            passes_credentials=not settings.api_keys,
            keyed=frozenset(host.name for host in settings.keyed_hosts() if host.api_key),
        )
        self.routes.update(forwarding_routes(forwarder))
        health = HealthHandlers(self, lambda: self.draining)
        self.routes.update(health_routes(health, what="answer", loaded="the pool is started"))
        if settings.admin_keys:
            self.routes.update(AdminHandlers(client).routes())
        for path, handler, summary in (
            ("/metrics", self._exposition, "Metrics in Prometheus' format"),
            ("/openapi.json", self._openapi, "This document"),
        ):
            self.routes[path] = Route(
                method="GET", handler=handler, summary=summary, response="Any", needs_key=False
            )
        self._document = json_reply(document(self.routes))

    @property
    def is_started(self) -> bool:
        """Whether the pool is started."""
        return self._is_started

    @property
    def is_ready(self) -> bool:
        """Whether there is a host that may be called."""
        return self._client.is_ready

    async def start(self) -> None:
        """Begin to check the hosts."""
        await super().start()
        await self._service.start()
        self._is_started = True

    async def stop(self) -> None:
        """Let go of the pool."""
        await super().stop()
        await self._forwarder.close()
        await self._service.stop()

    def refuse(self, request: Request) -> Reply | None:
        given = request.headers.get(b"x-request-id", b"")
        request.id = given.decode() if _REQUEST_ID.match(given) else secrets.token_hex(16)
        return super().refuse(request)

    def authorize(self, request: Request) -> None:
        if request.template.startswith(_ADMIN):
            request.tenant = self._admins.tenant(request)
        else:
            super().authorize(request)

    async def answer(self, request: Request) -> Reply | StreamedReply:
        return _named(request, await super().answer(request))

    def failed(self, request: Request, error: Exception) -> Reply:
        reply = _named(request, super().failed(request, error))
        if isinstance(error, ServiceError):
            self._llm_metrics.count_fault(error)
            reply.headers = (*reply.headers, *about(error.host, error.attempts))
        return reply

    def interrupted(self, request: Request, error: Exception) -> bytes:
        self._llm_metrics.count_fault(error)
        event = super().interrupted(request, error)
        return b"" if is_told(error) else event

    async def _openapi(self, _request: Request) -> Reply:
        return replace(self._document)


def config_of(settings: LLMProcessSettings) -> ServerConfig:
    """Return what the settings say of the server."""
    return ServerConfig.of(settings, max_connections=settings.max_clients, half_close=False)


def _named(request: Request, reply: AnyReply) -> AnyReply:
    """Have a reply say the name of its request."""
    if all(name != b"x-request-id" for name, _ in reply.headers):
        # What could not be read as a request has none of its own.
        request.id = request.id or secrets.token_hex(16)
        reply.headers = (*reply.headers, (b"x-request-id", request.id.encode()))
    return reply

"""The application of the embedding process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from services.embedding.process.families import families
from services.embedding.process.openapi import document
from services.embedding.process.problems import PROBLEMS
from services.embedding.process.replies import ReplyCache
from services.embedding.process.routes import routes_of
from services.embedding.service import ProductionEmbeddingService
from shared.infrastructure.resilience import MONOTONIC
from shared.infrastructure.server import (
    App,
    HealthHandlers,
    Keyring,
    Reply,
    Request,
    Route,
    ServerConfig,
    json_reply,
)
from shared.infrastructure.server.metrics import RequestMetrics

_log = logging.getLogger(__name__)


class EmbeddingApp(App):
    """All that the process answers.

    It loads the model in the background: the process lives at once, and is ready when the model
    has embedded a text.

    Args:
        service: What embeds; started and stopped by the lifespan, or by `start` and `stop`.
        on_failure: Told when the model cannot be loaded.
        on_ready: Told when it has been.
    """

    def __init__(
        self,
        service: ProductionEmbeddingService,
        *,
        on_failure: Callable[[Exception], None] | None = None,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self._service = service
        self._on_ready = on_ready
        self._replies = ReplyCache(service)
        super().__init__(
            ServerConfig.of(service.settings),
            Keyring(service.settings.api_keys),
            RequestMetrics("emb", partial(families, service, self._replies)),
            PROBLEMS,
        )
        self.on_failure = on_failure
        self._loading: asyncio.Task[None] | None = None
        health = HealthHandlers(service, lambda: self.draining)
        self.routes.update(routes_of(service, health, self._replies))
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
        """Whether the model has been loaded."""
        return self._service.is_started

    async def start(self) -> None:
        """Begin to load the model."""
        await super().start()
        self._loading = asyncio.create_task(self._load(), name="load-model")

    async def stop(self) -> None:
        """Let go of the model, and write down what is to be kept."""
        self.draining = True
        await self._service.stop()
        if self._loading is not None:
            await self._loading
        await super().stop()
        self._replies.clear()

    def recall(self, request: Request) -> Reply | None:
        """Return the answer to a request if it needs no work at all, or None."""
        reply = self._replies.recall(request)
        if reply is not None:
            self.observe(request, reply.status)
        return reply

    async def _openapi(self, _request: Request) -> Reply:
        return self._document

    async def _load(self) -> None:
        began = MONOTONIC.now()
        try:
            await self._service.start()
        except Exception as exc:
            self._fail(exc)
        else:
            if self._on_ready is not None:
                self._on_ready()
            _log.info("ready after %.1f s", MONOTONIC.now() - began)

"""How the process is doing, for those who watch it."""

from __future__ import annotations

from services.embedding.process.messages import Reply, Request, json_reply
from services.embedding.service import ProductionEmbeddingService


class HealthHandlers:
    """The handlers of the health routes.

    Args:
        service: What embeds.

    Attributes:
        draining: Whether the process is on its way out.
    """

    def __init__(self, service: ProductionEmbeddingService) -> None:
        self.draining = False
        self._service = service

    async def live(self, _request: Request) -> Reply:
        """Answer at all: the event loop runs, whatever the model does."""
        return json_reply({"status": "alive"})

    async def startup(self, _request: Request) -> Reply:
        """Answer whether the model has been loaded."""
        started = self._service.is_started
        return json_reply({"status": "started" if started else "loading"}, 200 if started else 503)

    async def ready(self, _request: Request) -> Reply:
        """Answer whether it makes sense to send requests here."""
        if self.draining:
            return json_reply({"status": "draining"}, 503)
        if self._service.is_ready:
            return json_reply({"status": "ready"})
        started = self._service.is_started
        return json_reply({"status": "unhealthy" if started else "loading"}, 503)

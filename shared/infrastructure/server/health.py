"""How the process is doing, for those who watch it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from shared.infrastructure.server.messages import Reply, Request, json_reply
from shared.infrastructure.server.routes import Handler, Route


class Service(Protocol):
    """What is asked how it is doing."""

    @property
    def is_started(self) -> bool:
        """Whether all that it needs is there."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether it can serve now."""
        ...


class HealthHandlers:
    """The handlers of the health routes.

    Args:
        service: What serves.
        is_draining: Whether the process is on its way out.
    """

    def __init__(self, service: Service, is_draining: Callable[[], bool]) -> None:
        self._is_draining = is_draining
        self._service = service

    async def live(self, _request: Request) -> Reply:
        """Answer at all: the event loop runs, whatever the service does."""
        return json_reply({"status": "alive"})

    async def startup(self, _request: Request) -> Reply:
        """Answer whether all that the service needs has been loaded."""
        started = self._service.is_started
        return json_reply({"status": "started" if started else "loading"}, 200 if started else 503)

    async def ready(self, _request: Request) -> Reply:
        """Answer whether it makes sense to send requests here."""
        if self._is_draining():
            return json_reply({"status": "draining"}, 503)
        if self._service.is_ready:
            return json_reply({"status": "ready"})
        started = self._service.is_started
        return json_reply({"status": "unhealthy" if started else "loading"}, 503)


def health_routes(health: HealthHandlers, *, what: str, loaded: str) -> dict[str, Route]:
    """Return the health routes; `what` it can do and what has been `loaded` is said of them."""

    def get(handler: Handler, summary: str, waits: bool = False) -> Route:
        return Route(
            method="GET",
            handler=handler,
            summary=summary,
            response="Status",
            needs_key=False,
            waits=waits,
            is_probe=True,
        )

    return {
        "/health": get(health.ready, "As /health/ready", waits=True),
        "/health/ready": get(health.ready, f"Whether it can {what} now", waits=True),
        "/health/startup": get(health.startup, f"Whether {loaded}", waits=True),
        "/health/live": get(health.live, "Whether the process lives"),
        "/ping": get(health.live, "As /health/live"),
    }

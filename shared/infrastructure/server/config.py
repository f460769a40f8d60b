"""What a server is told beside what every process has to be told."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from shared.infrastructure.settings import Seconds, ServerSettings


class ServerConfig(ServerSettings, frozen=True):
    """Where a server listens, and how patient it is.

    Attributes:
        max_connections: Connections at the same time, beyond which each further one is answered
            503, unless it asks how the process is; None (default) is no bound; at least 1.
        keep_alive: Seconds that an idle connection stays open; 75, which is longer than clients
            keep one: it must be they who close it, for a request may be on its way when we do.
        half_close: Whether a client that sends no more may still wait for its answer; true. False
            takes it for gone at once.
    """

    max_connections: int | None = Field(default=None, ge=1)
    keep_alive: Seconds = 75.0
    half_close: bool = True

    @classmethod
    def of(cls, settings: ServerSettings, **more: object) -> Self:
        """Return what the settings of a process say, and `more`."""
        told = {name: getattr(settings, name) for name in ServerSettings.model_fields}
        return cls.model_validate({**told, **more})

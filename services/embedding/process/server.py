"""Run the embedding process."""

from __future__ import annotations

import sys
from collections.abc import Callable

from services.embedding.process.app import EmbeddingApp
from services.embedding.service import ProductionEmbeddingService
from services.embedding.settings import PREFIX, EmbeddingSettings
from shared.infrastructure import server

Announce = Callable[[str, str], object]


def _announce(url: str, model: str) -> None:
    sys.stdout.write(f"listening on {url} (model {model})\n")
    sys.stdout.flush()


def serve(settings: EmbeddingSettings, *, announce: Announce = _announce) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight.

    Args:
        settings: Model, limits and address.
        announce: Told the URL and the model once there is somebody to listen.

    Raises:
        ConfigurationError: The address cannot be listened on, or must not be without API keys.
        ServiceError: The model cannot be loaded.
    """
    sock = server.bind(
        server.ServerConfig.of(settings),
        has_keys=bool(settings.api_keys),
        variable=f"{PREFIX}API_KEYS",
    )

    def app() -> EmbeddingApp:
        return EmbeddingApp(ProductionEmbeddingService(settings), on_ready=server.freeze)

    def tell(url: str) -> None:
        announce(url, settings.model_name)

    server.serve(app, sock, tell)

"""Run the LLM process."""

from __future__ import annotations

import sys

from services.llm.process.app import LLMApp, config_of
from services.llm.service import ProductionLLMService
from services.llm.settings import PREFIX, LLMProcessSettings
from shared.infrastructure import server


def serve(settings: LLMProcessSettings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight.

    Args:
        settings: Hosts, limits and address.

    Raises:
        ConfigurationError: The address cannot be listened on, or must not be without API keys.
    """
    has_keys = bool(settings.api_keys)
    sock = server.bind(config_of(settings), has_keys=has_keys, variable=f"{PREFIX}API_KEYS")

    def announce(url: str) -> None:
        hosts = ", ".join(host.name for host in settings.hosts)
        sys.stdout.write(f"listening on {url} (hosts {hosts})\n")
        sys.stdout.flush()

    server.serve(lambda: LLMApp(ProductionLLMService(settings), settings), sock, announce)

"""`check`: ask every host once how it is."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from services.llm.service import ProductionLLMService
from services.llm.settings import LLMProcessSettings

_COLUMNS = ("HOST", "URL", "STATUS", "SECONDS", "ERROR")


def check(settings: LLMProcessSettings) -> int:
    """Show how every host is; return 0 if all are well, else 1."""
    found = asyncio.run(_asked(settings))
    urls = {host.name: host.url for host in settings.hosts}
    rows = [_COLUMNS, *(_row(name, urls[name], health) for name, health in found.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    sys.stdout.flush()
    return 0 if all(health["status"] == "healthy" for health in found.values()) else 1


async def _asked(settings: LLMProcessSettings) -> dict[str, dict[str, Any]]:
    service = ProductionLLMService(settings)
    try:
        return await service.client.health_check_all()
    finally:
        await service.stop()


def _row(name: str, url: str, health: dict[str, Any]) -> tuple[str, ...]:
    seconds = health["response_time"]
    took = "" if seconds is None else f"{seconds:.3f}"
    return name, url, health["status"], took, str(health["last_error"] or "")

"""The wire, for layers that stand right above it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import httpx


class Wire:
    """Keeps what it was sent, and answers with a list of statuses, the last for ever.

    Args:
        statuses: One for each request.
        library: Whose responses it gives: httpx or httpx2.

    Attributes:
        requests: What it was sent.
        answers: What it answered; their bodies are not read.
    """

    def __init__(self, *statuses: int, library: ModuleType = httpx) -> None:
        self._statuses = statuses or (200,)
        self._library = library
        self.requests: list[Any] = []
        self.answers: list[Any] = []

    async def __call__(self, request: Any) -> Any:
        status = self._statuses[min(len(self.requests), len(self._statuses) - 1)]
        self.requests.append(request)
        self.answers.append(self._library.Response(status, content=once(b"{}")))
        return self.answers[-1]

    def sent(self, header: str = "Authorization") -> list[str | None]:
        """Return the values of a header field, one for each request."""
        return [request.headers.get(header) for request in self.requests]


async def once(chunk: bytes) -> AsyncIterator[bytes]:
    """Return a body that can be read only once."""
    yield chunk

"""One transport that several hosts use."""

from __future__ import annotations

import httpx


class SharedTransport(httpx.AsyncBaseTransport):
    """A transport that none of the hosts on it closes; whoever gave it does.

    Args:
        transport: Does the exchanges.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._transport.handle_async_request(request)

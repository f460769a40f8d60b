"""The LLM process in this one, on a real socket, over scripted hosts."""

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx

from services.llm import ProductionLLMService
from services.llm.process import LLMApp
from services.llm.settings import LLMProcessSettings
from shared.infrastructure.balancing import LLMHost
from shared.infrastructure.server.listener import Listener
from tests.scripted_host import ScriptedHost, Step

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


class Site:
    def __init__(self, hosts: list[ScriptedHost], settings: LLMProcessSettings) -> None:
        self.hosts = hosts
        self.settings = settings
        self.service = ProductionLLMService(settings)
        self.app = LLMApp(self.service, settings)
        self.listener = Listener(self.app)
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.url = "http://{}:{}".format(*self.sock.getsockname())
        self.client = httpx.AsyncClient(base_url=self.url, timeout=20)

    async def chat(self, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        return await self.client.post(CHAT, json={**ASK, **more}, headers=headers)

    async def metric(self, line: str) -> float:
        text = (await self.client.get("/metrics")).text
        found = [each for each in text.splitlines() if each.startswith(f"{line} ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0


@asynccontextmanager
async def llm_site(*scripts: list[Step], **settings: Any) -> AsyncIterator[Site]:
    """Serve a pool of scripted hosts, named a, b, ….

    Args:
        scripts: One for each host.
        settings: Of the process.
    """
    async with AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(ScriptedHost(*script)) for script in scripts]
        pool = [LLMHost(chr(97 + number), host.url) for number, host in enumerate(hosts)]
        site = Site(hosts, LLMProcessSettings(hosts=pool, **settings))
        await site.app.start()
        await site.listener.start(site.sock)
        try:
            yield site
        finally:
            await site.client.aclose()
            site.listener.close()
            await site.listener.abandon()
            await site.app.stop()

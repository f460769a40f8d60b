"""Pools to test: over mocks on a clock that stands still, and over scripted hosts on sockets."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx

from shared.infrastructure.balancing import DistributedLLMClient, LLMHost
from shared.infrastructure.http import TimeoutConfig
from shared.infrastructure.resilience import RetryConfig
from shared.infrastructure.testing import FakeClock
from tests.scripted_host import ScriptedHost, Step, completion

Answer = int | Exception | asyncio.Event | Callable[[], httpx.Response]
"""A status, an error, an event to wait for before answering 200, or a response."""

CHAT = "/v1/chat/completions"


class Mocks:
    """Hosts by name; the last answer of each is repeated for ever."""

    def __init__(self, **answers: Answer | list[Answer]) -> None:
        self._answers = {k: v if isinstance(v, list) else [v] for k, v in answers.items()}
        self.calls: list[str] = []

    def counts(self) -> dict[str, int]:
        return dict(Counter(self.calls))

    async def until_called(self, times: int) -> None:
        while len(self.calls) < times:  # noqa: ASYNC110 - a turn of the loop is all it takes
            await asyncio.sleep(0)

    def pool(self, **options: Any) -> DistributedLLMClient:
        weights = options.pop("weights", {})
        hosts = [LLMHost(name, f"http://{name}", weights.get(name, 1.0)) for name in self._answers]
        options.setdefault("retry_config", RetryConfig(jitter=False))
        options.setdefault("clock", FakeClock())
        options.setdefault("rng", random.Random(3))
        return DistributedLLMClient(hosts, transport=httpx.MockTransport(self._reply), **options)

    async def _reply(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host
        answers = self._answers[name]
        answer = answers[min(self.calls.count(name), len(answers) - 1)]
        self.calls.append(name)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            answer = 200
        if isinstance(answer, int):
            return httpx.Response(answer, json=completion(f"from {name}"))
        return answer()


def busy(seconds: float) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(429, headers={"Retry-After": str(seconds)}, json={})


@asynccontextmanager
async def pool_of(*scripts: Step | list[Step], **options: Any) -> AsyncIterator[Any]:
    """Give a pool over one scripted host per script, and the hosts."""
    options.setdefault("retry_config", RetryConfig(base_delay=0.0))
    options.setdefault("timeout_config", TimeoutConfig(read=0.4))
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(ScriptedHost(*(s if isinstance(s, list) else [s])))
            for s in scripts
        ]
        configs = [LLMHost(name, host.url) for name, host in zip("abc", hosts, strict=False)]
        pool = await stack.enter_async_context(DistributedLLMClient(configs, **options))
        yield pool, *hosts

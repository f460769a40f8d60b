"""What happens in the demo, in order: start, read, ask, lose a host, read again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from examples.demo.documents import Passage
from examples.demo.library import Library
from examples.demo.processes import EmbeddingProcess, LlamaHost, serving
from examples.demo.view import HostRow, Report, View
from shared.infrastructure import (
    CircuitBreakerConfig,
    DistributedLLMClient,
    EnhancedHTTPClient,
    LLMHost,
    LoadBalancingStrategy,
    RetryConfig,
    ServiceError,
    TimeoutConfig,
)
from shared.models import StreamRestarted

AT_ONCE = 4
REFRESH = 0.1
INSTRUCTION = "Copy the sentences of this text that answer the question:"


class Story:
    """One run of the demo, told to a view.

    Args:
        view: What shows it.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._servers = [LlamaHost(f"llm-{number}") for number in (1, 2, 3)]
        self._answered = 0
        self._failed = 0

    async def tell(self, passages: Sequence[Passage], questions: Sequence[str]) -> Report:
        """Embed the passages, answer the questions, and return what it came to."""
        began = time.monotonic()
        embedding = EmbeddingProcess()
        self._view.note("starting the embedding process and three LLM hosts")
        async with (
            serving(embedding),
            serving(*self._servers, needed=1),
            embedding_client(embedding.url) as http,
            llm_client(self._servers) as llm,
            showing(llm, self._view),
        ):
            library = Library(http)
            await library.read(passages, self._view.embedded)
            await self._ask_all(library, llm, questions)
            self._view.note("reading the documents again: unchanged text comes from the cache")
            await library.read(passages, lambda _done, _total: None)
            totals = llm.get_metrics()["totals"]
            return Report(
                texts=2 * len(passages) + len(questions),
                cache_hits=await library.cache_hits(),
                calls=http.get_status()["request_count"] + totals["request_count"],
                failovers=totals["failover_count"],
                answered=self._answered,
                failed=self._failed,
                seconds=time.monotonic() - began,
            )

    async def _ask_all(
        self, library: Library, llm: DistributedLLMClient, questions: Sequence[str]
    ) -> None:
        waiting = iter(enumerate(questions, start=1))
        kill_after = max(1, len(questions) // 3)

        async def worker() -> None:
            for number, question in waiting:
                answered = await self._ask(library, llm, number, question)
                self._answered += answered
                self._failed += not answered
                if answered and self._answered == kill_after:
                    self._kill_a_host(llm)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(worker())

    async def _ask(
        self, library: Library, llm: DistributedLLMClient, number: int, question: str
    ) -> bool:
        self._view.asked(number, question)
        try:
            passage = (await library.best(question))[0]
            host = await self._stream_answer(llm, number, prompt(question, passage))
        except ServiceError as error:
            self._view.answered(number, f"NOT ANSWERED: {error}")
            return False
        self._view.answered(number, f"{host}, from {passage.document}, passage {passage.number}")
        return True

    async def _stream_answer(
        self, llm: DistributedLLMClient, number: int, payload: dict[str, Any]
    ) -> str | None:
        async with llm.stream(payload, recovery="restart") as answer:
            async for piece in answer:
                if isinstance(piece, StreamRestarted):
                    self._view.note(f"question {number}: its host died, another one starts anew")
                    self._view.restarted(number)
                self._view.streamed(number, piece.text)
            return answer.host

    def _kill_a_host(self, llm: DistributedLLMClient) -> None:
        """Kill the host with the most answers under way, unless it is the last one alive."""
        alive = [server for server in self._servers if server.alive]
        if len(alive) > 1:
            hosts = llm.get_metrics()["hosts"]
            busiest = max(alive, key=lambda server: hosts[server.name]["in_flight"])
            self._view.note(f"kill -9 {busiest.name}, with answers under way")
            busiest.kill()


def embedding_client(url: str) -> EnhancedHTTPClient:
    """Return the client of the embedding process."""
    return EnhancedHTTPClient("embedding", url, retry_config=RetryConfig(base_delay=0.1))


def llm_client(servers: Sequence[LlamaHost]) -> DistributedLLMClient:
    """Return one client for all LLM hosts.

    A small model on a busy machine may think for long, and a killed host comes back in this demo
    only by hand: so patience with silence, little with failure.
    """
    return DistributedLLMClient(
        hosts=[LLMHost(server.name, server.url) for server in servers],
        strategy=LoadBalancingStrategy.LEAST_LOADED,
        retry_config=RetryConfig(max_retries=10, base_delay=0.1, max_delay=2.0),
        circuit_breaker_config=CircuitBreakerConfig(failure_threshold=2, timeout=5.0),
        timeout_config=TimeoutConfig(connect=2.0, read=120.0),
    )


def prompt(question: str, passage: Passage) -> dict[str, Any]:
    """Return the chat completion payload that asks `question` about `passage`.

    A model of 135 million parameters gets lost in more than one passage.
    """
    content = f"{passage.text}\n\n{INSTRUCTION} {question}"
    return {
        "model": LlamaHost.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 80,
        "temperature": 0,
    }


@contextlib.asynccontextmanager
async def showing(llm: DistributedLLMClient, view: View) -> AsyncGenerator[None, None]:
    """Keep the view's table of hosts up to date."""

    async def refresh() -> None:
        while True:
            view.hosts(rows(llm))
            await asyncio.sleep(REFRESH)

    task = asyncio.create_task(refresh())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        view.hosts(rows(llm))


def rows(llm: DistributedLLMClient) -> list[HostRow]:
    """Return the hosts as they stand."""
    return [
        HostRow(
            name=name,
            state=host["circuit_breaker"]["state"],
            in_flight=host["in_flight"],
            requests=host["request_count"],
            failures=host["error_count"],
            latency_ms=1000.0 * host["average_response_time"] if host["request_count"] else None,
        )
        for name, host in llm.get_metrics()["hosts"].items()
    ]

"""`DistributedLLMClient`: several LLM hosts that answer as one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from time import perf_counter
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from shared.infrastructure.balancing.call import (
    CallOptions,
    Hold,
    RequestFacts,
    call_of,
)
from shared.infrastructure.balancing.facts import facts_of
from shared.infrastructure.balancing.hosts import LLMHost
from shared.infrastructure.balancing.httpx_transport import BalancedTransport
from shared.infrastructure.balancing.json_request import request_of
from shared.infrastructure.balancing.listing import models_by_host
from shared.infrastructure.balancing.options import PoolOptions
from shared.infrastructure.balancing.pool import HostPool
from shared.infrastructure.balancing.strategies import BalancingStrategy, LoadBalancingStrategy
from shared.infrastructure.balancing.typed import (
    ChatStream,
    Expected,
    Recovery,
    chat,
    chat_payload,
    embeddings,
    embeddings_payload,
)
from shared.infrastructure.balancing.uploads import content_of
from shared.infrastructure.http.extensions import BUFFERED
from shared.infrastructure.resilience import ConfigurationError, deadline
from shared.models import (
    ChatCompletion,
    ChatRequest,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    ModelList,
)

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
MODELS = "/v1/models"

_OPTIONS = CallOptions()


class DistributedLLMClient:
    """Several LLM hosts that serve the same models, used as one.

    Each attempt goes to one host; one that fails goes on at once at a host the call has not tried,
    as the error table says (`docs/llm-failover.md`). An answer with an error status that no other
    host could better is returned by `request`, `post` and `get` as it is, and raised by the typed
    calls. Since an answer can be computed twice without harm, requests are repeated whatever their
    method: send nothing else through this client.

    Calls are possible from the beginning; `start` adds the active health checks, and `stop` ends
    it all for good.

    Args:
        hosts: At least one; names are unique.
        strategy: Which host gets the next call: one of the enum, or an object with `pick`.
        options: The other arguments of `HostPool`: what guards the hosts and the calls. They are
            listed in `PoolOptions`, too.

    Raises:
        ConfigurationError: There is no host, or two have the same name.
    """

    def __init__(
        self,
        hosts: Sequence[LLMHost],
        strategy: LoadBalancingStrategy | BalancingStrategy = LoadBalancingStrategy.ROUND_ROBIN,
        **options: Unpack[PoolOptions],
    ) -> None:
        self._pool = HostPool(hosts, strategy, **options)

    async def start(self) -> None:
        """Begin the active health checks; a second call changes nothing."""
        await self._pool.start()

    async def stop(self) -> None:
        """End the health checks and close every connection; a second call changes nothing."""
        await self._pool.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def request(
        self, method: str, path: str, *, options: CallOptions = _OPTIONS, **content: Any
    ) -> httpx.Response:
        """Send a request to one host after another until there is an answer.

        Args:
            method: HTTP method.
            path: Path and query on every host, beginning with "/".
            options: What else is to be said about the call.
            content: `json`, `content`, `params`, `headers`, …, as for `httpx.Request`.

        Returns:
            The answer, read; `route_of` tells how it came about.

        Raises:
            NoHostAvailableError: No host may be called; it says of each why.
            UpstreamError: The last attempt failed; `attempts` and `earlier` tell the story.
            AttemptTimeoutError: It took too long, or said nothing.
            DeadlineExceededError: `timeout_config.total` is over.
        """
        request = self._build(method, path, content, options=options)
        facts = call_of(request.extensions).facts
        # Whether an answer to what is not known is a stream shows only when it comes.
        request.extensions[BUFFERED] = facts.dialect is None or facts.payload is not None
        began = perf_counter()
        response = await self._pool.exchange(request)
        if not response.is_closed:
            await response.aread()
        response.elapsed = timedelta(seconds=perf_counter() - began)
        return response

    async def post(
        self, path: str, *, options: CallOptions = _OPTIONS, **content: Any
    ) -> httpx.Response:
        """Send a POST; see `request`."""
        return await self.request("POST", path, options=options, **content)

    async def get(
        self, path: str, *, options: CallOptions = _OPTIONS, **content: Any
    ) -> httpx.Response:
        """Send a GET; see `request`."""
        return await self.request("GET", path, options=options, **content)

    @asynccontextmanager
    async def open(
        self, path: str, *, method: str = "POST", options: CallOptions = _OPTIONS, **content: Any
    ) -> AsyncGenerator[httpx.Response, None]:
        """Send a request and give the response while its body is still coming.

        Of a stream of events the first content has arrived by then. It raises as `request` does,
        and reading the body an `UpstreamError`: a stream that ends early never looks complete.
        """
        async with self.exchange(self._build(method, path, content, options=options)) as response:
            yield response

    def build(
        self,
        method: str,
        path: str,
        *,
        options: CallOptions = _OPTIONS,
        facts: RequestFacts | None = None,
        **content: Any,
    ) -> httpx.Request:
        """Return the request of a new call, for `exchange`; `call_of` tells what becomes of it.

        Args:
            method: HTTP method.
            path: Path and query on every host, beginning with "/".
            options: What else is to be said about the call.
            facts: What is asked, if that was read already; None (default) reads it.
            content: As for `request`.
        """
        return self._build(method, path, content, options=options, facts=facts)

    @asynccontextmanager
    async def exchange(self, request: httpx.Request) -> AsyncGenerator[httpx.Response, None]:
        """Send a request that `build` made, once; else as `open`."""
        response = await self._pool.exchange(request)
        try:
            yield response
        finally:
            await response.aclose()

    async def chat(
        self,
        request: ChatRequest | Mapping[str, Any],
        *,
        path: str = CHAT,
        expect: Expected | None = None,
        reasks: int = 1,
        stream_internally: bool = False,
        options: CallOptions = _OPTIONS,
    ) -> ChatCompletion:
        """Return the whole answer to a chat call; `answer.route` tells how it came about.

        Args:
            request: The conversation; fields we do not know are passed on.
            path: Path on every host.
            expect: Form the text must have: a pydantic model, a JSON schema, or `"json"`;
                `answer.parsed` is what it says.
            reasks: Times the model is told what is wrong with that form, and asked again.
            stream_internally: Have it streamed, so that the limits on first token and silence hold
                for it, too.
            options: What else is to be said about the call.

        Raises:
            UnexpectedAnswerError: The last answer has another form than expected.
            UpstreamStatusError: The hosts' last word was an error status.
            ServiceError: As for `request`.
        """
        payload = chat_payload(request, streamed=stream_internally)
        return await chat(
            self._pool.exchange,
            self._build("POST", path, {"json": payload}, options=options),
            pause=self._pool.failover.pause,
            prices=self._pool.prices,
            expect=expect,
            reasks=reasks,
        )

    def stream(
        self,
        request: ChatRequest | Mapping[str, Any],
        *,
        path: str = CHAT,
        recovery: Recovery = "error",
        options: CallOptions = _OPTIONS,
    ) -> ChatStream:
        """Return an answer while the model says it: `async with client.stream(...) as answer`.

        Iterated, it yields `ChatCompletionChunk`s, and with `recovery="restart"` a
        `StreamRestarted` where a new answer begins. `ChatStream` explains `recovery`; the other
        arguments are those of `chat`.

        Raises:
            StreamInterruptedError: The answer broke off and no other replaced it.
            UpstreamStatusError: The last answer, before the first content, was an error status.
            ServiceError: As for `request`.
        """
        hold: Hold = "whole" if recovery == "buffer" else "first"
        payload = chat_payload(request, streamed=True)
        return ChatStream(
            self._pool.exchange,
            self._build("POST", path, {"json": payload}, hold=hold, options=options),
            recovery,
            pause=self._pool.failover.pause,
            prices=self._pool.prices,
        )

    async def embeddings(
        self,
        request: EmbeddingsRequest | Mapping[str, Any],
        *,
        path: str = EMBEDDINGS,
        options: CallOptions = _OPTIONS,
    ) -> EmbeddingsAnswer:
        """Return one finite vector for each input, all of one length, in their order.

        Raises:
            InvalidResponseError: The answer was no such vectors.
            UpstreamStatusError: The hosts' last word was an error status.
            ServiceError: As for `request`.
        """
        payload = embeddings_payload(request)
        built = self._build("POST", path, {"json": payload}, options=options)
        return await embeddings(self._pool.exchange, built, prices=self._pool.prices)

    async def models(
        self, *, path: str = MODELS, timeout: float | None = None, **content: Any
    ) -> dict[str, ModelList]:
        """Ask every enabled host which models it serves; return the answers by host.

        Hosts that do not answer are left out.

        Args:
            path: Path on every host.
            timeout: Seconds that each may take; None (default) bounds no more than the pool does.
            content: `headers`, …, as for `request`.

        Raises:
            NoHostAvailableError: None answers.
        """
        return await models_by_host(
            [host for host in self._pool.hosts if host.enabled],
            lambda: self._build("GET", path, content),
            timeout,
            self._pool.clock,
        )

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """The pool as an httpx transport; its requests may name any origin, only the path counts.

        Closing it, or a client that uses it, closes nothing: the pool ends with `stop`.
        """
        return BalancedTransport(self._pool)

    def add_host(self, host: LLMHost) -> None:
        """Take a host in; its share grows slowly to its weight.

        Raises:
            ConfigurationError: There is one of this name.
        """
        self._pool.add(host)

    async def remove_host(self, name: str, timeout: float = 30.0) -> bool:
        """Let a host go once its calls are over, or `timeout` seconds have passed.

        Returns:
            Whether its calls were over.
        """
        return await self._pool.remove(name, timeout)

    def enable_host(self, name: str) -> None:
        """Give new calls to a host again; its share grows slowly to its weight."""
        self._pool.roster.enable(name, True)

    def disable_host(self, name: str) -> None:
        """Give no new calls to a host, from this moment on; those in flight go on."""
        self._pool.roster.enable(name, False)

    async def drain_host(self, name: str, timeout: float = 30.0) -> bool:
        """Give no new calls to a host, and wait until those it has, streams included, are over.

        Returns:
            Whether they are; False if `timeout` seconds passed before.
        """
        return await self._pool.roster.drain(name, timeout)

    def set_weight(self, name: str, weight: float) -> None:
        """Change a host's share of the work relative to the others; above 0."""
        self._pool.roster.set_weight(name, weight)

    async def health_check_all(self) -> dict[str, dict[str, Any]]:
        """Ask every host at once, the disabled ones too; return each one's health snapshot."""
        return await self._pool.check_all()

    async def wait_ready(self, count: int = 1, timeout: float = 60.0) -> None:
        """Wait until `count` hosts have been found well.

        Raises:
            DeadlineExceededError: They have not been within `timeout` seconds.
        """
        async with deadline(timeout, clock=self._pool.clock):
            await self._pool.wait_ready(count)

    @property
    def is_ready(self) -> bool:
        """Whether some host may be called now, for one of the models it was asked for at least."""
        return self._pool.roster.is_callable

    def get_metrics(self) -> dict[str, Any]:
        """Return counters as plain JSON types; times are seconds.

        `totals` counts what callers saw, with a restarted stream as two calls, and how many
        attempts failed over to another host. `hosts` has for each host `url`, `weight`, `state`,
        its own counts of attempts, and how its `circuit_breaker`, `rate_limiter`, `bulkhead`,
        `health` and `token_limits` are.
        """
        return self._pool.metrics()

    def get_status(self) -> dict[str, Any]:
        """Return the metrics, what all hosts share, whether it runs, and who may be called."""
        return self._pool.status()

    def _build(
        self,
        method: str,
        path: str,
        content: Mapping[str, Any],
        *,
        hold: Hold = "first",
        options: CallOptions = _OPTIONS,
        facts: RequestFacts | None = None,
    ) -> httpx.Request:
        if not path.startswith("/"):
            raise ConfigurationError(f"path must begin with /, the hosts are known: {path!r}")
        request = request_of(method, path, content)
        body = content.get("json")
        if body is None:
            body = content_of(request.stream, request.headers)
            if body is not None:
                request.stream = httpx.ByteStream(body)
        if facts is None:
            facts = facts_of(request.url.path, body)
        request.extensions = self._pool.in_new_call(facts, hold, options, request.extensions)
        return request

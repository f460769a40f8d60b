"""One server: the client that talks to it, what it speaks, and what it has said of itself."""

from __future__ import annotations

import itertools
import math
import secrets
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx
from pydantic import ValidationError

from services.embedding.backends.protocol import CANARY
from services.embedding.backends.remote.dialects import DIALECTS, Dialect, Form
from services.embedding.backends.remote.reply import Reply
from services.embedding.errors import (
    InvalidReplyError,
    ModelChangedError,
    RemoteBusyError,
    RequestTooLargeError,
    TextRejectedError,
)
from services.embedding.options import Item, Reading
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.http import (
    HTTP,
    ConnectionPoolConfig,
    EnhancedHTTPClient,
    ResponseLimits,
    TimeoutConfig,
    UpstreamError,
)
from shared.infrastructure.http.semantics import parse_retry_after
from shared.infrastructure.resilience import (
    MONOTONIC,
    AdaptiveBulkheadConfig,
    CircuitBreakerConfig,
    Clock,
    ConfigurationError,
    HedgeConfig,
    RateLimitConfig,
    RetryBudget,
    RetryBudgetConfig,
    RetryConfig,
    RetryLayer,
    Send,
    stack,
)

_LONGEST_EXCERPT = 200
# Extensions: of a request, how many items it has; of a response, what was read of it.
_COUNT, _REPLY = "embedding_count", "embedding_reply"
_REJECTED = frozenset({400, 422})
# Of 4xx, those that another attempt may change: timed out, failed behind the server, too early.
_PASSING = frozenset({408, 424, 425})
# Rejections without a success after which the server is asked for something harmless.
_DOUBT = 7
_HEDGE_BURST = 5.0
# Seconds: a request that fails is one of many that do not.
_BASE_DELAY = 0.25
# Arrays and objects that a reply may have, so that nobody needs to look which are inside which; a
# decoder refuses too deep a nesting by itself.
_JSON_DEPTH = 10_000


class Part(NamedTuple):
    """What came of some of the items of a batch.

    Attributes:
        rows: Their places in the batch.
        result: Their vectors, or why there are none.
    """

    rows: range
    result: Reply | Exception


class Endpoint:
    """A server that embeds, behind the resilient client.

    Every answer is read within its attempt: what is no embedding of the items sent is a failure of
    the server, counted by the breaker and asked for again. Retries and hedges have a budget each.

    Args:
        settings: `remote_url` and what belongs to it, `model_name`, `failure_threshold`.
        transport: Transport to use instead of the client's own.
        clock: Source of monotonic time.

    Attributes:
        url: Base URL.
        dialect: What it speaks; from the first objection to base64 on, without that.
        dimension: Numbers in a vector; 0 until it is open.
        model: Name it gives its model, if it does.
        fingerprint: Fingerprint it gives, if it does.
    """

    def __init__(
        self,
        settings: EmbeddingSettings,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock = MONOTONIC,
    ) -> None:
        if settings.remote_url is None:
            raise ConfigurationError("a remote backend needs remote_url")
        self.url = str(settings.remote_url).rstrip("/")
        self.dialect: Dialect = DIALECTS[settings.remote_api](settings.model_name)
        self.dimension = 0
        self.model: str | None = None
        self.fingerprint: str | None = None
        self._settings = settings
        self._transport = transport
        self._clock = clock
        # Bytes of a request that the server has not called too large.
        self._max_bytes = math.inf
        self._key, self._numbers = secrets.token_hex(16), itertools.count()
        self._renew()

    async def open(self) -> None:
        """Prove by embedding a text that it works, and learn what it makes.

        Raises:
            ConfigurationError: It does not embed with this model.
            UpstreamError: It is not well.
        """
        if self._client.is_closed:
            self._renew()
        self.dimension, self.model, self.fingerprint = 0, None, None
        self.dialect.is_ours = False
        try:
            reply = await self._first_reply()
        except TextRejectedError as exc:
            model = self._settings.model_name
            raise ConfigurationError(f"{self.url} does not embed with {model!r}: {exc}") from exc
        self.dimension = reply.vectors.shape[1]
        self.model, self.fingerprint = reply.model, reply.fingerprint
        # No other server has that header.
        self.dialect.is_ours = reply.fingerprint is not None

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    def snapshot(self) -> dict[str, Any]:
        """Return the state of the client's parts as plain JSON types."""
        status = self._client.get_status()
        parts = ("circuit_breaker", "rate_limiter", "bulkhead", "health", "hedge", "pool")
        return {part: status[part] for part in parts}

    async def ask(self, items: Sequence[Item], form: Form) -> Reply:
        """Return the vectors of items that fit in one request.

        Raises:
            TextRejectedError: The server rejects the request.
            RemoteBusyError: It kept asking for patience.
            ModelChangedError: It answers with another model than before.
            UpstreamError: It failed, again and again.
            CallRefusedError: The breaker is open.
            ConfigurationError: It rejects us.
        """
        dialect = self.dialect
        request = self._request(dialect.write(items, form), len(items))
        response: httpx.Response = await self._send(request)
        reply: Reply | None = response.extensions.get(_REPLY)
        if reply is not None:
            return reply
        error = self._refusal(response)
        if isinstance(error, RequestTooLargeError) and len(items) > 1:
            self._max_bytes = min(self._max_bytes, _size(items) // 2)
        elif isinstance(error, TextRejectedError) and _blames_base64(dialect, response):
            # Whichever request was the first to find out: this one was written before.
            self.dialect = self.dialect.without_base64()
            return await self.ask(items, form)
        raise error

    async def embed(self, items: Sequence[Item], form: Form) -> list[Part]:
        """Return what came of each item; a rejected batch is halved until the guilty are alone.

        Breadth first: the good half is tried right after the bad one, so that a single bad item is
        no series of failures.
        """
        done: list[Part] = []
        parts = deque([range(len(items))])
        rejections = 0
        while parts:
            rows = parts.popleft()
            part = items[rows.start : rows.stop]
            if len(part) > 1 and self._is_too_large(part):
                parts.extend(_halves(rows))
                continue
            try:
                done.append(Part(rows, await self.ask(part, form)))
                rejections = 0
            except TextRejectedError as exc:
                rejections += 1
                if rejections == _DOUBT and not await self._takes_canary():
                    # It is not the texts.
                    return [*done, *(Part(rest, exc) for rest in (rows, *parts))]
                if len(part) > 1:
                    parts.extend(_halves(rows))
                else:
                    done.append(Part(rows, exc))
            except Exception as exc:  # the outcome of these items
                done.append(Part(rows, exc))
        return done

    def _request(self, body: bytes, count: int) -> httpx.Request:
        # What is the same for all is put together once: that is half of the cost of a request.
        pattern = self._pattern
        # To embed twice does no harm; this tells the layers that they may.
        key = f"{self._key}-{next(self._numbers)}"
        return httpx.Request(
            "POST",
            pattern.url,
            headers=[*pattern.headers.raw, (b"Idempotency-Key", key.encode())],
            content=body,
            extensions={**pattern.extensions, _COUNT: count},
        )

    def _is_too_large(self, items: Sequence[Item]) -> bool:
        return self._max_bytes < math.inf and _size(items) > self._max_bytes

    def _renew(self) -> None:
        """Begin with a new client."""
        self._client, self._send = self._new_client()
        self._pattern = self._client.build_request(
            "POST", self.dialect.path, headers={"Content-Type": "application/json"}
        )
        del self._pattern.headers["Content-Length"]

    def _new_client(self) -> tuple[EnhancedHTTPClient, Send[Any, Any]]:
        settings, clock = self._settings, self._clock
        connections, share = settings.max_connections, settings.remote_hedging
        key = settings.remote_api_key
        client = EnhancedHTTPClient(
            "embeddings",
            self.url,
            pool_config=ConnectionPoolConfig(
                max_connections=connections, max_keepalive_connections=connections
            ),
            timeout_config=TimeoutConfig(read=settings.request_timeout),
            retry_config=None,
            hedge_config=HedgeConfig() if share else None,
            # So many successes pay for one hedge; a trickle in quiet times would exceed the share.
            retry_budget=RetryBudgetConfig(
                capacity=_HEDGE_BURST,
                cost=1,
                throttle_cost=1,
                success_refund=share,
                min_retries_per_second=0,
            ),
            circuit_breaker_config=CircuitBreakerConfig(
                failure_threshold=settings.failure_threshold
            ),
            rate_limit_config=RateLimitConfig(
                requests_per_second=settings.requests_per_second, burst_size=settings.burst_size
            ),
            bulkhead_config=AdaptiveBulkheadConfig(
                initial_concurrent=min(20, connections), max_concurrent=connections
            ),
            limits=ResponseLimits(max_json_depth=_JSON_DEPTH),
            check_response=self._check,
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else None,
            transport=self._transport,
            clock=clock,
        )
        # Above the hedges, which end with the first failure; `stack` cannot see those, and the
        # budgets bound what the two make of each other.
        retry = RetryLayer(
            RetryConfig(base_delay=_BASE_DELAY, retry_busy=True),
            name="embeddings",
            budget=RetryBudget(clock=clock),
            clock=clock,
        )
        return client, stack(client.send, retry, semantics=HTTP)

    def _check(self, response: httpx.Response) -> None:
        """Read an answer, within its attempt."""
        if response.is_success:
            reply = self._read(response)
            response.extensions = {**response.extensions, _REPLY: reply}
        elif response.status_code in _PASSING:
            raise UpstreamError(_said(response))

    def _read(self, response: httpx.Response) -> Reply:
        count: int = response.request.extensions[_COUNT]
        try:
            reply = self.dialect.read(response.content, response.headers, count)
        except ValueError as exc:
            # Of what is wrong with each of thousands of numbers, the first is enough.
            raise InvalidReplyError(f"{self.url} answered no embeddings: {_first(exc)}") from exc
        dimension = reply.vectors.shape[1]
        if not self.dimension:
            return reply
        if (reply.model, reply.fingerprint) != (self.model, self.fingerprint):
            raise ModelChangedError(
                f"{self.url} answers with {reply.fingerprint or reply.model!r} now, and with "
                f"{self.fingerprint or self.model!r} before: what is kept does not go with that"
            )
        if dimension != self.dimension:
            raise InvalidReplyError(
                f"{self.url} answered vectors of {dimension} numbers, not {self.dimension}"
            )
        return reply

    async def _first_reply(self) -> Reply:
        form = self.dialect.form(Reading())
        try:
            return await self.ask([CANARY], form)
        except (TextRejectedError, InvalidReplyError):
            if not self.dialect.as_base64:
                raise
            # There are gateways that reject base64 without a word of it, or spoil it. The failures
            # so far say nothing about a server that is asked for floats.
            await self._client.aclose()
            self._renew()
            before, self.dialect = self.dialect, self.dialect.without_base64()
            try:
                return await self.ask([CANARY], form)
            except BaseException:
                self.dialect = before
                raise

    async def _takes_canary(self) -> bool:
        try:
            await self.ask([CANARY], self.dialect.form(Reading()))
        except Exception:  # whichever; there is an error to tell already
            return False
        return True

    def _refusal(self, response: httpx.Response) -> Exception:
        status, message = response.status_code, _said(response)
        retry_after = parse_retry_after(response.headers)
        if status == 413:
            return RequestTooLargeError(message)
        if status in _REJECTED:
            return TextRejectedError(message)
        if status == 429:
            return RemoteBusyError(message, retry_after=retry_after)
        if status >= 500:
            return UpstreamError(message, retry_after=retry_after)
        return ConfigurationError(message)


def _blames_base64(dialect: Dialect, response: httpx.Response) -> bool:
    text = response.text
    return dialect.as_base64 and ("encoding_format" in text or "base64" in text)


def _said(response: httpx.Response) -> str:
    excerpt = response.text[:_LONGEST_EXCERPT]
    return f"{response.request.url.host} answered {response.status_code}: {excerpt}"


def _first(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{first['msg']} ({'.'.join(map(str, first['loc']))})"


def _halves(rows: range) -> tuple[range, range]:
    middle = len(rows) // 2
    return rows[:middle], rows[middle:]


def _size(items: Sequence[Item]) -> int:
    """Return the bytes of items in a request, but for what is around them."""
    return sum(len(item.encode()) if isinstance(item, str) else 8 * len(item) for item in items)

"""Embed by any server that speaks OpenAI's `/v1/embeddings`, through the resilient client."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import httpx
import numpy as np

from services.embedding.backends import CANARY
from services.embedding.batcher import Outcome
from services.embedding.cache import Embedded, Vector
from services.embedding.errors import InvalidReplyError, RemoteBusyError, TextRejectedError
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.http import ConnectionPoolConfig, EnhancedHTTPClient, UpstreamError
from shared.infrastructure.http.semantics import parse_retry_after
from shared.infrastructure.resilience import (
    MONOTONIC,
    CircuitBreakerConfig,
    Clock,
    ConfigurationError,
    RateLimitConfig,
    RetryConfig,
    Send,
)

_LONGEST_EXCERPT = 200


class RemoteBackend:
    """An OpenAI-compatible server.

    A reply must hold one finite vector of the right dimension for each text; they are put in order
    by `index`. The protocol tells the tokens of a whole request only: a text's `token_count` is
    its share by length, unless the server says more, as ours does.

    Args:
        settings: `remote_url` and what belongs to it, `model_name`, `failure_threshold`.
        transport: Transport to use instead of httpx's own.
        clock: Source of monotonic time.
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
        self._settings = settings
        self._transport = transport
        self._clock = clock
        self._url = str(settings.remote_url).rstrip("/")
        self._dimension = 0
        self._client = self._new_client()

    @property
    def model_name(self) -> str:
        return self._settings.model_name

    @property
    def fingerprint(self) -> str:
        identity = f"{self._url}\n{self.model_name}\n{self.dimension}"
        return hashlib.sha256(identity.encode()).hexdigest()

    @property
    def dimension(self) -> int:
        return self._dimension

    @property
    def concurrency(self) -> int:
        # More would only wait for the rate limiter, each with a batch that could still have grown.
        return min(self._settings.max_connections, self._settings.burst_size)

    @property
    def is_healthy(self) -> bool:
        # Only traffic can tell, and there would be none if this said no.
        return True

    async def start(self) -> None:
        if self._client.is_closed:
            self._client = self._new_client()
        self._dimension = 0
        try:
            (canary,) = await self._ask([CANARY])
        except TextRejectedError as exc:
            raise ConfigurationError(
                f"{self._url} does not embed with model {self.model_name!r}: {exc}"
            ) from exc
        self._dimension = len(canary.vector)

    async def stop(self) -> None:
        await self._client.aclose()

    async def embed_batch(self, texts: Sequence[str]) -> Sequence[Outcome]:
        return await isolate(self._ask, texts)

    async def check_health(self) -> None:
        # Its own traffic says it, and a check would cost money.
        return None

    def snapshot(self) -> dict[str, Any]:
        status = self._client.get_status()
        return {
            part: status[part] for part in ("circuit_breaker", "rate_limiter", "bulkhead", "health")
        }

    def _new_client(self) -> EnhancedHTTPClient:
        settings = self._settings
        key = settings.remote_api_key
        return EnhancedHTTPClient(
            "embeddings",
            self._url,
            pool_config=ConnectionPoolConfig(max_connections=settings.max_connections),
            retry_config=RetryConfig(retry_busy=True),
            circuit_breaker_config=CircuitBreakerConfig(
                failure_threshold=settings.failure_threshold
            ),
            rate_limit_config=RateLimitConfig(
                requests_per_second=settings.requests_per_second, burst_size=settings.burst_size
            ),
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else None,
            transport=self._transport,
            clock=self._clock,
        )

    async def _ask(self, texts: Sequence[str]) -> list[Embedded]:
        body = {"model": self.model_name, "input": list(texts), "encoding_format": "base64"}
        response = await self._client.post("/embeddings", json=body)
        if not response.is_success:
            raise _refusal(response)
        try:
            embedded = _read(response.json(), texts)
        except (ValueError, TypeError, KeyError, IndexError) as exc:
            raise InvalidReplyError(f"{self._url} answered no embeddings: {exc!r}") from exc
        dimension = self._dimension or len(embedded[0].vector)
        for index, item in enumerate(embedded):
            if item.vector.shape != (dimension,) or not np.isfinite(item.vector).all():
                raise InvalidReplyError(
                    f"{self._url} answered no finite vector of {dimension} numbers for text {index}"
                )
        return embedded


async def isolate(
    send: Send[Sequence[str], Sequence[Embedded]], texts: Sequence[str]
) -> list[Outcome]:
    """Embed texts; halve a batch that is rejected until only the texts to blame are.

    Breadth first: the good half of a batch is tried right after the bad one, so that a single bad
    text is no series of failures that would open a breaker below.
    """
    outcomes: dict[int, Outcome] = {}
    parts = deque([range(len(texts))])
    while parts:
        part = parts.popleft()
        middle = len(part) // 2
        try:
            embedded = await send([texts[index] for index in part])
        except Exception as exc:  # the outcome of these texts, if they cannot be told apart
            if middle and isinstance(exc, TextRejectedError):
                parts += (part[:middle], part[middle:])
            else:
                outcomes.update(dict.fromkeys(part, exc))
        else:
            outcomes.update(zip(part, embedded, strict=True))
    return [outcomes[index] for index in range(len(texts))]


def _refusal(response: httpx.Response) -> Exception:
    status = response.status_code
    message = f"{response.url.host} answered {status}: {response.text[:_LONGEST_EXCERPT]}"
    if status in {400, 413, 422}:
        return TextRejectedError(message)
    if status == 429:
        return RemoteBusyError(message, retry_after=parse_retry_after(response.headers))
    return ConfigurationError(message) if status < 500 else UpstreamError(message)


def _read(reply: Any, texts: Sequence[str]) -> list[Embedded]:
    """Return the vectors of a reply in the order of the texts."""
    data = cast("list[dict[str, Any]]", reply["data"])
    usage = cast("dict[str, Any]", reply.get("usage") or {})
    items = {int(item["index"]): item for item in data}
    if len(data) != len(texts) or items.keys() != set(range(len(texts))):
        raise ValueError(f"{len(data)} items for {len(texts)} texts, or not each index once")
    shares = _shares(int(usage.get("total_tokens") or 0), texts)
    return [
        Embedded(
            _vector(items[index]["embedding"]),
            int(items[index].get("token_count", shares[index])),
            bool(items[index].get("truncated", False)),
        )
        for index in range(len(texts))
    ]


def _vector(value: str | list[float]) -> Vector:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32)
    return np.asarray(value, np.float32)


def _shares(total: int, texts: Sequence[str]) -> list[int]:
    """Split a number of tokens among texts by their length, so that the shares add up to it."""
    ends = list(itertools.accumulate(len(text) + 1 for text in texts))
    marks = [round(total * end / ends[-1]) for end in ends]
    return [mark - before for before, mark in zip([0, *marks], marks, strict=False)]

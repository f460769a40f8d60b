"""Requests go up to the pool byte for byte, and answers come down as they are."""

from __future__ import annotations

from collections.abc import Collection

import httpx

from services.llm.process.events import whole_events
from services.llm.process.limits import Limits, settle
from services.llm.process.metrics import LLMMetrics
from services.llm.process.models import ModelLister
from services.llm.process.problems import in_shape
from shared.infrastructure.balancing import DistributedLLMClient, Fault, InvalidResponseError
from shared.infrastructure.balancing.accounting import TokenReservation
from shared.infrastructure.balancing.call import ATTEMPT, Attempt, CallOptions, call_of
from shared.infrastructure.balancing.classify import fault_of
from shared.infrastructure.balancing.facts import facts_of
from shared.infrastructure.server import (
    Header,
    HTTPError,
    Reply,
    Request,
    StreamedReply,
)
from shared.infrastructure.server import retry_after as retry_headers
from shared.infrastructure.server.problems import RETRYABLE

# What a client says that is meant for the host.
_UP = (
    b"content-type",
    b"accept",
    b"user-agent",
    b"anthropic-version",
    b"anthropic-beta",
    b"openai-beta",
)
# Credentials go up only if they are not the process's own keys.
_CREDENTIALS = (b"authorization", b"x-api-key")
# What a host says that is meant for the client.
_DOWN = frozenset({b"content-type", b"retry-after", b"retry-after-ms", b"x-should-retry"})
_ERRORS = range(400, 600)


class Forwarder:
    """Hands requests to the pool, and its answers to clients.

    Args:
        client: The pool.
        limits: How much each client may ask for.
        metrics: Told of each answer.
        passes_credentials: Whether the credentials of a client are for the hosts.
        keyed: Names of the hosts that are sent a key of ours all the same.
    """

    def __init__(
        self,
        client: DistributedLLMClient,
        limits: Limits,
        metrics: LLMMetrics,
        *,
        passes_credentials: bool,
        keyed: Collection[str],
    ) -> None:
        self._client = client
        self._limits = limits
        self._metrics = metrics
        self._names = (*_UP, *_CREDENTIALS) if passes_credentials else _UP
        self._passes_credentials = passes_credentials
        self._keyed = keyed
        self._models = ModelLister(client, limits)

    async def __call__(self, request: Request) -> Reply | StreamedReply:
        """Answer a request with what a host answers.

        Raises:
            HTTPError: The client may not now (429), or the hosts refuse our key (502).
            InvalidResponseError: A host answered with what is neither an answer nor an error.
            ServiceError: As for `DistributedLLMClient.request`.
        """
        facts = facts_of(request.path, request.body)
        reservation = self._limits.admit(request, facts)
        built = self._client.build(
            "POST",
            _target(request),
            content=request.body,
            headers=self._headers(request),
            options=_options(request),
            facts=facts,
        )
        answer = _Answer(request, built, self._client, self._metrics, reservation)
        response = await answer.open()
        if not response.is_success and response.status_code not in _ERRORS:
            await answer.close()
            raise _no_answer(response)
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            pieces = whole_events(response)

            async def close() -> None:
                await answer.close()
                await pieces.aclose()

            told = self._told(response)
            return StreamedReply(pieces, close, response.status_code, told)
        try:
            body = await response.aread()
        finally:
            await answer.close()
        self._metrics.count_fault(response)
        if fault_of(response) is Fault.MISCONFIGURED and self._is_our_key(response):
            raise HTTPError(
                502, "the host refuses the key it is sent", kind="server_error", code="host_key"
            )
        if response.is_error:
            body = in_shape(request.route, response.status_code, body)
        return Reply(body, response.status_code, self._told(response))

    async def models(self, request: Request) -> Reply:
        """Answer with the models of all hosts, each once.

        Raises:
            HTTPError: The client may not now (429).
            NoHostAvailableError: None of them answers.
        """
        return await self._models(request, tuple(self._passed_on(request)))

    async def close(self) -> None:
        """Ask no host any more."""
        await self._models.close()

    def _passed_on(self, request: Request) -> list[Header]:
        given = request.headers
        return [(name, given[name]) for name in self._names if name in given]

    def _headers(self, request: Request) -> list[Header]:
        headers = self._passed_on(request)
        # An event stream is read on its way; what is packed would have to be unpacked for that.
        headers.append((b"accept-encoding", b"identity"))
        headers.append((b"x-request-id", request.id.encode()))
        return headers

    def _is_our_key(self, response: httpx.Response) -> bool:
        attempt: Attempt | None = response.extensions.get(ATTEMPT)
        return not self._passes_credentials or (attempt is not None and attempt.host in self._keyed)

    @staticmethod
    def _told(response: httpx.Response) -> tuple[Header, ...]:
        given = ((name.lower(), value) for name, value in response.headers.raw)
        told = [header for header in given if header[0] in _DOWN]
        if response.status_code in RETRYABLE and "retry-after" not in response.headers:
            told += retry_headers()
        attempt: Attempt | None = response.extensions.get(ATTEMPT)
        count = len(call_of(response.extensions).attempts)
        return (*told, *about(attempt.host if attempt else None, count))


class _Answer:
    """An answer on its way, until it is settled."""

    def __init__(
        self,
        request: Request,
        built: httpx.Request,
        client: DistributedLLMClient,
        metrics: LLMMetrics,
        reservation: TokenReservation | None,
    ) -> None:
        self._request = request
        self._call = call_of(built.extensions)
        self._exchange = client.exchange(built)
        self._metrics = metrics
        self._reservation = reservation
        self._response: httpx.Response | None = None

    async def open(self) -> httpx.Response:
        """Return the answer as soon as it has begun."""
        self._metrics.in_flight += 1
        try:
            self._response = await self._exchange.__aenter__()
        except BaseException:
            self._metrics.in_flight -= 1
            self._settle()
            raise
        return self._response

    async def close(self) -> None:
        """Let go of the answer, and settle what it cost; upstream is closed at once."""
        response = self._response
        if response is None:
            return
        self._response = None
        self._metrics.in_flight -= 1
        try:
            await self._exchange.__aexit__(None, None, None)
        finally:
            attempt: Attempt | None = response.extensions.get(ATTEMPT)
            if attempt is not None:
                request, call = self._request, call_of(response.extensions)
                self._metrics.count_answer(request.template, request.tenant, call, attempt)
            self._settle()

    def _settle(self) -> None:
        if self._reservation is not None:
            settle(self._reservation, self._call)


def about(host: str | None, attempts: int) -> tuple[Header, ...]:
    """Return the headers that say how an answer came about."""
    count = (b"x-llm-attempts", b"%d" % attempts)
    return (count,) if host is None else ((b"x-llm-host", host.encode()), count)


def _no_answer(response: httpx.Response) -> InvalidResponseError:
    attempt: Attempt | None = response.extensions.get(ATTEMPT)
    host = attempt.host if attempt else None
    error = InvalidResponseError(f"the host answered {response.status_code}", host=host)
    error.attempts = len(call_of(response.extensions).attempts)
    return error


def _target(request: Request) -> str:
    query = request.query
    return f"{request.path}?{query.decode('latin-1')}" if query else request.path


def _options(request: Request) -> CallOptions:
    session = request.headers.get(b"x-session-id")
    return CallOptions(
        session=session.decode("latin-1") if session else None, tenant=request.tenant or None
    )

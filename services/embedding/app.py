"""The ASGI application of the embedding process: routes, keys, errors and readiness."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.embedding import api
from services.embedding.metrics import CONTENT_TYPE, Metrics
from services.embedding.problems import problem, retry_after
from services.embedding.service import ProductionEmbeddingService
from services.embedding.wire import (
    CLOSE,
    ClientGoneError,
    Header,
    HTTPError,
    Receive,
    Reply,
    Request,
    Scope,
    SendMessage,
)
from shared.infrastructure.resilience import MONOTONIC

_log = logging.getLogger(__name__)

_CLIENT_GONE = 499  # nginx's number for it; never sent, only counted

Handler = Callable[[Request], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class _Route:
    """What a path does.

    Attributes:
        method: Method it takes.
        handler: Answers.
        needs_key: Whether an API key must be given, if there are any.
        error: Shape of its errors.
    """

    method: str
    handler: Handler
    needs_key: bool = True
    error: Callable[[HTTPError], Reply] = api.openai_error


class EmbeddingApp:
    """The process as any ASGI server can run it.

    Its lifespan loads the model in the background: the process lives at once, and is ready when
    the model has embedded a text.

    Args:
        service: What embeds; started and stopped by the lifespan.
        on_failure: Told when the model cannot be loaded.

    Attributes:
        draining: Set it to say "not ready" and close connections while still answering.
    """

    def __init__(
        self,
        service: ProductionEmbeddingService,
        *,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self.draining = False
        self._service = service
        self._settings = settings = service.settings
        self._on_failure = on_failure
        self._metrics = Metrics(service)
        self._created = int(time.time())
        name = service.model_name
        self._names = {name, name.removeprefix("package:"), name.rstrip("/").rpartition("/")[2]}
        self._names.update(settings.model_aliases)
        self._keys = [_digest(key.get_secret_value().encode()) for key in settings.api_keys]
        self._routes = {
            "/v1/embeddings": _Route("POST", self._openai),
            "/embed": _Route("POST", self._tei, error=api.tei_error),
            "/v1/models": _Route("GET", self._models),
            "/health": _Route("GET", self._ready, needs_key=False),
            "/health/live": _Route("GET", self._live, needs_key=False),
            "/health/ready": _Route("GET", self._ready, needs_key=False),
            "/metrics": _Route("GET", self._exposition, needs_key=False),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: SendMessage) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: SendMessage) -> None:
        began = MONOTONIC.now()
        path: str = scope["path"]
        route = self._routes.get(path)
        extra: tuple[Header, ...] = (CLOSE,) if self.draining else ()
        try:
            reply = await self._answer(route, Request(scope, receive))
        except ClientGoneError:
            self._observe(path, route, _CLIENT_GONE, began)
            return
        except Exception as exc:
            error = problem(exc)
            reply = (route.error if route else api.openai_error)(error)
            extra += error.headers
        self._observe(path, route, reply.status, began)
        await reply.send(send, extra)

    async def _answer(self, route: _Route | None, request: Request) -> Reply:
        if route is None:
            raise HTTPError(404, "there is nothing at this path", code="not_found")
        if request.scope["method"] != route.method:
            raise HTTPError(
                405,
                f"use {route.method}",
                code="method_not_allowed",
                headers=[(b"allow", route.method.encode())],
            )
        if self._keys and route.needs_key:
            self._authorize(request)
        return await route.handler(request)

    def _observe(self, path: str, route: _Route | None, status: int, began: float) -> None:
        self._metrics.observe(path if route else "other", status, MONOTONIC.now() - began)

    def _authorize(self, request: Request) -> None:
        scheme, _, token = (request.header(b"authorization") or b"").partition(b" ")
        digest = _digest(token.strip())
        # All are compared, so that the time taken does not tell which one came close.
        matches = [hmac.compare_digest(digest, key) for key in self._keys]
        if scheme.lower() != b"bearer" or not any(matches):
            raise HTTPError(
                401,
                "give a valid API key: 'Authorization: Bearer KEY'",
                kind="authentication_error",
                code="invalid_api_key",
                headers=[(b"www-authenticate", b"Bearer")],
            )

    async def _openai(self, request: Request) -> Reply:
        query = api.read_openai(await self._body(request))
        model = query.model or self._service.model_name
        if query.model is not None and model not in self._names:
            raise HTTPError(
                404,
                f"the model here is {self._service.model_name!r}, not {model!r}",
                code="model_not_found",
                param="model",
            )
        work = self._service.embed_batch(query.texts, dimensions=query.dimensions)
        return api.openai_reply(query, await request.unless_gone(work), model)

    async def _tei(self, request: Request) -> Reply:
        query = api.read_tei(await self._body(request))
        work = self._service.embed_batch(query.texts, dimensions=query.dimensions)
        return api.tei_reply(await request.unless_gone(work))

    async def _body(self, request: Request) -> bytes:
        if not self._service.is_started:
            raise HTTPError(
                503,
                "the model is not loaded yet",
                kind="server_error",
                code="not_ready",
                headers=retry_after(None),
            )
        return await request.body(self._settings.max_body_bytes)

    async def _models(self, _request: Request) -> Reply:
        ids = dict.fromkeys((self._service.model_name, *self._settings.model_aliases))
        data = [
            {"id": name, "object": "model", "created": self._created, "owned_by": "morgan-sdk"}
            for name in ids
        ]
        return api.json_reply({"object": "list", "data": data})

    async def _live(self, _request: Request) -> Reply:
        return api.json_reply({"status": "alive"})

    async def _ready(self, _request: Request) -> Reply:
        if self.draining:
            return api.json_reply({"status": "draining"}, 503)
        if self._service.is_ready:
            return api.json_reply({"status": "ready"})
        started = self._service.is_started
        return api.json_reply({"status": "unhealthy" if started else "loading"}, 503)

    async def _exposition(self, _request: Request) -> Reply:
        return Reply(self._metrics.exposition(), 200, ((b"content-type", CONTENT_TYPE.encode()),))

    async def _lifespan(self, receive: Receive, send: SendMessage) -> None:
        await receive()
        loading = asyncio.create_task(self._load(), name="load-model")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.draining = True
        await self._service.stop()
        await loading
        await send({"type": "lifespan.shutdown.complete"})

    async def _load(self) -> None:
        began = MONOTONIC.now()
        try:
            await self._service.start()
        except Exception as exc:
            if self._on_failure is None:
                _log.exception("the model cannot be loaded")
            else:
                self._on_failure(exc)
        else:
            _log.info("ready after %.1f s", MONOTONIC.now() - began)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()

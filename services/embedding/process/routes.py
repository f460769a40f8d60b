"""What each path leads to, and what is said of it in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from services.embedding.process.cohere import CohereDialect
from services.embedding.process.embedding import EmbeddingHandler
from services.embedding.process.health import HealthHandlers
from services.embedding.process.messages import HTTPError, Reply, Request
from services.embedding.process.openai import OpenAIDialect
from services.embedding.process.plain import PlainHandlers
from services.embedding.process.replies import ReplyCache
from services.embedding.process.tei import TEIDialect
from services.embedding.service import ProductionEmbeddingService

Handler = Callable[[Request], Awaitable[Reply]]
ErrorShape = Callable[[HTTPError], dict[str, Any]]

# What may befall any request, and any with a body.
_ANY = (400, 404, 405, 408, 415, 417, 431, 500)
_WITH_BODY = (413, 422, 429, 502, 503, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What a path does.

    Attributes:
        method: The method it takes; one with a body is POST.
        handler: Answers.
        summary: What it is for.
        response: Name of the schema of its answer; that of a body is the same and `Request`.
        needs_key: Whether an API key must be given, if there are any.
        error: Shape of its errors.
        error_schema: Name of the schema of its errors.
        items: Name of the field with the items.
        waits: Whether it answers 503 while the model is not there.
    """

    method: str
    handler: Handler
    summary: str
    response: str
    needs_key: bool = True
    error: ErrorShape = OpenAIDialect.error
    error_schema: str = "Error"
    items: str = "input"
    waits: bool = False

    @property
    def statuses(self) -> list[int]:
        """Every status it may answer, in order."""
        statuses = {200, *_ANY}
        if self.needs_key:
            statuses.add(401)
        if self.waits:
            statuses.add(503)
        if self.method == "POST":
            statuses.update(_WITH_BODY)
        return sorted(statuses)


def routes_of(
    service: ProductionEmbeddingService, health: HealthHandlers, replies: ReplyCache
) -> dict[str, Route]:
    """Return what each path of a service leads to."""
    own = service.model_name
    shown = dict.fromkeys((own, *service.settings.model_aliases))
    names = {*shown, own.removeprefix("package:"), own.rstrip("/").rpartition("/")[2]}
    return {
        **_embedding_routes(service, names, replies),
        **_plain_routes(PlainHandlers(service, shown)),
        **_health_routes(health),
    }


def _embedding_routes(
    service: ProductionEmbeddingService, names: set[str], replies: ReplyCache
) -> dict[str, Route]:
    return {
        "/v1/embeddings": Route(
            method="POST",
            handler=EmbeddingHandler(service, OpenAIDialect(), names, replies),
            summary="Embed, as OpenAI's API",
            response="Embeddings",
        ),
        "/embed": Route(
            method="POST",
            handler=EmbeddingHandler(service, TEIDialect(), names, replies),
            summary="Embed, as TEI",
            response="Vectors",
            error=TEIDialect.error,
            error_schema="TEIError",
            items="inputs",
        ),
        "/v2/embed": Route(
            method="POST",
            handler=EmbeddingHandler(service, CohereDialect(), names),
            summary="Embed, as Cohere's API",
            response="EmbeddingsByType",
            error=CohereDialect.error,
            error_schema="CohereError",
            items="texts",
        ),
    }


def _plain_routes(plain: PlainHandlers) -> dict[str, Route]:
    def tei(method: str, handler: Handler, summary: str, response: str) -> Route:
        return Route(
            method=method,
            handler=handler,
            summary=summary,
            response=response,
            error=TEIDialect.error,
            error_schema="TEIError",
            items="inputs",
            waits=True,
        )

    return {
        "/similarity": tei("POST", plain.similarity, "Compare texts, as TEI", "Scores"),
        "/rerank": tei("POST", plain.rerank, "Rerank texts, as TEI", "Ranks"),
        "/tokenize": tei("POST", plain.tokenize, "Tokenize texts, as TEI", "Tokens"),
        "/info": tei("GET", plain.info, "The model and its limits, as TEI", "Info"),
        "/v1/models": Route(
            method="GET", handler=plain.models, summary="Names of the model", response="Models"
        ),
    }


def _health_routes(health: HealthHandlers) -> dict[str, Route]:
    def get(handler: Handler, summary: str, waits: bool = False) -> Route:
        return Route(
            method="GET",
            handler=handler,
            summary=summary,
            response="Status",
            needs_key=False,
            waits=waits,
        )

    return {
        "/health": get(health.ready, "As /health/ready", waits=True),
        "/health/ready": get(health.ready, "Whether it can embed now", waits=True),
        "/health/startup": get(health.startup, "Whether the model is loaded", waits=True),
        "/health/live": get(health.live, "Whether the process lives"),
        "/ping": get(health.live, "As /health/live"),
    }

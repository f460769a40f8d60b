"""What each path leads to."""

from __future__ import annotations

from services.embedding.process.cohere import CohereDialect
from services.embedding.process.embedding import EmbeddingHandler
from services.embedding.process.openai import OpenAIDialect
from services.embedding.process.plain import PlainHandlers
from services.embedding.process.replies import ReplyCache
from services.embedding.process.tei import TEIDialect
from services.embedding.service import ProductionEmbeddingService
from shared.infrastructure.server import Handler, HealthHandlers, Route, health_routes


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
        **health_routes(health, what="embed", loaded="the model is loaded"),
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

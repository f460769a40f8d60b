"""Vectors for texts, one for each and in their order; and what models there are."""

from __future__ import annotations

import httpx
from pydantic import ValidationError

from shared.infrastructure.balancing.accounting.prices import PriceTable
from shared.infrastructure.balancing.errors import InvalidResponseError
from shared.infrastructure.balancing.semantics import host_of
from shared.infrastructure.balancing.typed.requests import Exchange, answered
from shared.infrastructure.balancing.typed.route import route_of_answer
from shared.models import EmbeddingsAnswer, ModelList


async def embeddings(
    exchange: Exchange, request: httpx.Request, *, prices: PriceTable | None = None
) -> EmbeddingsAnswer:
    """Return one finite vector for each input, all of one length, in their order.

    Args:
        exchange: Sends a request until there is an answer.
        request: The call; its extensions hold its `Call`.
        prices: What tokens cost, for `route`; None leaves it unknown.

    Raises:
        UpstreamStatusError: The hosts' last word was an error status.
        InvalidResponseError: It was no such answer.
        ServiceError: As for `exchange`.
    """
    response, body = await answered(exchange, request)
    try:
        answer = EmbeddingsAnswer.model_validate(body)
    except ValidationError as exc:
        words = exc.errors(include_url=False, include_context=False)[0]["msg"]
        raise InvalidResponseError(f"no embeddings: {words}", host=host_of(response)) from None
    return answer.with_route(route_of_answer(response, prices, answer.model))


async def models(exchange: Exchange, request: httpx.Request) -> ModelList:
    """Return the models that a host says it serves.

    Raises:
        UpstreamStatusError: The hosts' last word was an error status.
        InvalidResponseError: It was no list of models.
        ServiceError: As for `exchange`.
    """
    response, body = await answered(exchange, request)
    try:
        return ModelList.model_validate(body)
    except ValidationError:
        problem = f"no list of models: {str(body)[:200]}"
        raise InvalidResponseError(problem, host=host_of(response)) from None

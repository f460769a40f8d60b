"""What each path leads to."""

from __future__ import annotations

from services.llm.process.forwarding import Forwarder
from services.llm.process.problems import anthropic_error, anthropic_event, responses_event
from shared.infrastructure.server import Route

# Those of a body, of the work, and those of hosts that are passed on; others are, too.
_FAILURES = (402, 403, 409, 413, 422, 429, 502, 503, 504, 529)


def forwarding_routes(forwarder: Forwarder) -> dict[str, Route]:
    """Return the routes whose requests go to the pool."""

    def post(summary: str, response: str) -> Route:
        return Route(
            method="POST",
            handler=forwarder,
            summary=summary,
            response=response,
            failures=_FAILURES,
        )

    return {
        "/v1/chat/completions": post("Chat, as OpenAI's API", "Chat"),
        "/v1/completions": post("Complete, as OpenAI's API", "Completion"),
        "/v1/embeddings": post("Embed, as OpenAI's API", "Embeddings"),
        "/v1/responses": Route(
            method="POST",
            handler=forwarder,
            summary="Respond, as OpenAI's API; by hosts that speak it",
            response="Response",
            failures=_FAILURES,
            event=responses_event,
        ),
        "/v1/messages": Route(
            method="POST",
            handler=forwarder,
            summary="Answer a message, as Anthropic's API; by hosts that speak it",
            response="Message",
            failures=_FAILURES,
            error=anthropic_error,
            error_schema="AnthropicError",
            event=anthropic_event,
        ),
        "/v1/models": Route(
            method="GET",
            handler=forwarder.models,
            summary="Models, as OpenAI's API",
            response="Models",
            failures=(429, 503),
        ),
    }

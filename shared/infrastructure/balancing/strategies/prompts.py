"""The text that calls may have in common."""

from __future__ import annotations

from shared.infrastructure.balancing.call import RequestFacts


def prompt_of(facts: RequestFacts) -> str:
    """Return what the model will read, in order; "" if that is not known."""
    if facts.dialect is None or facts.payload is None:
        return ""
    return facts.dialect.prompt(facts.payload)

"""Tokens, as hosts count them: every dialect's words for it, read into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens that an attempt cost.

    Attributes:
        input: Tokens read, those of a cache included.
        output: Tokens written, reasoning included.
        cached_read: Those of `input` that came out of the host's cache.
        cache_write: Those of `input` that were put into it.
        reasoning: Those of `output` that are thought and not said.
        estimated: Whether the host did not say, and this is our guess.
    """

    input: int = 0
    output: int = 0
    cached_read: int = 0
    cache_write: int = 0
    reasoning: int = 0
    estimated: bool = False

    @classmethod
    def of(cls, counted: Mapping[str, Any] | None) -> TokenUsage | None:
        """Read what a host counted; None if it counted nothing at all, which zero is not.

        Read are the words of OpenAI (chat, completions, embeddings, responses) and of Anthropic,
        who counts cached tokens apart. No part is larger than the whole.
        """
        if not counted:
            return None
        given = _count(counted, "prompt_tokens", "input_tokens")
        output = _count(counted, "completion_tokens", "output_tokens")
        total = _count(counted, "total_tokens")
        if given is None and output is None and total is None:
            return None
        if given is None:
            given = max(0, (total or 0) - (output or 0))
        read = _count(counted, "cache_read_input_tokens")
        written = _count(counted, "cache_creation_input_tokens")
        if read is None and written is None:
            inward = _details(counted, "prompt_tokens_details", "input_tokens_details")
            read = _count(inward, "cached_tokens")
            written = _count(inward, "cache_write_tokens")
        elif "prompt_tokens" not in counted:  # which are all of them, whoever spells them so
            given += (read or 0) + (written or 0)
        outward = _details(counted, "completion_tokens_details", "output_tokens_details")
        thought = _count(outward, "reasoning_tokens", "thinking_tokens")
        estimated = counted.get("estimated") is True
        output, read = output or 0, min(read or 0, given)
        written, thought = min(written or 0, given - read), min(thought or 0, output)
        return cls(given, output, read, written, thought, estimated)


def _count(counted: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of some counts that is one."""
    for name in names:
        value = counted.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None


def _details(counted: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        value = counted.get(name)
        if isinstance(value, dict):
            return cast("Mapping[str, Any]", value)
    return _NOTHING

"""Tokens, as hosts count them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

# Hosts write null for a count that does not apply.
Count = Annotated[int, BeforeValidator(lambda count: 0 if count is None else count)]


def _or_none(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        return None


OrNone = WrapValidator(_or_none)
"""Takes what is beside the answer and of the wrong form for missing: the answer is worth more."""


class PromptTokensDetails(BaseModel, frozen=True, extra="allow"):
    """What the tokens that were read consist of; further counts of the host pass through.

    Attributes:
        cached_tokens: Read from the host's cache.
        cache_write_tokens: Written to the host's cache.
    """

    cached_tokens: Count = 0
    cache_write_tokens: Count = 0


class CompletionTokensDetails(BaseModel, frozen=True, extra="allow"):
    """What the tokens that were written consist of; further counts of the host pass through.

    Attributes:
        reasoning_tokens: Thought, and not said.
    """

    reasoning_tokens: Count = 0


class Usage(BaseModel, frozen=True, extra="allow"):
    """Tokens that an answer cost, as the host counted them; further counts pass through.

    Attributes:
        prompt_tokens: Read, those from the cache included.
        completion_tokens: Written, those of reasoning included.
        total_tokens: Both.
        prompt_tokens_details: What the first consist of, if the host says.
        completion_tokens_details: What the second consist of, if the host says.
    """

    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    total_tokens: Count = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None

    @property
    def cached_tokens(self) -> int:
        """Tokens read from the host's cache."""
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else 0

    @property
    def cache_write_tokens(self) -> int:
        """Tokens written to the host's cache."""
        return self.prompt_tokens_details.cache_write_tokens if self.prompt_tokens_details else 0

    @property
    def reasoning_tokens(self) -> int:
        """Tokens thought, and not said."""
        details = self.completion_tokens_details
        return details.reasoning_tokens if details else 0

    def __add__(self, other: Usage) -> Usage:
        """Return the tokens of both."""
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=self.cached_tokens + other.cached_tokens,
                cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            ),
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens
            ),
        )


ReportedUsage = Annotated[Usage | None, OrNone]
"""Tokens as a host counted them; None if it did not, or not in numbers."""

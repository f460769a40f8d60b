"""What is asked of a language model and what it answers, in the terms of the OpenAI API."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from shared.models.route import RouteInfo
from shared.models.usage import Usage


class LLMRequest(BaseModel, frozen=True, extra="forbid"):
    """One question to a language model.

    Attributes:
        prompt: The question as plain text; give this or `messages`.
        messages: The conversation so far, as `{"role": …, "content": …}` objects.
        model: Model to ask; None is the service's own choice.
        max_tokens: Longest answer in tokens; at least 1; None leaves it to the host.
        temperature: Randomness, 0 to 2; None leaves it to the host.
        top_p: Share of the probability mass that is sampled from, above 0 up to 1.
        stop: Text, or texts, that end the answer.
        seed: Makes sampling repeatable where the host supports it.
        response_format: For instance `{"type": "json_object"}`, or a JSON schema.
        extra: Further fields of the payload, passed on untouched: tools, logit bias, ….
    """

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    response_format: dict[str, Any] | None = None
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ask_one_question(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        if not (self.prompt or self.messages):
            raise ValueError("the prompt, or the list of messages, is empty")
        return self

    def to_payload(self) -> dict[str, Any]:
        """Return the body of a chat completion call; fields that are None are left out."""
        fields = self.model_dump(exclude={"prompt", "extra"}, exclude_none=True)
        if self.prompt is not None:
            fields["messages"] = [{"role": "user", "content": self.prompt}]
        return {**fields, **self.extra}


class LLMResponse(BaseModel, frozen=True):
    """A whole answer.

    Attributes:
        text: What the model said.
        model: Model that answered, as its host names it.
        usage: Tokens it cost; None if the host did not say.
        finish_reason: Why the answer ended: "stop", "length", "tool_calls", ….
        message: The message as the host sent it, tool calls and reasoning included.
        host: Host that answered.
        attempts: Attempts it took, on all hosts together.
        route: How the answer came about; None if that is not known.
    """

    text: str
    model: str | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    message: dict[str, Any] = Field(default_factory=dict)
    host: str | None = None
    attempts: int = 1
    route: RouteInfo | None = Field(default=None, exclude=True, repr=False)


class LLMChunk(BaseModel, frozen=True):
    """A piece of a streamed answer.

    Attributes:
        text: What the model said since the last piece; may be empty.
        finish_reason: Why the answer ended, in the last piece but for its usage.
        usage: Tokens the answer cost, in the last piece, if the host says.
        delta: The piece as the host sent it, tool calls and reasoning included.
        model: Model that answers, as its host names it.
        host: Host that answers.
        restarted: The answer broke off and begins anew: forget the text so far.
        discarded: Characters to forget, if `restarted`.
    """

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    delta: dict[str, Any] = Field(default_factory=dict)
    model: str | None = None
    host: str | None = None
    restarted: bool = False
    discarded: int = 0

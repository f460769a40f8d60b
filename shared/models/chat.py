"""Chat completions in the terms of the OpenAI API; fields not named here pass through untouched."""

from __future__ import annotations

import json
from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, Field, PrivateAttr

from shared.models.route import Route, RouteInfo
from shared.models.usage import OrNone, ReportedUsage

_UNKNOWN = RouteInfo()


def _as_json(arguments: object) -> object:
    """Return arguments as JSON: some hosts send the object itself."""
    return json.dumps(arguments) if isinstance(arguments, dict | list) else arguments


def text_of(content: object) -> str:
    """Return the text in the content of a message: a string, or parts of which some are text."""
    if isinstance(content, str):
        return content
    parts = cast("list[object]", content) if isinstance(content, list) else []
    objects = [cast("dict[str, object]", part) for part in parts if isinstance(part, dict)]
    texts = [part.get("text") for part in objects]
    return "".join(text for text in texts if isinstance(text, str))


Name = Annotated[str | None, Field(coerce_numbers_to_str=True)]
Index = Annotated[int, BeforeValidator(lambda index: 0 if index is None else index)]
LogProbs = Annotated[dict[str, Any] | None, OrNone]


class FunctionCall(BaseModel, extra="allow"):
    """What a tool is to be called with; `arguments` is JSON, as far as the model keeps to it."""

    name: str | None = None
    arguments: Annotated[str | None, BeforeValidator(_as_json)] = None


class ToolCall(BaseModel, extra="allow"):
    """A tool that the model wants to have called."""

    id: str | None = None
    type: str | None = None
    function: FunctionCall | None = None


class ChatMessage(BaseModel, extra="allow"):
    """One message of a conversation.

    Attributes:
        role: "system", "developer", "user", "assistant" or "tool".
        content: Text, or parts such as `{"type": "text", …}` and `{"type": "image_url", …}`.
        name: Who speaks, where several have the same role.
        tool_calls: Tools that the model wants to have called.
        tool_call_id: Which of them this message answers.
        reasoning_content: What the model thought before it spoke.
        refusal: Why it does not answer.
    """

    role: str | None = None
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None


class ChatRequest(BaseModel, extra="allow"):
    """A conversation that a model is to go on with.

    Attributes:
        model: Model to ask, or an alias of it.
        messages: The conversation so far, oldest first.
        temperature: Randomness; at least 0.
        top_p: Share of the probability mass that is sampled from, above 0 up to 1.
        max_completion_tokens: Longest answer in tokens, reasoning included; at least 1.
        max_tokens: The same for hosts that do not know the other; at least 1.
        n: Answers wanted; at least 1.
        stop: Text, or texts, that end the answer.
        seed: Makes sampling repeatable where the host supports it.
        tools: Tools that the model may call.
        tool_choice: Whether it must, and which.
        response_format: For instance `{"type": "json_object"}`, or a JSON schema.
        stream: Whether events are wanted; the pool sets it by the method that is called.
        stream_options: What else is to be in the events.
        metadata: Kept by the host with the answer.
        user: Who asks; calls of the same user may be kept on one host.
    """

    model: str | None = None
    messages: list[ChatMessage]
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None

    def to_payload(self) -> dict[str, Any]:
        """Return the body of the call: what was set, and nothing else."""
        return self.model_dump(exclude_unset=True)


class Choice(BaseModel, extra="allow"):
    """One of the answers.

    Attributes:
        index: Its number.
        message: What the model said.
        finish_reason: Why it ended: "stop", "length", "tool_calls", "content_filter", ….
        logprobs: Probabilities of its tokens, if asked for.
    """

    index: Index = 0
    message: ChatMessage
    finish_reason: str | None = None
    logprobs: LogProbs = None


class ChatCompletion(BaseModel, extra="allow"):
    """A whole answer.

    Attributes:
        id: The host's name of it.
        object: "chat.completion".
        created: When, in seconds since 1970.
        model: Model that answered, as its host names it.
        choices: The answers, usually one.
        usage: Tokens it cost; None if the host did not say.
        system_fingerprint: The host's name of what it runs.
    """

    id: Name = None
    object: str = "chat.completion"
    created: Annotated[int | None, OrNone] = None
    model: str | None = None
    choices: list[Choice]
    usage: ReportedUsage = None
    system_fingerprint: Name = None

    _route: Route | None = PrivateAttr(default=None)
    _parsed: Any = PrivateAttr(default=None)

    @property
    def text(self) -> str:
        """What the model said, in the first choice."""
        return text_of(self.choices[0].message.content) if self.choices else ""

    @property
    def route(self) -> RouteInfo:
        """How the answer came about; no part of its JSON. Empty if that is not known."""
        if callable(self._route):
            self._route = self._route()
        return self._route or _UNKNOWN

    @property
    def parsed(self) -> Any:
        """What the text says, if a form was expected of it; no part of the JSON."""
        return self._parsed

    def with_route(self, route: Route, parsed: Any = None) -> ChatCompletion:
        """Put beside the answer how it came about, and what it says; return it."""
        self._route, self._parsed = route, parsed
        return self

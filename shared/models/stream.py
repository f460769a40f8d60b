"""A chat completion that comes piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

from pydantic import BaseModel, BeforeValidator, TypeAdapter

from shared.models.chat import FunctionCall, Index, LogProbs, text_of
from shared.models.usage import ReportedUsage, Usage


class ToolCallDelta(BaseModel, extra="allow"):
    """A piece of a tool call; pieces of the same `index` belong together."""

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: FunctionCall | None = None


class Delta(BaseModel, extra="allow"):
    """What a message has more than before."""

    role: str | None = None
    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(BaseModel, extra="allow"):
    """What one of the answers has more than before.

    Attributes:
        index: Its number.
        delta: What the model said since.
        finish_reason: Why it ended, in its last piece.
        logprobs: Probabilities of the tokens of this piece, if asked for.
    """

    index: Index = 0
    delta: Annotated[Delta, BeforeValidator(lambda delta: delta or {})] = Delta()
    finish_reason: str | None = None
    logprobs: LogProbs = None


_CHOICES = TypeAdapter(list[ChunkChoice])
_USAGE = TypeAdapter[Usage | None](ReportedUsage)


class ChatCompletionChunk:
    """A piece of a streamed answer: a view of the event as its host sent it.

    Reading `choices` and `usage` validates them, each for the first time only: most readers want no
    more than the text. A field not named here is an attribute too, if the host sent it.

    Args:
        data: The JSON of the event; it is kept, and passed through untouched.
    """

    __slots__ = ("_choices", "data")

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self._choices: list[ChunkChoice] | None = None

    @property
    def id(self) -> str | None:
        """The host's name of the answer."""
        return self.data.get("id")

    @property
    def created(self) -> int | None:
        """When, in seconds since 1970."""
        return self.data.get("created")

    @property
    def model(self) -> str | None:
        """Model that answers, as its host names it."""
        return self.data.get("model")

    @property
    def choices(self) -> list[ChunkChoice]:
        """What the answers have more than before; none in the piece that has the usage."""
        if self._choices is None:
            self._choices = _CHOICES.validate_python(self.data.get("choices") or [])
        return self._choices

    @property
    def usage(self) -> Usage | None:
        """Tokens the answer cost, in its last piece; None if the host did not count them."""
        usage = self.data.get("usage")
        return _USAGE.validate_python(usage) if usage else None

    @property
    def text(self) -> str:
        """What the model said since, in the first choice; may be empty."""
        content = self.delta.get("content")
        return content if isinstance(content, str) else text_of(content)

    @property
    def delta(self) -> dict[str, Any]:
        """What the first choice has more than before, as its host sent it."""
        delta = self._first_choice.get("delta")
        return cast("dict[str, Any]", delta) if isinstance(delta, dict) else {}

    @property
    def finish_reason(self) -> str | None:
        """Why the first choice ended, in its last piece."""
        reason: str | None = self._first_choice.get("finish_reason")
        return reason

    @property
    def _first_choice(self) -> dict[str, Any]:
        choices = self.data.get("choices")
        for item in cast("list[object]", choices) if isinstance(choices, list) else ():
            choice = cast("dict[str, Any]", item) if isinstance(item, dict) else None
            if choice is not None and not choice.get("index"):
                return choice
        return {}

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(f"the host sent no {name!r}") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChatCompletionChunk) and self.data == other.data

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ChatCompletionChunk({self.data!r})"


@dataclass(frozen=True, slots=True)
class StreamRestarted:
    """An answer broke off, and another one begins from its beginning: forget the text so far.

    It has the `text`, `choices` and `usage` of an empty chunk.

    Attributes:
        discarded_characters: Length of the text to forget.
        host: Host that answers from here on.
    """

    discarded_characters: int
    host: str | None = None

    text: ClassVar[str] = ""
    finish_reason: ClassVar[None] = None
    usage: ClassVar[None] = None
    choices: ClassVar[tuple[ChunkChoice, ...]] = ()

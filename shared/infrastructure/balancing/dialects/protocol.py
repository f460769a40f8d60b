"""What a dialect of the LLM APIs has to tell the pool."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

JSONObject = dict[str, Any]


class Event(NamedTuple):
    """What one event of a stream means.

    Attributes:
        data: The event as JSON; None for the end mark, and for what is no JSON.
        characters: Characters of content in it: text, reasoning, arguments of tools.
        said: Numbers of the answers it holds content of: anything but roles, pings and empty
            pieces. White space is content.
        finished: Numbers of the answers that it says the reason of the end of.
        is_end: Whether nothing comes after it.
        error: The error it reports, if it does.
        usage: Tokens the answer cost so far, if it says.
    """

    data: JSONObject | None = None
    characters: int = 0
    said: tuple[int, ...] = ()
    finished: tuple[int, ...] = ()
    is_end: bool = False
    error: JSONObject | None = None
    usage: JSONObject | None = None

    @property
    def is_content(self) -> bool:
        """Whether it holds content of any answer."""
        return bool(self.said)


FIRST = (0,)
"""The number of the only answer."""


class Dialect(Protocol):
    """One API: how a request says what it wants, and how an answer says that it is one.

    Attributes:
        name: For messages and telemetry: "openai.chat", "anthropic.messages", ….
        ending: Of what says that a stream is complete, what is the first to come and what ends it.
    """

    name: str
    ending: tuple[str, str]

    def is_streamed(self, payload: JSONObject) -> bool:
        """Say whether a stream is asked for."""
        ...

    def needs(self, payload: JSONObject) -> frozenset[str]:
        """Return the capabilities a host must have for it: "tools", "vision", …."""
        ...

    def answers(self, payload: JSONObject) -> int:
        """Return how many answers are asked for; a stream says of each why it ended."""
        ...

    def prompt(self, payload: JSONObject) -> str:
        """Return what the model will read, in order, for prefixes and for an estimate of tokens."""
        ...

    def max_output(self, payload: JSONObject) -> int | None:
        """Return the most tokens the answer may have, if the request bounds them."""
        ...

    def read_event(self, name: str | None, data: bytes) -> Event:
        """Read one event of a stream.

        Raises:
            InvalidStreamError: It should be a chunk, and is none.
        """
        ...

    def error_of(self, body: JSONObject) -> JSONObject | None:
        """Return the error that a body reports, whatever its status; None if it reports none."""
        ...

    def check(self, body: JSONObject, payload: JSONObject) -> None:
        """Look at a whole answer to a request.

        Raises:
            InvalidResponseError: It is none: nothing was chosen, or not all was embedded.
        """
        ...

    def usage_of(self, body: JSONObject) -> JSONObject | None:
        """Return the tokens a whole answer cost, if it says."""
        ...

    def content_length(self, body: JSONObject) -> int:
        """Return the characters of content in a whole answer."""
        ...

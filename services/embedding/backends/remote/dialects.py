"""What servers speak: how a request is written, how a reply is read, and how much fits in one."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple, Self, cast

from pydantic import ConfigDict, Field, Strict, TypeAdapter, with_config
from pydantic_core import to_json

from services.embedding.backends.remote.reply import Reply, in_order, rows_of
from services.embedding.errors import NotOfferedError
from services.embedding.options import Item, Reading
from shared.infrastructure.local_embeddings import Truncation

_FINGERPRINT = "x-embedding-fingerprint"


# Decoded as it is parsed: half of the work with a reply, were it done by itself.
_BASE64 = ConfigDict(val_json_bytes="base64", hide_input_in_errors=True)
_Vector = Annotated[bytes | list[float], Field(union_mode="left_to_right")]
_MOST_TOKENS = 2**31


@with_config(_BASE64)
@dataclass(slots=True)
class _OpenAIEntry:
    index: Annotated[int, Strict()]
    embedding: _Vector
    # Our own server says these two of each item.
    token_count: Annotated[int, Field(ge=0, lt=_MOST_TOKENS)] | None = None
    truncated: bool = False


@with_config(_BASE64)
@dataclass(slots=True)
class _OpenAIReply:
    data: list[_OpenAIEntry]
    model: str | None = None
    usage: object = None


@with_config(_BASE64)
@dataclass(slots=True)
class _CohereVectors:
    base64: list[_Vector] | None = None
    floats: Annotated[list[_Vector] | None, Field(alias="float")] = None


@with_config(_BASE64)
@dataclass(slots=True)
class _CohereReply:
    embeddings: _CohereVectors
    meta: object = None


_OPENAI = TypeAdapter(_OpenAIReply)
_COHERE = TypeAdapter(_CohereReply)
_TEI = TypeAdapter(list[_Vector], config=_BASE64)


class Form(NamedTuple):
    """What all items of a request have in common.

    Attributes:
        input_type: The server's own word for what the items are; "" if it has none.
        truncation: Which end of an item is dropped; None is the server's own way.
        has_ids: The items are token ids.
    """

    input_type: str = ""
    truncation: Truncation | None = None
    has_ids: bool = False


class Dialect(ABC):
    """One way to ask for embeddings over HTTP.

    Args:
        model: Name of the model there.

    Attributes:
        as_base64: Whether vectors are asked for in base64.
        is_ours: Whether the server is one of ours, which take more than the API has.
        path: Where requests go, below the base URL.
        max_items: Items in a request at most.
        max_tokens: Tokens in a request at most.
        has_base64: The server may know base64.
        takes_ids: An item may be token ids.
        input_types: Its own words for what items are, by ours; they take the place of prompts.
        default_input_type: The one of a call that names none.
    """

    path: ClassVar[str]
    max_items: ClassVar[int]
    max_tokens: ClassVar[int] = 300_000
    has_base64: ClassVar[bool] = True
    takes_ids: ClassVar[bool] = False
    input_types: ClassVar[Mapping[str, str]] = {}
    default_input_type: ClassVar[str] = ""

    def __init__(self, model: str) -> None:
        self.model = model
        self.as_base64 = self.has_base64
        self.is_ours = False

    @property
    def takes_input_type(self) -> bool:
        """Whether the server is told what an item is for, and applies prompts of its own."""
        return False

    def without_base64(self) -> Self:
        """Return the same for a server that objects to base64."""
        other = copy.copy(self)
        other.as_base64 = False
        return other

    def form(self, reading: Reading, *, has_ids: bool = False) -> Form:
        """Return what a reading asks of the server.

        Raises:
            NotOfferedError: It asks for what the server has not.
        """
        if has_ids and not self.takes_ids:
            raise NotOfferedError(f"{type(self).__name__}: the server takes texts, no token ids")
        if reading.input_type is not None and not self.takes_input_type:
            raise NotOfferedError("the server has no prompts of its own for an input type")
        if not self.input_types:
            return Form(reading.input_type or "", reading.truncation, has_ids)
        input_type = reading.prompt or self.default_input_type
        if input_type not in self.input_types.values():
            known = ", ".join(self.input_types)
            raise NotOfferedError(f"the server has no prompts but these input types: {known}")
        return Form(input_type, reading.truncation, has_ids)

    def prompt(self, reading: Reading) -> str:
        """Return what is put before each text, where the server has no types for that."""
        return "" if self.input_types else reading.prompt

    @abstractmethod
    def write(self, items: Sequence[Item], form: Form) -> bytes:
        """Return the body of a request."""

    @abstractmethod
    def read(self, content: bytes, headers: Mapping[str, str], count: int) -> Reply:
        """Return what the body of an answer says of `count` items.

        Raises:
            ValueError: It is no answer to that; of its form, `pydantic.ValidationError`.
        """


class OpenAIDialect(Dialect):
    """`/embeddings` of OpenAI, vLLM, our own server and many more.

    The API has no truncation; our server has `truncate`. It is sent only where a call asks for it,
    so that no server drops an end of a text that was not to be cut, or the other way round. Ours is
    told the input type, too, and asked for vectors as the model gave them, not normalised.
    """

    path = "/embeddings"
    max_items = 2048
    takes_ids = True

    @property
    def takes_input_type(self) -> bool:
        return self.is_ours

    def write(self, items: Sequence[Item], form: Form) -> bytes:
        body: dict[str, object] = {"model": self.model, "input": items}
        if self.as_base64:
            body["encoding_format"] = "base64"
        if form.truncation is not None:
            body["truncate"] = form.truncation.value.upper()
        if form.input_type:
            body["input_type"] = form.input_type
        if self.is_ours:
            body["normalize"] = False
        return to_json(body)

    def read(self, content: bytes, headers: Mapping[str, str], count: int) -> Reply:
        document = _OPENAI.validate_json(content)
        data = in_order(document.data, [entry.index for entry in document.data])
        vectors = rows_of([entry.embedding for entry in data], count)
        counts_each = data[0].token_count is not None
        return Reply(
            vectors,
            _tokens(document.usage, "total_tokens"),
            [entry.token_count or 0 for entry in data] if counts_each else None,
            [entry.truncated for entry in data] if counts_each else None,
            model=document.model,
            fingerprint=headers.get(_FINGERPRINT),
        )


class TEIDialect(Dialect):
    """`/embed` of text-embeddings-inference; vectors come as the model gave them, not normalised.

    It would take token ids, but decodes them and tokenizes the text that comes of it. It does not
    say of which item it left out one end.
    """

    path = "/embed"
    max_items = 32
    has_base64 = False

    def write(self, items: Sequence[Item], form: Form) -> bytes:
        body: dict[str, object] = {"inputs": items, "normalize": False}
        if form.truncation is not None:
            body["truncate"] = form.truncation is not Truncation.NONE
        if form.truncation in {Truncation.START, Truncation.END}:
            body["truncation_direction"] = (
                "Left" if form.truncation is Truncation.START else "Right"
            )
        return to_json(body)

    def read(self, content: bytes, headers: Mapping[str, str], count: int) -> Reply:
        tokens = headers.get("x-compute-tokens", "")
        return Reply(
            rows_of(_TEI.validate_json(content), count),
            _tokens(int(tokens) if tokens.isdecimal() else 0),
            fingerprint=headers.get(_FINGERPRINT),
        )


class CohereDialect(Dialect):
    """`/v2/embed` of Cohere; queries and documents are told apart by `input_type`."""

    path = "/v2/embed"
    max_items = 96
    input_types: ClassVar[Mapping[str, str]] = {
        "query": "search_query",
        "document": "search_document",
        "classification": "classification",
        "clustering": "clustering",
    }
    default_input_type = "search_document"

    def write(self, items: Sequence[Item], form: Form) -> bytes:
        body: dict[str, object] = {
            "model": self.model,
            "texts": items,
            "input_type": form.input_type,
            "embedding_types": ["base64" if self.as_base64 else "float"],
        }
        if form.truncation is not None:
            body["truncate"] = form.truncation.value.upper()
        return to_json(body)

    def read(self, content: bytes, headers: Mapping[str, str], count: int) -> Reply:
        document = _COHERE.validate_json(content)
        vectors = document.embeddings
        return Reply(
            rows_of(vectors.base64 or vectors.floats or [], count),
            _tokens(document.meta, "billed_units", "input_tokens"),
            fingerprint=headers.get(_FINGERPRINT),
        )


def _tokens(told: object, *path: str) -> int:
    """Return the tokens that a reply tells somewhere; 0 if what it tells is none.

    What it costs is no reason to throw vectors away.
    """
    for name in path:
        told = cast("dict[str, object]", told).get(name) if isinstance(told, dict) else None
    return int(told) if isinstance(told, int | float) and 0 <= told < _MOST_TOKENS else 0


DIALECTS: Mapping[str, type[Dialect]] = {
    "openai": OpenAIDialect,
    "tei": TEIDialect,
    "cohere": CohereDialect,
}
"""By the values of `remote_api`."""

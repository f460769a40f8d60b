"""Embeddings and lists of models in the terms of the OpenAI API; other fields pass through."""

from __future__ import annotations

import base64
import binascii
import math
import sys
from array import array
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, BeforeValidator, Field, PrivateAttr, model_validator

from shared.models.route import Route, RouteInfo
from shared.models.usage import ReportedUsage

_UNKNOWN = RouteInfo()


class EmbeddingsRequest(BaseModel, extra="allow"):
    """Texts to embed.

    Attributes:
        model: Model to ask, or an alias of it.
        input: A text, texts, or what a tokenizer made of one or of several.
        encoding_format: How the vectors travel: as numbers, or as float32 in base64, which is
            shorter.
        dimensions: Numbers wanted in a vector, where the model leaves the choice; at least 1.
        user: Who asks.
    """

    model: str | None = None
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None

    def to_payload(self) -> dict[str, Any]:
        """Return the body of the call: what was set, and nothing else."""
        return self.model_dump(exclude_unset=True)


def decoded(vector: object) -> object:
    """Return the numbers in a vector that travelled as float32, little end first, in base64.

    Raises:
        ValueError: It is a text, and no such vector.
    """
    if not isinstance(vector, str):
        return vector
    try:
        numbers = array("f", base64.b64decode(vector, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError("a vector is neither numbers nor float32 in base64") from None
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def all_finite(vector: object) -> bool:
    """Say whether a vector, or several within each other, holds finite numbers and nothing else."""
    if not isinstance(vector, list):
        return isinstance(vector, int | float) and math.isfinite(vector)
    numbers = cast("Sequence[Any]", vector)
    try:
        # A sum is finite only if all its terms are.
        return math.isfinite(sum(numbers)) or all(map(math.isfinite, numbers))
    except TypeError:
        return all(map(all_finite, numbers))
    except OverflowError:
        return False


class Embedding(BaseModel, extra="allow"):
    """One vector, and which of the inputs it belongs to."""

    object: str = "embedding"
    index: int
    embedding: Annotated[list[float], BeforeValidator(decoded)]


class EmbeddingsAnswer(BaseModel, extra="allow"):
    """One vector for each input; all finite, and of one length.

    Attributes:
        object: "list".
        data: The vectors, in the order of the inputs.
        model: Model that embedded, as its host names it.
        usage: Tokens it cost; None if the host did not say.
    """

    object: str = "list"
    data: list[Embedding]
    model: str | None = None
    usage: ReportedUsage = None

    _route: Route | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        self.data.sort(key=lambda item: item.index)
        if [item.index for item in self.data] != list(range(len(self.data))):
            raise ValueError("a vector is missing, or comes twice")
        if len({len(item.embedding) for item in self.data}) > 1:
            raise ValueError("the vectors differ in length")
        for item in self.data:
            if not item.embedding or not all_finite(item.embedding):
                raise ValueError(f"vector {item.index} is empty, or holds NaN or infinity")
        return self

    @property
    def vectors(self) -> list[list[float]]:
        """The vectors, in the order of the inputs."""
        return [item.embedding for item in self.data]

    @property
    def route(self) -> RouteInfo:
        """How the answer came about; no part of its JSON. Empty if that is not known."""
        if callable(self._route):
            self._route = self._route()
        return self._route or _UNKNOWN

    def with_route(self, route: Route) -> EmbeddingsAnswer:
        """Put beside the answer how it came about; return it."""
        self._route = route
        return self


class ModelInfo(BaseModel, extra="allow"):
    """A model that a host serves."""

    id: str
    object: str = "model"
    created: int | None = None
    owned_by: str | None = None


class ModelList(BaseModel, extra="allow"):
    """The models that a host serves."""

    object: str = "list"
    data: list[ModelInfo] = Field(default_factory=list[ModelInfo])

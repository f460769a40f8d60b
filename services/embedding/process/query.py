"""What every dialect's request comes down to, and the limits it is held to."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from services.embedding.options import CacheUse, EmbedOptions, Item, Lane
from services.embedding.process.fields import Fields, wrong
from services.embedding.process.quantize import HAS_SCALE, Dtype
from shared.infrastructure.local_embeddings import Truncation
from shared.infrastructure.server import HTTPError

TRUNCATIONS = {"NONE": Truncation.NONE, "START": Truncation.START, "END": Truncation.END}
LANES = {lane.value: lane for lane in Lane}
CACHE_USES = {use.value: use for use in CacheUse}
DTYPES = {dtype.value: dtype for dtype in Dtype}
INPUT_TYPES = {
    "query": "query",
    "document": "document",
    "search_query": "query",
    "search_document": "document",
    "passage": "document",
}


@dataclass(slots=True)
class Query:
    """A request for embeddings.

    Attributes:
        items: At least one.
        options: How they are embedded.
        model: Name the client gave; None if it gave none.
        dtypes: Number formats to answer in; one, but for Cohere's.
        as_base64: Whether vectors are sent as base64 of their bytes.
        names: The formats by the names that the client gave them, if it may ask for several.
    """

    items: Sequence[Item]
    options: EmbedOptions
    model: str | None = None
    dtypes: tuple[Dtype, ...] = (Dtype.FLOAT32,)
    as_base64: bool = False
    names: tuple[str, ...] = ()


def read_options(fields: Fields, *, dimensions: str, tenant: str) -> EmbedOptions:
    """Read the fields by which a client says how items are embedded.

    Args:
        fields: The body.
        dimensions: What the dialect calls the number of dimensions.
        tenant: On whose behalf.

    Raises:
        HTTPError: One of them is wrong (400).
    """
    input_type, prompt_name = read_prompt(fields)
    return EmbedOptions(
        input_type=input_type,
        prompt_name=prompt_name,
        truncation=fields.choice("truncate", TRUNCATIONS, None),
        dimensions=fields.integer(dimensions),
        normalize=fields.flag("normalize", True),
        lane=fields.choice("priority", LANES, None),
        timeout=fields.timeout("deadline_ms"),
        cache=fields.choice("cache", CACHE_USES, CacheUse.USE),
        tenant=tenant,
    )


def read_prompt(fields: Fields) -> tuple[str | None, str | None]:
    """Return the input type and the prompt's name, of which at most one is given.

    Raises:
        HTTPError: Both are (400).
    """
    input_type = fields.choice("input_type", INPUT_TYPES, None)
    prompt_name = fields.string("prompt_name")
    if input_type is not None and prompt_name is not None:
        raise wrong("prompt_name", "and input_type both choose the prompt: give one")
    return input_type, prompt_name


@functools.lru_cache(maxsize=1024)
def plain_options(timeout: float, tenant: str) -> EmbedOptions:
    """Return the options of a client who says nothing of them."""
    return EmbedOptions(timeout=timeout, tenant=tenant)


def cut_items(query: Query, limit: int, truncation: Truncation) -> None:
    """Let go of what will not be read, but for a character by which it is known to be cut.

    Args:
        query: Whose texts they are.
        limit: Characters that are read of each.
        truncation: Which end the model drops if the client does not say.
    """
    if max(map(len, query.items)) <= limit + 1:
        return
    truncation = query.options.truncation or truncation
    kept = slice(-limit - 1, None) if truncation is Truncation.START else slice(limit + 1)
    query.items = [item[kept] if isinstance(item, str) else item for item in query.items]


def check_dtypes(query: Query) -> None:
    """Refuse formats that vectors of any length cannot have.

    Raises:
        HTTPError: They are not normalized, and the format has a fixed scale (422).
    """
    if not query.options.normalize and not HAS_SCALE.isdisjoint(query.dtypes):
        raise HTTPError(
            422, "int8 and uint8 have a scale for vectors of length 1: normalize", param="normalize"
        )

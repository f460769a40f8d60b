"""What a caller may ask for beside the texts."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from shared.infrastructure.local_embeddings import Truncation

Item = str | tuple[int, ...]
"""What is embedded: a text, or token ids that are taken as they are, special tokens included."""


class Lane(enum.StrEnum):
    """How urgent a call is; a busy lane slows the ones below it down, but stops none."""

    INTERACTIVE = "interactive"
    """Somebody waits."""
    DEFAULT = "default"
    BULK = "bulk"
    """Only the sum matters."""


class CacheUse(enum.StrEnum):
    """What a call does with the cache."""

    USE = "use"
    REFRESH = "refresh"
    """Compute, and keep what comes of it."""
    BYPASS = "bypass"
    """Neither look nor keep."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How items are read: all that decides a vector beside the model and the item.

    Attributes:
        prompt: What is put before each text, as it is; token ids get none.
        truncation: Which end of an item is dropped if it is too long; None is the model's own.
        input_type: `query` or `document`, for a server that has prompts of its own; else None.
    """

    prompt: str = ""
    truncation: Truncation | None = None
    input_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """How the items of a call are embedded.

    Attributes:
        input_type: `query` or `document`, by which the model's own prompt is chosen; None is the
            model's default prompt, mostly none.
        prompt_name: One of the model's prompts, by its name.
        prompt: A prompt of the caller's own; "" is none. At most one of the three is given.
        truncation: Which end of an item is dropped if it is too long; None is the model's own.
        dimensions: First numbers of each vector to keep, then scaled to length 1 again, as
            Matryoshka models allow; None keeps all.
        normalize: Whether vectors have length 1.
        lane: How urgent it is; None is `DEFAULT`, or `BULK` for a call of very many tokens.
        timeout: Seconds from now after which nobody wants the answer; None is the deadline in
            force, if there is one.
        cache: What to do with the cache.
        tenant: On whose behalf, for fairness; such as a hash of an API key.
    """

    input_type: str | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    truncation: Truncation | None = None
    dimensions: int | None = None
    normalize: bool = True
    lane: Lane | None = None
    timeout: float | None = None
    cache: CacheUse = CacheUse.USE
    tenant: str = ""


DEFAULT_OPTIONS = EmbedOptions()

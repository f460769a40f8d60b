"""What a caller gives becomes items that can be looked up: checked, cut to length, and keyed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from services.embedding.options import Item
from shared.infrastructure.local_embeddings import InvalidTextError, Truncation

# Items hashed before other tasks get a turn.
_ITEMS_PER_TURN = 1024


def as_items(given: Sequence[Item] | str) -> tuple[Item, ...]:
    """Return what a caller gave, as it is now; a plain string is one text.

    Raises:
        InvalidTextError: It is no sequence of texts and tuples of token ids.
    """
    if isinstance(given, str):
        return (given,)
    items = cast("object", given)  # callers without a type checker pass anything
    if not isinstance(items, Sequence) or isinstance(items, (bytes, bytearray)):
        kind = type(items).__name__
        raise InvalidTextError(f"texts must be a string or a sequence of strings, not {kind}")
    for index, item in enumerate(cast("Sequence[object]", items)):
        if not isinstance(item, (str, tuple)):
            raise InvalidTextError(
                f"text {index} must be a string, or a tuple of token ids, not "
                f"{type(item).__name__}",
                index,
            )
    return tuple(given)


def as_read(item: Item, limit: int, truncation: Truncation) -> Item:
    """Return an item with no more than `limit` characters.

    Raises:
        InvalidTextError: It is longer, and may not be cut; its position is told as 0.
    """
    if len(item) <= limit or not isinstance(item, str):
        return item
    match truncation:
        case Truncation.NONE:
            raise InvalidTextError(
                f"text 0 has {len(item)} characters, more than {limit}, and may not be cut", 0
            )
        case Truncation.START:
            return item[-limit:]
        case Truncation.END:
            return item[:limit]


async def read_items(
    items: Sequence[Item], limit: int, truncation: Truncation, key: Callable[[Item], bytes]
) -> tuple[list[Item], list[bytes | InvalidTextError]]:
    """Return the items as they are read, and the key of each, or why it cannot be read.

    Items that read the same have the same key.
    """
    read: list[Item] = []
    keys: list[bytes | InvalidTextError] = []
    for item in items:
        try:
            kept = as_read(item, limit, truncation)
            digest: bytes | InvalidTextError = key(kept)
        except InvalidTextError as exc:
            kept, digest = item, exc
        read.append(kept)
        keys.append(digest)
        if len(keys) % _ITEMS_PER_TURN == 0:
            await asyncio.sleep(0)
    return read, keys

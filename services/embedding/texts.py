"""What a caller gives becomes texts that can be looked up: checked, cut to length, and keyed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.infrastructure.local_embeddings import InvalidTextError
from shared.infrastructure.local_embeddings.inference import as_texts

# Texts hashed before other tasks get a turn.
_TEXTS_PER_TURN = 1024


@dataclass(frozen=True, slots=True)
class KeyedTexts:
    """The texts of one call.

    Attributes:
        keys: Key of each text, in order; texts that read the same have the same key.
        cut: Whether the end of each text was cut off.
        different: Each different text, as it is read, by its key.
    """

    keys: list[bytes]
    cut: list[bool]
    different: dict[bytes, str]


async def keyed(texts: Sequence[str], key: Callable[[bytes], bytes], limit: int) -> KeyedTexts:
    """Check texts, cut each to `limit` characters, and key it by its exact UTF-8 bytes.

    Raises:
        InvalidTextError: An item is no text; `index` says which.
    """
    result = KeyedTexts([], [], {})
    for index, text in enumerate(as_texts(texts)):
        read = text[:limit]
        try:
            digest = key(read.encode())
        except UnicodeEncodeError as exc:
            raise InvalidTextError(f"text {index} is no valid Unicode: {exc}", index) from exc
        result.keys.append(digest)
        result.cut.append(len(text) > limit)
        result.different[digest] = read
        if (index + 1) % _TEXTS_PER_TURN == 0:
            await asyncio.sleep(0)
    return result

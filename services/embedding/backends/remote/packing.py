"""How many tokens a text has, as far as one can tell from here, and what goes in one request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from services.embedding.options import Item

# Five tokens have sixteen bytes of UTF-8. English has some 20, code and most languages have fewer.
_TOKENS, _BYTES = 5, 16


def estimated_tokens(item: Item) -> int:
    """Return how many tokens an item is likely to have: of a text, one for 3.2 bytes.

    Raises:
        UnicodeEncodeError: A text that no request can hold.
    """
    if not isinstance(item, str):
        return max(1, len(item))
    size = len(item) if item.isascii() else len(item.encode())
    return -(-_TOKENS * size // _BYTES) or 1


def estimated_each(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the same for each of very many texts."""
    is_ascii = all(map(str.isascii, texts))
    sizes = map(len, texts) if is_ascii else (len(text.encode()) for text in texts)
    bytes_each = np.fromiter(sizes, np.int64, len(texts))
    return np.maximum(-(-_TOKENS * bytes_each // _BYTES), 1)


def packed(tokens: NDArray[np.int64], max_items: int, max_tokens: int) -> Iterator[range]:
    """Yield runs of items that fit in a request; one that is too long is one by itself."""
    totals = np.cumsum(tokens)
    start = total = 0
    while start < len(tokens):
        fitting = int(np.searchsorted(totals, total + max_tokens, side="right"))
        end = min(max(fitting, start + 1), start + max_items, len(tokens))
        yield range(start, end)
        start, total = end, int(totals[end - 1])

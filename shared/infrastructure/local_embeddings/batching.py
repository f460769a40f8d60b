"""Cut texts into forward passes: what costs time is padding, so texts of one length go together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def plan_batches(
    lengths: NDArray[np.int64], *, max_rows: int, max_tokens: int
) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each forward pass, longest texts first, every row exactly once.

    A pass has at most `max_rows` rows and `max_tokens` tokens, padding included; a text longer
    than `max_tokens` runs alone.
    """
    # Longest first: the allocator meets its largest request at once, and an overload shows early.
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        rows = max(1, min(max_rows, max_tokens // longest))
        yield order[start : start + rows]
        start += rows

"""Cut texts into forward passes: what costs time is padding, so texts of one length go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
"""Positions of some texts among those of a call, int64 of shape (n,)."""


def plan_passes(
    lengths: NDArray[np.int64],
    *,
    max_rows: int,
    max_tokens: Callable[[], int],
    packed: bool = False,
) -> Iterator[Rows]:
    """Yield the rows of each forward pass, longest texts first, every row exactly once.

    A text longer than `max_tokens` runs alone.

    Args:
        lengths: Tokens of each text.
        max_rows: Texts in a pass at most.
        max_tokens: Tokens in a pass at most; asked anew for each, since memory may run short.
        packed: Whether padding costs nothing, so that only real tokens count.
    """
    # Longest first: the allocator meets its largest request at once, and an overload shows early.
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        if packed:
            before = int(ends[start - 1]) if start else 0
            rows = int(np.searchsorted(ends, before + max_tokens(), side="right")) - start
        else:
            rows = max_tokens() // max(1, int(lengths[order[start]]))
        rows = max(1, min(max_rows, rows))
        yield order[start : start + rows]
        start += rows

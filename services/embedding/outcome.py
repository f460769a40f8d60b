"""What comes of one item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """What a model made of one item; all that callers may ask for derives from it.

    Attributes:
        vector: Pooled, not normalised; float32 of shape (dimension,).
        token_count: Tokens the model read.
        truncated: Whether the model left out one end of the item.
    """

    vector: Vector
    token_count: int
    truncated: bool


Outcome = Embedded | Exception
"""A vector, or why there is none."""

"""Entries for the tests of the cache."""

import hashlib

import numpy as np

from services.embedding.outcome import Embedded

DIMENSION = 8


def key_of(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def entry_of(number: int, dimension: int = DIMENSION) -> Embedded:
    """Return an entry that tells by its vector, and by all else, whose it is."""
    vector = np.random.default_rng(number).standard_normal(dimension).astype(np.float32)
    return Embedded(vector, token_count=number + 1, truncated=number % 2 == 1)


def entries_of(numbers: range, dimension: int = DIMENSION) -> dict[bytes, Embedded]:
    return {key_of(number): entry_of(number, dimension) for number in numbers}


def same(one: Embedded | None, other: Embedded | None) -> bool:
    """Whether two entries are equal to the bit."""
    if one is None or other is None:
        return one is other
    return (
        one.vector.dtype == other.vector.dtype == np.float32
        and one.vector.tobytes() == other.vector.tobytes()
        and (one.token_count, one.truncated) == (other.token_count, other.truncated)
    )

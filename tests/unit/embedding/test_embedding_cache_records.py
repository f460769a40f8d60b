import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.embedding.caching.records import Kept, decode, encode, encoded
from services.embedding.outcome import Embedded
from tests.cache_entries import DIMENSION, entry_of, key_of, same

KEY = key_of(1)
RECORD = encode(KEY, Kept(entry_of(1), ends=1e9))


@given(
    numbers=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9),
    tokens=st.integers(0, 2**32 - 1),
    truncated=st.booleans(),
    ends=st.one_of(st.none(), st.floats(1.0, 1e12)),
)
def test_a_record_holds_an_entry_to_the_bit(
    numbers: list[float], tokens: int, truncated: bool, ends: float | None
) -> None:
    entry = Embedded(np.array(numbers, np.float32), tokens, truncated)
    kept = decode(KEY, encode(KEY, Kept(entry, ends)), len(numbers))
    assert kept is not None
    assert same(kept.entry, entry)
    assert kept.ends == ends
    assert not kept.entry.vector.flags.writeable


@given(place=st.integers(0, len(RECORD) - 1), flip=st.integers(1, 255))
def test_a_record_with_any_byte_changed_is_none(place: int, flip: int) -> None:
    broken = bytearray(RECORD)
    broken[place] ^= flip
    assert decode(KEY, bytes(broken), DIMENSION) is None


@pytest.mark.parametrize(
    ("ends", "now", "has_ended"),
    [(10.0, 9.999, False), (10.0, 10.0, True), (10.0, 10.001, True), (None, 1e12, False)],
)
def test_an_entry_ends_at_its_instant(ends: float | None, now: float, has_ended: bool) -> None:
    assert Kept(entry_of(1), ends).has_ended(now) is has_ended


@pytest.mark.parametrize("tokens", [-1, 2**32])
def test_what_no_record_can_hold_is_left_out(tokens: int) -> None:
    entries = {key_of(number): Kept(entry_of(number)) for number in (1, 2)}
    poison = Kept(Embedded(entry_of(3).vector, tokens, False))
    records = encoded({key_of(3): poison, **entries})
    assert records == {key: encode(key, kept) for key, kept in entries.items()}


@pytest.mark.parametrize(
    ("key", "record", "dimension"),
    [
        (key_of(2), RECORD, DIMENSION),
        (KEY, RECORD, DIMENSION + 1),
        (KEY, RECORD[:-1], DIMENSION),
        (KEY, RECORD + b"\0" * 4, DIMENSION),
        (KEY, b"", DIMENSION),
        (KEY, None, DIMENSION),
        (KEY, RECORD.decode("latin-1"), DIMENSION),
        (KEY, 7, DIMENSION),
    ],
    ids=["other key", "other model", "cut", "longer", "empty", "nothing", "a string", "a number"],
)
def test_a_record_found_in_the_wrong_place_is_none(
    key: bytes, record: object, dimension: int
) -> None:
    assert decode(key, record, dimension) is None

import numpy as np
from embedding_fakes import embedded, vector_of
from hypothesis import given
from hypothesis import strategies as st

from services.embedding import Embedded, EmbeddingCache
from services.embedding.cache import key_function


@given(st.tuples(st.text(), st.text(), st.binary()), st.tuples(st.text(), st.text(), st.binary()))
def test_a_key_tells_every_field_and_where_it_ends(
    one: tuple[str, str, bytes], other: tuple[str, str, bytes]
) -> None:
    keys = [key_function(fingerprint, kind)(data) for fingerprint, kind, data in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


def test_fields_that_only_differ_in_their_borders_have_different_keys() -> None:
    assert key_function("a", "bc")(b"d") != key_function("ab", "c")(b"d")
    assert key_function("m", "text")(b"x") != key_function("m", "tex")(b"tx")


def test_the_least_recently_used_entry_makes_room() -> None:
    cache = EmbeddingCache(2)
    for name in ("a", "b"):
        cache.put(name.encode(), embedded(name))
    assert cache.get(b"a") is not None
    assert cache.peek(b"b") is not None
    cache.put(b"c", embedded("c"))
    assert [cache.peek(key) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    assert cache.get(b"b") is None
    assert cache.snapshot() == {
        "entries": 2,
        "max_entries": 2,
        "bytes": 2 * vector_of("a").nbytes,
        "hits": 1,
        "misses": 1,
        "evictions": 1,
        "hit_rate": 0.5,
    }


def test_what_is_kept_is_its_own_read_only_copy() -> None:
    cache = EmbeddingCache()
    batch = np.stack([vector_of("a"), vector_of("b")])
    cache.put(b"a", Embedded(batch[0], 3, truncated=True))
    batch[:] = 0
    kept = cache.get(b"a")
    assert kept is not None
    assert np.array_equal(kept.vector, vector_of("a"))
    assert (kept.token_count, kept.truncated) == (3, True)
    assert not kept.vector.flags.writeable
    assert kept.vector.base is None


def test_a_vector_that_is_not_finite_is_never_kept() -> None:
    cache = EmbeddingCache()
    for bad in (np.nan, np.inf, -np.inf):
        vector = vector_of("a")
        vector[3] = bad
        cache.put(b"a", Embedded(vector, 3, truncated=False))
    assert len(cache) == 0


def test_bytes_follow_replacing_and_clearing() -> None:
    cache = EmbeddingCache()
    for _ in range(3):
        cache.put(b"a", embedded("a"))
    assert cache.snapshot()["bytes"] == vector_of("a").nbytes
    cache.clear()
    assert cache.snapshot()["bytes"] == len(cache) == 0


def test_a_cache_of_no_entries_keeps_nothing() -> None:
    cache = EmbeddingCache(0)
    cache.put(b"a", embedded("a"))
    assert cache.get(b"a") is None
    assert cache.snapshot()["evictions"] == 0

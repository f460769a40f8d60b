import dataclasses
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.embedding.backends.protocol import BackendFacts
from services.embedding.caching import key_function, key_space
from services.embedding.options import Reading
from shared.infrastructure.local_embeddings import InvalidTextError, Truncation

PLAIN = Reading()
CHANGED = {
    "prompt": Reading(prompt="query: "),
    "truncation": Reading(truncation=Truncation.START),
    "input_type": Reading(input_type="query"),
}
IDS = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)
ITEMS = st.one_of(st.text(max_size=5), IDS)


def test_a_key_is_a_sha_256_over_fields_with_their_lengths() -> None:
    fields = [b"emb1", b"model", b"", b"p: ", b"end", b"", b"text", "é ".encode()]
    joined = b"".join(len(field).to_bytes(8, "little") + field for field in fields)
    key = key_function("model", Reading("p: ", Truncation.END))
    assert key("é ") == hashlib.sha256(joined).digest()


@given(ITEMS, ITEMS)
def test_two_items_have_one_key_only_if_they_are_the_same(one: object, other: object) -> None:
    key = key_function("model", PLAIN)
    assert (key(one) == key(other)) == (one == other)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Reading)])
def test_everything_a_reading_says_is_part_of_the_key(field: str) -> None:
    assert key_function("model", CHANGED[field])("text") != key_function("model", PLAIN)("text")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (key_function("a", PLAIN), key_function("b", PLAIN)),
        (key_function("a", PLAIN), key_function("a", PLAIN, salt=b"tenant")),
        (key_function("a", Reading("b")), key_function("ab", PLAIN)),
        (key_function("a", Reading("query")), key_function("a", Reading(input_type="query"))),
    ],
    ids=["fingerprint", "salt", "where a field ends", "which field it is"],
)
def test_what_differs_in_a_field_differs_in_its_key(one: object, other: object) -> None:
    assert one("text") != other("text")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("one", "other"),
    [("text", " text"), ("é", "e\u0301"), ("1", (1,)), ("", ()), ("A", "a"), ("a\0", "a")],
)
def test_texts_count_exactly_as_given(one: str, other: object) -> None:
    key = key_function("model", PLAIN)
    assert key(one) != key(other)  # type: ignore[arg-type]


@pytest.mark.parametrize("item", ["lone \ud800 surrogate", (2**31,), (-(2**31) - 1,), (1.5,)])
def test_what_is_no_text_and_no_ids_has_no_key(item: object) -> None:
    with pytest.raises(InvalidTextError, match="text 0") as raised:
        key_function("model", PLAIN)(item)  # type: ignore[arg-type]
    assert raised.value.index == 0


def test_a_prompt_that_is_no_text_has_no_keys() -> None:
    with pytest.raises(InvalidTextError, match="prompt"):
        key_function("model", Reading("\udc80"))


@pytest.mark.parametrize(
    ("batch_invariant", "numerics", "space"),
    [
        (True, "exact", "f"),
        (True, "approximate", "f"),
        (False, "exact", None),
        (False, "approximate", "approximate:f"),
    ],
)
def test_what_depends_on_its_neighbours_is_kept_apart_or_not_at_all(
    batch_invariant: bool, numerics: str, space: str | None
) -> None:
    facts = BackendFacts(
        model_name="m", fingerprint="f", dimension=8, batch_invariant=batch_invariant
    )
    assert key_space(facts, numerics) == space  # type: ignore[arg-type]

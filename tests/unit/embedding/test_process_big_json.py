import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.embedding.process import big_json
from services.embedding.process.big_json import TooManyValuesError, loads

TEXTS = st.text(alphabet='a",[]{}\\:/\n€𝄞', max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXTS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(big_json, "SLICE", 7)


@given(VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_it_reads_what_any_other_reader_reads(value: object, ascii_only: bool, indent: int) -> None:
    given = {"model": ["x", 1], "input": value, "b": [value, 2]}
    body = json.dumps(given, ensure_ascii=ascii_only, indent=indent).encode()
    assert loads(body, 1000) == orjson.loads(body)


@given(VALUES, st.data())
def test_what_another_reader_refuses_it_refuses_too(value: object, data: st.DataObject) -> None:
    body = bytearray(json.dumps({"input": [value, "a", "b"]}).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + 1] = data.draw(
            st.sampled_from([b"", b",", b"[", b"]", b'"', b"\\", b"}"])
        )
    try:
        expected = orjson.loads(bytes(body))
        assert isinstance(expected, dict)
    except orjson.JSONDecodeError:
        with pytest.raises(orjson.JSONDecodeError):
            loads(bytes(body), 1000)
    else:
        assert loads(bytes(body), 1000) == expected


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": [' + b"[]," * 200 + b"[]]}",
        b'{"input": [' + b'"",' * 200 + b'""]}',
        b'{"input": [' + b"1," * 200 + b"1]}",
        b'{"a": ' + b"[" * 300,
    ],
)
def test_more_values_than_allowed_are_not_even_read(body: bytes) -> None:
    with pytest.raises(TooManyValuesError):
        loads(body, 100)


def test_what_is_in_a_text_is_no_value() -> None:
    text = '[{,}]"\\' * 1000
    assert loads(json.dumps({"input": [text, text]}).encode(), 10) == {"input": [text, text]}

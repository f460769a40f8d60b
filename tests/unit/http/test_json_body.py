import json
from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.infrastructure.http.errors import UndecodableBodyError, UpstreamError
from shared.infrastructure.http.json_body import json_answer, parse_json
from shared.infrastructure.resilience import Verdict

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
# Backslashes, quotes and brackets are what a scan could stumble over.
TEXTS = st.text() | st.text(alphabet='\\"[]{}a\n\U0001f600')
VALUES = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(VALUES, st.booleans())
def test_what_was_dumped_is_parsed(value: Any, is_ascii: bool) -> None:
    data = json.dumps(value, ensure_ascii=is_ascii).encode()
    assert parse_json(data) == value


@given(VALUES)
def test_a_text_may_be_as_deep_as_the_limit_and_no_deeper(value: Any) -> None:
    data = json.dumps([[value], [[]]]).encode()  # never a scalar
    deepest = depth([[value], [[]]])
    assert parse_json(data, max_depth=deepest) == [[value], [[]]]
    with pytest.raises(UndecodableBodyError, match="inside each other"):
        parse_json(data, max_depth=deepest - 1)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a": [1, 2.5, "x", null, true]}', {"a": [1, 2.5, "x", None, True]}),
        (b" 7\n", 7),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        ('{"a": "\u00e9"}'.encode(), {"a": "\u00e9"}),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\uD83D\\uDE00\\uD83D\\uDE00"', "\U0001f600\U0001f600"),
        (b'"\\\\ud800"', "\\ud800"),
        (b'"\\u0064\\ue000"', "d\ue000"),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'"NaN"', "NaN"),
        (b"9" * 4300, int("9" * 4300)),
        (b'"' + b"[" * 1000 + b'"', "[" * 1000),
    ],
)
def test_json_is_parsed(data: bytes, value: Any) -> None:
    assert parse_json(data) == value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b"<html>", "Expecting value"),
        (b'{"a": [1, 2', "Expecting ',' delimiter"),
        (b'{"a": 1} {"b": 2}', "Extra data"),
        (b"{'a': 1}", "Expecting property name"),
        (b"[1,]", "Expecting value"),
        (b'"a\nb"', "Invalid control character"),
        (b"[1, NaN]", "NaN is no JSON"),
        (b"Infinity", "Infinity is no JSON"),
        (b'{"a": -Infinity}', "-Infinity is no JSON"),
        (b"9" * 5000, "4300"),
        (b"-" + b"9" * 5000, "4300"),
        (b'"\xff"', "utf-8"),
        (b'"\xed\xa0\x80"', "utf-8"),
        ('"text"'.encode("utf-16"), "utf-8"),
        ('"text"'.encode("utf-16-le"), "Expecting value|control character"),
        (b'"\\ud83d"', "surrogate"),
        (b'"\\uDE00"', "surrogate"),
        (b'"\\ud83d x"', "surrogate"),
        (b'"\\ud83d\\ud83d\\ude00"', "surrogate"),
        (b'"\\ud83d\\ude00\\ude00"', "surrogate"),
        (b'"\\ud83d\\\\\\ude00"', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b"[" + b"[]," * 200 + b'"', "Unterminated string"),
    ],
)
def test_what_is_not_json_is_an_error_that_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(UndecodableBodyError, match=reason) as caught:
        parse_json(data)
    assert caught.value.verdict is Verdict.FAILED
    assert len(str(caught.value)) < 700


@given(st.text(alphabet='\\ud83de0"x', max_size=30))
def test_a_string_that_is_parsed_can_be_written_as_utf_8(inner: str) -> None:
    data = f'"{inner}"'.encode()
    try:
        value = parse_json(data)
    except UndecodableBodyError:
        try:
            json.loads(data).encode()
        except ValueError:
            return
        raise
    assert value == json.loads(data)
    assert value.encode().decode() == value


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 1_000_000,
        b"[" * 1_000_000 + b"]" * 1_000_000,
        b'{"a":' * 1_000_000,
        b'[{"a":' * 500_000 + b"1" + b"}]" * 500_000,
        b'["]]]",' * 200_000,
        b'["\\"]",' * 200_000,
    ],
    ids=["open", "closed", "objects", "both", "brackets in strings", "escaped quotes"],
)
def test_a_text_nested_a_million_times_is_refused_before_it_is_parsed(bomb: bytes) -> None:
    with pytest.raises(UndecodableBodyError, match="more than 100 arrays and objects"):
        parse_json(bomb)


@pytest.mark.parametrize("size", [*range(2_040, 2_050), 4_096, 10_000])
def test_a_string_may_be_longer_than_what_is_scanned_at_a_time(size: int) -> None:
    text = "[" * size
    data = json.dumps([text, [[text]]] + [[]] * 200).encode()
    assert parse_json(data, max_depth=3)[0] == text
    with pytest.raises(UndecodableBodyError, match="inside each other"):
        parse_json(data, max_depth=2)


def test_a_limit_that_python_cannot_keep_is_an_error_all_the_same() -> None:
    with pytest.raises(UndecodableBodyError, match="recursion"):
        parse_json(b"[" * 1_000_000, max_depth=10_000_000)


def test_an_error_does_not_hold_on_to_the_decoded_text() -> None:
    with pytest.raises(UndecodableBodyError) as caught:
        parse_json(b"[1, ")
    assert caught.value.__context__ is None


JSON = {"Content-Type": "application/json; charset=utf-8"}
HTML = {"Content-Type": "text/html"}
ASKED = {"Accept": "application/json"}


def check(
    library: Any,
    status: int,
    headers: dict[str, str],
    content: bytes,
    asked: dict[str, str] | None = None,
    method: str = "GET",
) -> None:
    request = library.Request(method, "https://service/v1", headers=asked)
    response = library.Response(status, headers=headers, content=content, request=request)
    json_answer(response)


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize(
    ("status", "headers", "content", "asked"),
    [
        (200, JSON, b'{"a": 1', None),
        (200, JSON, b"", None),
        (201, JSON, b"[NaN]", None),
        (200, JSON, b"[" * 101 + b"]" * 101, None),
        (200, {"Content-Type": "Application/Problem+JSON"}, b"oops", None),
        (200, HTML, b"<html>Sign in</html>", ASKED),
        (
            200,
            {"Content-Type": "text/html; charset=utf-8"},
            b"{}",
            {"Accept": "application/JSON, */*"},
        ),
    ],
)
def test_a_success_that_is_not_what_it_should_be_fails(
    library: Any, status: int, headers: Any, content: bytes, asked: Any
) -> None:
    with pytest.raises(UpstreamError) as caught:
        check(library, status, headers, content, asked)
    assert caught.value.verdict is Verdict.FAILED
    assert caught.value.code == "undecodable_body"


@pytest.mark.parametrize(
    ("status", "headers", "content", "asked"),
    [
        (200, JSON, b'{"a": 1}', None),
        (200, JSON, b"[" * 100 + b"]" * 100, None),
        (500, JSON, b"oops", None),
        (404, HTML, b"<html>", ASKED),
        (304, JSON, b"", ASKED),
        (204, JSON, b"", ASKED),
        (205, JSON, b"", ASKED),
        (206, JSON, b'{"a": ', ASKED),
        (200, HTML, b"<html>", None),
        (200, HTML, b"<html>", {"Accept": "text/html, application/json"}),
        (200, {"Content-Type": "text/plain"}, b"oops", ASKED),
        (200, {"Content-Type": "application/x-ndjson"}, b"{}\n{}", ASKED),
        (200, {}, b"oops", ASKED),
    ],
)
def test_of_any_other_answer_nothing_is_asked(
    library: Any, status: int, headers: Any, content: bytes, asked: Any
) -> None:
    check(library, status, headers, content, asked)


def test_how_deep_an_answer_may_be_can_be_set(library: Any) -> None:
    request = library.Request("GET", "https://service/v1")
    response = library.Response(200, json=[[[]]], request=request)
    json_answer(response, max_depth=3)
    with pytest.raises(UndecodableBodyError, match="more than 2"):
        json_answer(response, max_depth=2)


def test_the_answer_to_a_head_request_has_no_body_to_check(library: Any) -> None:
    check(library, 200, JSON, b"", method="HEAD")

"""Another model in a body, and nothing else."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.infrastructure.balancing.fallback import body_with_model, with_model
from shared.infrastructure.resilience import ConfigurationError

EXACT: list[tuple[str, str]] = [
    ('{"model":"a"}', '{"model":"b"}'),
    ('{ "model" : "a" , "x":1}', '{ "model" : "b" , "x":1}'),
    ('{"x":{"model":"a"},"model":"a"}', '{"x":{"model":"a"},"model":"b"}'),
    ('{"x":[{"model":"a"}],"model":"a"}', '{"x":[{"model":"a"}],"model":"b"}'),
    ('{"x":"\\"model\\":\\"a\\"","model":"a"}', '{"x":"\\"model\\":\\"a\\"","model":"b"}'),
    ('{"x":"{[\\\\","model":"a"}', '{"x":"{[\\\\","model":"b"}'),
    ('{"x":"}}","model":"a"}', '{"x":"}}","model":"b"}'),
    ('{"model":"q\\"uote","y":1.10}', '{"model":"b","y":1.10}'),
    ('{"model":null,"y":1e400}', '{"model":"b","y":1e400}'),
    ('{"model":"a","model":"c"}', '{"model":"b","model":"b"}'),
    ('{"x":12345678901234567890,"model":"a"}', '{"x":12345678901234567890,"model":"b"}'),
]


@pytest.mark.parametrize(("before", "after"), EXACT)
def test_only_the_model_of_the_body_itself_changes(before: str, after: str) -> None:
    assert body_with_model(before.encode(), "b").decode() == after


@pytest.mark.parametrize("body", ['{"x":1}', '{"mod\\u0065l":"a"}', '{"model":{"name":"a"}}', "{}"])
def test_a_model_that_cannot_be_found_is_set(body: str) -> None:
    assert json.loads(body_with_model(body.encode(), "b"))["model"] == "b"


@pytest.mark.parametrize("body", ["", "[]", '"model"', "model=a", "{"])
def test_what_is_no_json_object_has_no_model(body: str) -> None:
    with pytest.raises(ConfigurationError, match="no JSON object"):
        body_with_model(body.encode(), "b")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("model"), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.text() | st.just("model"), VALUES), st.text(), st.booleans())
def test_the_rest_of_any_body_stays_as_it_is(
    body: dict[str, Any], model: str, ensure_ascii: bool
) -> None:
    content = json.dumps(body, ensure_ascii=ensure_ascii).encode("utf-8", "surrogatepass")
    assert json.loads(body_with_model(content, model)) == {**body, "model": model}


def test_a_request_keeps_everything_else() -> None:
    extensions = {"call": object()}
    headers = {"x-own": "1", "authorization": "Bearer k"}
    request = httpx.Request(
        "POST", "http://pool/v1/x?y=1", json={"model": "a"}, headers=headers, extensions=extensions
    )
    changed = with_model(request, "a longer name")
    assert json.loads(changed.content) == {"model": "a longer name"}
    assert changed.headers["content-length"] == str(len(changed.content))
    assert (changed.method, changed.url, changed.extensions) == ("POST", request.url, extensions)
    kept = [item for item in request.headers.items() if item[0] != "content-length"]
    assert [item for item in changed.headers.items() if item[0] != "content-length"] == kept
    assert json.loads(request.content) == {"model": "a"}


def test_a_body_that_is_streamed_cannot_be_changed() -> None:
    async def body() -> Any:
        yield b"{}"

    with pytest.raises(ConfigurationError, match="streamed"):
        with_model(httpx.Request("POST", "http://pool/x", content=body()), "b")

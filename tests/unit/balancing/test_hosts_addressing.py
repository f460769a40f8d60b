"""What a host is sent: under its own URL, with its own key, by its own name of the model."""

import json
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from shared.infrastructure.balancing.call import ATTEMPT, CALL
from tests.unit.balancing.fleet import Fleet, streamed

CALLER = {"Authorization": "Bearer mine", "X-Api-Key": "mine", "Api-Key": "mine", "X-Trace": "7"}


async def sent(
    *, facts: dict[str, Any] | None = None, path: str = "/v1/x", headers: Any = None, **host: Any
) -> httpx.Request:
    fleet = Fleet({"a": 200}, **host)
    await fleet.send(fleet.call(**(facts or {})), path=path, headers=headers, json={"model": "m"})
    return fleet.requests[0]


async def test_a_request_goes_to_the_hosts_own_url_with_its_path_and_query_kept() -> None:
    request = await sent(url="https://x.test:8443/base/", path="/v1/a%2Fb?q=%20z&r=1")
    assert str(request.url) == "https://x.test:8443/base/v1/a%2Fb?q=%20z&r=1"
    assert request.headers["Host"] == "x.test:8443"
    assert [name for name, _ in request.headers.raw].count(b"Host") == 1


@pytest.mark.parametrize("key", ["theirs", SecretStr("theirs"), lambda: "theirs"])
async def test_a_host_with_a_key_never_sees_the_callers_credentials(key: Any) -> None:
    request = await sent(api_key=key, headers=CALLER)
    assert request.headers["Authorization"] == "Bearer theirs"
    assert "mine" not in str(request.headers.raw)
    assert request.headers["X-Trace"] == "7"


async def test_the_key_goes_into_the_header_the_host_looks_at() -> None:
    request = await sent(api_key="theirs", key_header="X-Api-Key", headers=CALLER)
    assert request.headers["X-Api-Key"] == "theirs"
    assert "mine" not in str(request.headers.raw)


async def test_a_host_without_a_key_gets_the_callers_and_its_own_headers() -> None:
    request = await sent(headers=CALLER, each={"a": {"headers": {"X-Org": "o", "x-trace": "8"}}})
    assert request.headers["Authorization"] == "Bearer mine"
    assert request.headers["X-Org"] == "o"
    assert request.headers.get_list("X-Trace") == ["8"]


async def test_an_asynchronous_key_is_asked_for_again_after_a_401() -> None:
    keys = ["old", "old", "new", "new"]

    async def key() -> str:
        return keys.pop(0)

    fleet = Fleet({"a": [200, 401, 200]}, api_key=key)
    await fleet.send()
    response = await fleet.send()
    used = [request.headers["Authorization"] for request in fleet.requests]
    assert (response.status_code, used) == (200, ["Bearer old", "Bearer old", "Bearer new"])


async def test_a_response_does_not_lead_to_the_key() -> None:
    fleet = Fleet({"a": 200}, api_key="theirs")
    response = await fleet.send()
    assert "theirs" not in str(response.request.headers.raw)


async def test_a_model_is_asked_for_by_the_hosts_own_name() -> None:
    request = await sent(facts={"model": "m"}, models={"m": "org/m-2"})
    body = json.loads(request.content)
    assert body == {"model": "org/m-2"}
    assert request.headers["Content-Length"] == str(len(request.content))


@pytest.mark.parametrize("models", [None, ["m"], {"m": "m"}])
async def test_a_body_is_left_alone_where_the_model_has_no_other_name(models: Any) -> None:
    request = await sent(facts={"model": "m"}, models=models)
    assert request.content == b'{"model":"m"}'


@pytest.mark.parametrize(("streams", "coding"), [(True, "identity"), (False, "gzip")])
async def test_only_a_stream_is_asked_for_uncompressed(streams: bool, coding: str) -> None:
    request = await sent(facts={"streamed": streams}, headers={"Accept-Encoding": "gzip"})
    assert request.headers.get_list("Accept-Encoding") == [coding]


async def test_a_response_knows_its_call_and_its_attempt() -> None:
    fleet = Fleet({"a": streamed(b"x")}, models={"m": "own"})
    call = fleet.call(model="m")
    response = await fleet.send(call, json={"model": "m"})
    attempt = response.extensions[ATTEMPT]
    assert response.extensions[CALL] is call
    assert (attempt.host, attempt.model, attempt.ended_at) == ("a", "own", None)
    await response.aread()
    assert call.attempts == [attempt]
    assert attempt.ended_at is not None


async def test_the_request_of_the_caller_stays_as_it_was() -> None:
    fleet = Fleet({"a": 503, "b": 200}, each={"a": {"api_key": "k"}})
    call = fleet.call()
    await fleet.send(call, headers=CALLER)
    await fleet.send(call, headers=CALLER)
    assert fleet.asked == ["a", "b"]
    assert fleet.requests[1].headers["X-Api-Key"] == "mine"

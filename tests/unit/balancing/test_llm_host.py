from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from shared.infrastructure.balancing import DistributedLLMClient, LLMHost
from shared.infrastructure.resilience import ConfigurationError
from tests.scripted_host import completion


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ""}, "needs a name"),
        ({"weight": 0.0}, "weight of a must be above 0"),
        ({"weight": float("nan")}, "weight of a must be above 0"),
        ({"url": "ftp://x"}, "must begin with http:// or https://"),
        ({"url": "llm1.example.com"}, "must begin with http:// or https://"),
        ({"url": "http://[::1"}, "not valid"),
        ({"url": "http://user:secret"}, "not valid"),
        ({"url": "http://user:secret@x"}, "no user, query or fragment"),
        ({"url": "http://x?key=secret"}, "no user, query or fragment"),
        ({"health_path": "health"}, "must begin with /"),
    ],
)
def test_a_wrong_host_is_refused_and_no_secret_repeated(change: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        LLMHost(**{"name": "a", "url": "http://x", **change})
    assert "secret" not in str(caught.value)


def test_a_pool_needs_hosts_with_names_of_their_own() -> None:
    with pytest.raises(ConfigurationError, match="at least one host"):
        DistributedLLMClient([])
    with pytest.raises(ConfigurationError, match="two 'a'"):
        DistributedLLMClient([LLMHost("a", "http://x"), LLMHost("a", "http://y")])


def test_keys_and_headers_stay_out_of_the_repr() -> None:
    host = LLMHost("a", "http://x", api_key="sk-1", headers={"X-Token": "sk-2"})
    assert "sk-" not in repr(host)


async def sent(host: LLMHost, path: str = "/v1/models", **content: Any) -> httpx.Request:
    requests: list[httpx.Request] = []

    def reply(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json=completion("hi"))

    client = DistributedLLMClient([host], transport=httpx.MockTransport(reply))
    await client.get(path, **content)
    return requests[0]


async def test_a_request_is_readdressed_with_the_prefix_and_query_kept() -> None:
    request = await sent(LLMHost("a", "https://x.test:8443/base/"), "/v1/a%2Fb?q=%20z&r=1")
    assert str(request.url) == "https://x.test:8443/base/v1/a%2Fb?q=%20z&r=1"
    assert request.headers["Host"] == "x.test:8443"


CALLER = {"Authorization": "Bearer mine", "X-Api-Key": "mine", "Api-Key": "mine", "X-Trace": "7"}


@pytest.mark.parametrize("key", ["theirs", SecretStr("theirs")])
async def test_a_host_with_a_key_never_sees_the_callers_credentials(key: SecretStr | str) -> None:
    request = await sent(LLMHost("a", "http://a", api_key=key), headers=CALLER)
    assert request.headers["Authorization"] == "Bearer theirs"
    assert "mine" not in request.headers.values()
    assert request.headers["X-Trace"] == "7"


async def test_a_host_without_a_key_gets_the_callers_and_its_own_headers() -> None:
    request = await sent(LLMHost("a", "http://a", headers={"X-Org": "o"}), headers=CALLER)
    assert request.headers["Authorization"] == "Bearer mine"
    assert request.headers["X-Org"] == "o"


async def test_an_absolute_url_is_refused_as_a_path() -> None:
    client = DistributedLLMClient([LLMHost("a", "http://a")])
    with pytest.raises(ConfigurationError, match="path must begin with /"):
        await client.get("http://elsewhere/v1/models")
    await client.stop()

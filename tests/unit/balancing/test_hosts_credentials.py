"""Whose key it was that a host refused, and what follows for everybody else."""

from contextlib import suppress
from typing import Any

import httpx
import orjson
import pytest

from shared.infrastructure.balancing import DistributedLLMClient, LLMHost
from shared.infrastructure.balancing.errors import NoHostAvailableError
from shared.infrastructure.http import UpstreamError
from shared.infrastructure.resilience import AttemptTimeoutError
from tests.unit.balancing.fleet import Fleet

OURS: dict[str, dict[str, Any]] = {
    "a key": {"api_key": "k"},
    "a key in a header of its own": {"api_key": "k", "key_header": "X-Key"},
    "a header": {"headers": {"Authorization": "Bearer k"}},
}


@pytest.mark.parametrize("case", OURS)
@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_host_that_refuses_our_key_is_left_alone(status: int, case: str) -> None:
    fleet = Fleet({"a": status, "b": 200}, **OURS[case])
    for _ in range(4):
        await fleet.send()
    assert fleet.counts() == {"a": 1, "b": 3}
    assert fleet["a"].snapshot()["state"] == "misconfigured"


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_the_key_of_one_caller_shuts_no_host_for_the_others(status: int) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        is_good = request.headers.get("authorization") == "Bearer good"
        return httpx.Response(200 if is_good else status, json={"who": request.url.host})

    hosts = [LLMHost(name, f"http://{name}") for name in ("a", "b")]
    async with DistributedLLMClient(hosts, transport=httpx.MockTransport(answer)) as client:
        for _ in range(5):
            bad = await client.post("/v1/rerank", headers={"Authorization": "Bearer bad"})
            assert (bad.status_code, set(bad.json())) == (status, {"who"})
            good = await client.post("/v1/rerank", headers={"Authorization": "Bearer good"})
            assert good.status_code == 200
        assert client.get_status()["available_hosts"] == ["a", "b"]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_check_without_a_key_of_ours_that_is_refused_says_nothing(status: int) -> None:
    fleet = Fleet({"a": 200})
    fleet.health["a"] = status
    await fleet["a"].health.check()
    assert fleet["a"].snapshot()["state"] == "ready"


async def test_a_key_that_may_not_list_models_may_well_chat() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(401 if request.url.path == "/v1/models" else 200, json={})

    hosts = [LLMHost("a", "http://a", api_key="k")]
    async with DistributedLLMClient(hosts, transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(NoHostAvailableError):
            await client.models()
        assert client.get_status()["available_hosts"] == ["a"]
        assert (await client.post("/v1/rerank")).status_code == 200


FAULTS = {
    "broken": 500,
    "overloaded": 503,
    "throttled": 429,
    "misconfigured": 401,
    "no model": 404,
    "rejected": 400,
    "reset": httpx.ReadError("gone"),
    "silent": httpx.ReadTimeout("silent"),
    "none": 200,
}


@pytest.mark.parametrize("case", FAULTS)
async def test_metrics_are_plain_json_after_any_fault(case: str) -> None:
    step = FAULTS[case]

    def answer(_request: httpx.Request) -> httpx.Response:
        if isinstance(step, Exception):
            raise step
        return httpx.Response(step, json={})

    hosts = [LLMHost("a", "http://a", api_key="k")]
    client = DistributedLLMClient(hosts, transport=httpx.MockTransport(answer), retry_config=None)
    async with client:
        with suppress(UpstreamError, AttemptTimeoutError):
            await client.post("/v1/rerank", json={"model": "m"})
        orjson.dumps(client.get_metrics())
        orjson.dumps(client.get_status())


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_host_in_trouble_that_names_a_time_is_left_alone_for_it(status: int) -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers={"Retry-After": "3"}, json={})

    fleet = Fleet({"a": answer, "b": 200})
    for _ in range(4):
        await fleet.send()
    assert fleet.counts() == {"a": 1, "b": 3}
    assert fleet["a"].snapshot()["throttled_for"] == 3.0

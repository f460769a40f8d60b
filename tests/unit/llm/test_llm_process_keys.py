import asyncio
import json

import pytest
from llm_site import ASK, CHAT, llm_site

from services.llm.cli import main
from services.llm.process.openapi import document
from services.llm.settings import ClientKey, LLMProcessSettings
from shared.infrastructure.resilience import ConfigurationError
from tests.scripted_host import chat, chat_stream

ADMIN = {"authorization": "Bearer root"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_who_has_no_key_is_told_so_in_the_shape_of_the_route() -> None:
    async with llm_site([chat("hello")], api_keys="one,two") as site:
        asked = [
            await site.client.post(path, json=ASK) for path in (CHAT, "/v1/messages", "/v1/nothing")
        ]
        answered = [await site.chat(headers) for headers in (bearer("one"), {"x-api-key": "two"})]
        probes = [await site.client.get(path) for path in ("/health/live", "/metrics")]
    assert [reply.status_code for reply in asked] == [401, 401, 404]
    assert asked[0].json()["error"]["code"] == "invalid_api_key"
    assert asked[1].json()["error"]["type"] == "authentication_error"
    assert asked[0].headers["x-request-id"]
    assert [reply.status_code for reply in [*answered, *probes]] == [200] * 4
    # Our keys are no business of the hosts.
    assert all("authorization" not in request.headers for request in site.hosts[0].requests)
    assert all("x-api-key" not in request.headers for request in site.hosts[0].requests)


async def test_each_key_has_its_own_rate() -> None:
    keys = [ClientKey(key="slow", requests_per_second=0.001, burst_size=2), ClientKey(key="fast")]  # type: ignore[arg-type]
    async with llm_site([chat("hello")], api_keys=keys) as site:
        slow = [await site.chat(bearer("slow")) for _ in range(3)]
        fast = [await site.chat(bearer("fast")) for _ in range(3)]
    assert [reply.status_code for reply in slow] == [200, 200, 429]
    assert slow[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert 900 <= int(slow[-1].headers["retry-after"]) <= 1000
    assert [reply.status_code for reply in fast] == [200] * 3
    assert len(site.hosts[0].requests) == 5


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_tokens_are_charged_as_the_host_counts_them(is_streamed: bool) -> None:
    script = chat_stream("hello") if is_streamed else chat("hello")
    # An answer costs 8 tokens, and is guessed at less than 60.
    async with llm_site([script], api_keys="one", key_tokens_per_minute=60) as site:
        replies = [
            await site.chat(bearer("one"), stream=is_streamed, max_tokens=20) for _ in range(4)
        ]
        too_much = await site.chat(bearer("one"), stream=is_streamed, max_tokens=500)
    assert [reply.status_code for reply in replies] == [200] * 4
    assert too_much.status_code == 429
    assert 0 < int(too_much.headers["retry-after"]) <= 60


async def test_the_rate_of_the_service_bounds_the_process_only_if_it_was_given() -> None:
    async with llm_site([chat("hello")]) as site:
        replies = await asyncio.gather(*(site.chat() for _ in range(30)))
        assert {reply.status_code for reply in replies} == {200}
    async with llm_site([chat("hello")], requests_per_second=0.001, burst_size=1) as site:
        assert [(await site.chat()).status_code for _ in range(2)] == [200, 429]


async def test_administrators_take_hosts_out_and_put_them_back() -> None:
    scripts = [chat("hello")], [chat("hello")]
    async with llm_site(*scripts, admin_keys="root", api_keys="one") as site:

        async def act(action: str, body: object = None) -> tuple[int, dict[str, object]]:
            reply = await site.client.post(f"/admin/hosts/{action}", json=body, headers=ADMIN)
            return reply.status_code, reply.json()

        async def hosts_asked() -> set[str]:
            replies = [await site.chat(bearer("one")) for _ in range(6)]
            return {reply.headers["x-llm-host"] for reply in replies}

        assert (await act("a/weight", {"weight": 2.5}))[1]["host"]["weight"] == 2.5  # type: ignore[index]
        assert await hosts_asked() == {"a", "b"}
        assert (await act("a/disable"))[0] == 200
        assert await hosts_asked() == {"b"}
        assert (await act("a/enable"))[1]["host"]["enabled"] is True  # type: ignore[index]
        assert (await act("b/drain", {"timeout": 5}))[1]["drained"] is True
        assert await hosts_asked() == {"a"}
        for action, body in [("a/weight", None), ("a/weight", {"weight": -1}), ("a/drain", [])]:
            assert (await act(action, body))[0] == 400
        assert (await act("none/enable"))[0] == 404
        shown = await site.client.get("/admin/hosts", headers=ADMIN)
        assert set(shown.json()["hosts"]) == {"a", "b"}
        states = await site.metric('llm_host_state{host="b",state="draining"}')
        assert states + await site.metric('llm_host_state{host="b",state="disabled"}') == 1
        refused = [
            await site.client.get("/admin/hosts", headers=bearer("one")),
            await site.chat(bearer("root")),
        ]
        assert [reply.status_code for reply in refused] == [401, 401]


async def test_there_is_nothing_to_administrate_without_a_key_for_it() -> None:
    async with llm_site([chat("hello")]) as site:
        assert (await site.client.get("/admin/hosts")).status_code == 404


async def test_every_route_is_in_the_openapi_document() -> None:
    async with llm_site([chat("hello")], admin_keys="root") as site:
        told = (await site.client.get("/openapi.json")).json()
    assert told == json.loads(json.dumps(document(site.app.routes)))
    assert set(told["paths"]) == set(site.app.routes)
    schemas = told["components"]["schemas"]
    names = {part.split('"')[0] for part in json.dumps(told).split("#/components/schemas/")[1:]}
    assert names <= set(schemas)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LLM_PORT": "70000"}, "LLM_PORT"),
        ({"LLM_API_KEYS": '[{"key": "a", "limit": 1}]'}, "LLM_API_KEYS"),
        ({"LLM_API_KEYS": '[{"key": "secret", "name": 5}]'}, "LLM_API_KEYS"),
        ({"LLM_HOSTS": "nothing"}, "LLM_HOSTS"),
        ({"LLM_PROT": "1"}, "did you mean LLM_PORT"),
    ],
)
def test_a_wrong_variable_is_named_and_its_value_is_not(
    variables: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        LLMProcessSettings.from_env(environ=variables)
    assert "secret" not in str(caught.value)


def test_keys_are_read_from_a_list_or_from_json() -> None:
    plain = LLMProcessSettings.from_env(environ={"LLM_API_KEYS": "key-1, key-2"})
    listed = LLMProcessSettings.from_env(
        environ={
            "LLM_API_KEYS": '["key-1", {"key": "key-2", "requests_per_second": 1, "burst_size": 3}]'
        }
    )
    assert [key.key.get_secret_value() for key in plain.api_keys] == ["key-1", "key-2"]
    assert [(key.key.get_secret_value(), key.burst_size) for key in listed.api_keys] == [
        ("key-1", None),
        ("key-2", 3),
    ]
    assert "key-1" not in repr(plain)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "x"], "--port:"),
        (["--host", "::", "--port", "0"], "set LLM_API_KEYS"),
        (["--hosts", "a=ftp://x"], "url of a must begin with http"),
    ],
)
def test_a_wrong_start_ends_with_a_message(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 2
    assert message in capsys.readouterr().err


def test_check_shows_how_every_host_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--hosts", "gone=http://127.0.0.1:9", "--connect-timeout", "2"]) == 1
    told = capsys.readouterr().out
    assert told.splitlines()[0].split() == ["HOST", "URL", "STATUS", "SECONDS", "ERROR"]
    assert "gone" in told
    assert "http://127.0.0.1:9" in told

from typing import Any

import pytest
from llm_site import ASK, CHAT, llm_site

from tests.scripted_host import Exchange, Step, answer, chat

FLAGGED = {"code": 403, "message": "flagged", "metadata": {"flagged_input": "x"}}


@pytest.mark.parametrize("status", [302, 304, 700])
async def test_a_status_that_is_no_answer_is_a_502(status: int) -> None:
    async def step(exchange: Exchange) -> None:
        body = b"" if status in {204, 304} else b"Content-Length: 0\r\n"
        exchange.writer.write(b"HTTP/1.1 %d Odd\r\nLocation: http://inside\r\n" % status)
        exchange.writer.write(body + b"\r\n")

    async with llm_site([step], max_retries=0) as site:
        response = await site.chat()
    assert response.status_code == 502
    assert response.json()["error"]["type"] == "server_error"
    assert "location" not in response.headers


@pytest.mark.parametrize("settings", [{}, {"api_key": "ours"}])
async def test_a_moderation_is_passed_on_and_no_matter_of_keys(settings: dict[str, Any]) -> None:
    async with llm_site([answer({"error": FLAGGED}, 403)], **settings) as site:
        response = await site.chat()
    assert (response.status_code, response.json()["error"]["message"]) == (403, "flagged")


OWN = {"type": "error", "error": {"type": "x", "message": "no"}, "request_id": "r"}


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (409, {"error": {"message": "no"}}, "invalid_request_error"),
        (400, {"error": "no"}, "invalid_request_error"),
        (422, {"message": "no"}, "invalid_request_error"),
        (529, b"no", "overloaded_error"),
        (400, OWN, "x"),
    ],
)
async def test_errors_of_hosts_have_anthropics_shape_on_its_route(
    status: int, said: Any, kind: str
) -> None:
    async with llm_site([answer(said, status)], max_retries=0) as site:
        response = await site.client.post("/v1/messages", json=ASK)
    told = response.json()
    assert (response.status_code, told["type"]) == (status, "error")
    assert told["error"] == {"type": kind, "message": "no"}
    assert said is not OWN or told == OWN


async def test_every_answer_names_its_request() -> None:
    listed: Step = answer({"object": "list", "data": [{"id": "m"}]})
    async with llm_site([listed]) as site:
        paths = ("/health/live", "/health", "/metrics", "/openapi.json", "/v1/models", "/nothing")
        for path in paths:
            response = await site.client.get(path, headers={"x-request-id": "mine"})
            assert response.headers.get_list("x-request-id") == ["mine"], path
        assert (await site.client.get("/ping")).headers["x-request-id"] != "mine"


async def test_what_hosts_may_answer_is_declared() -> None:
    async with llm_site([chat("hello")], admin_keys="root") as site:
        document = (await site.client.get("/openapi.json")).json()
    told = document["paths"][CHAT]["post"]
    assert {"402", "403", "409", "529", "default"} <= set(told["responses"])
    assert {"header": []} in told["security"]
    schemes = document["components"]["securitySchemes"]
    assert schemes["header"] == {"type": "apiKey", "in": "header", "name": "x-api-key"}
    admin = set(document["paths"]["/admin/hosts/{name}/enable"]["post"]["responses"])
    assert admin.isdisjoint({"422", "429", "502", "504"})
    assert {"200", "400", "401", "404"} <= admin

import httpx
import pytest
from pydantic import SecretStr
from server_site import StreamingApp

from shared.infrastructure.resilience import ServiceError
from shared.infrastructure.server import HTTPError, Keyring, Request, ServerConfig, retry_after
from shared.infrastructure.server.keys import tenant_of


@pytest.mark.parametrize(
    ("path", "status", "name"),
    [
        ("/plain/a.b", 200, "a.b"),
        ("/plain/a%20b", 200, "a b"),
        ("/plain/", 404, None),
        ("/plain/a/b", 404, None),
        ("/stream", 405, None),
        ("/plain/wrong", 400, None),
    ],
)
async def test_an_open_part_of_a_path_stands_for_one_part(
    path: str, status: int, name: str | None
) -> None:
    app = StreamingApp(ServerConfig())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),  # type: ignore[arg-type]
        base_url="http://a",
    ) as client:
        response = await client.get(path)
    assert response.status_code == status
    assert name is None or response.json() == {"name": name}
    templates = {200: "/plain/{name}", 400: "/plain/{name}", 405: "/stream", 404: ""}
    assert app.counts == [(templates[status], status)]


async def test_an_asgi_server_streams_too() -> None:
    app = StreamingApp(ServerConfig())
    app.source.put(b"one", b"two", None)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),  # type: ignore[arg-type]
        base_url="http://a",
    ) as client:
        response = await client.post("/stream")
    assert (response.content, app.source.closed) == (b"onetwo", 1)
    assert response.headers["content-type"] == "text/event-stream"


async def test_an_asgi_server_is_told_of_a_stream_that_breaks_off() -> None:
    app = StreamingApp(ServerConfig())
    app.source.put(b"one", ServiceError("secret"))
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/stream", "headers": []}
    with pytest.raises(ServiceError):
        await app(scope, receive, send)  # type: ignore[arg-type]
    assert sent[-1]["more_body"] is True
    assert b"the source failed" in sent[-1]["body"]  # type: ignore[operator]
    assert app.counts == [("/stream", 599)]


@pytest.mark.parametrize(
    ("headers", "is_let_in"),
    [
        ({b"authorization": b"Bearer one"}, True),
        ({b"authorization": b"bearer  two "}, True),
        ({b"x-api-key": b"one"}, True),
        ({b"authorization": b"Basic one"}, False),
        ({b"authorization": b"Bearer "}, False),
        ({b"x-api-key": b"none"}, False),
        ({}, False),
    ],
)
def test_a_key_may_come_in_either_header(headers: dict[bytes, bytes], is_let_in: bool) -> None:
    keys = [SecretStr("one"), SecretStr("two")]
    request = Request("GET", "/", headers)
    ring = Keyring(keys, header=b"x-api-key")
    if is_let_in:
        assert ring.tenant(request) in {tenant_of(key) for key in keys}
    else:
        with pytest.raises(HTTPError, match="API key"):
            ring.tenant(request)


@pytest.mark.parametrize(
    ("seconds", "header"), [(None, b"1"), (0.2, b"1"), (7.1, b"8"), (float("inf"), b"1")]
)
def test_when_to_come_back_is_told_in_whole_seconds(seconds: float | None, header: bytes) -> None:
    assert dict(retry_after(seconds))[b"retry-after"] == header

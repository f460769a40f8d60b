"""Bodies that are not what their fields say, or more than anybody wants, on both versions."""

import tracemalloc
import zlib

import pytest

from shared.infrastructure.http import ResponseTooLargeError, UndecodableBodyError
from shared.infrastructure.http.decoding import ResponseLimits
from shared.infrastructure.http.json_body import json_answer
from tests.wall.answers import Said, Version, bomb, zipped
from tests.wall.flavours import FLAVOURS, NAMES, Flavour, opened
from tests.wall.row import Row, meet, on_every_flavour

TEXT = bytes(range(256)) * 64
LIMIT = ResponseLimits(max_bytes=100_000, max_streamed_bytes=100_000)
BOUNDED = {"limits": LIMIT}
JSON = "application/json"
CHECKED = {"check_response": json_answer, "headers": {"Accept": JSON}}
HTML = b"<html><h1>502 Bad Gateway</h1></html>"

ROWS = [
    Row("gzip", Said(zipped(TEXT), "gzip"), (200, TEXT), seen=1),
    Row("gzip in two members", Said(zipped(b"a") + zipped(b"b"), "gzip"), (200, b"ab"), seen=1),
    Row("gzip of nothing at all", Said(b"", "gzip"), (200, b""), seen=1),
    Row("gzip that is an error", Said(zipped(HTML), "gzip", 404), (404, HTML), seen=1),
    Row("gzip cut off", Said(zipped(TEXT)[:-20], "gzip"), UndecodableBodyError),
    Row(
        "gzip with a wrong sum",
        Said(zipped(TEXT)[:-8] + bytes(8), "gzip"),
        UndecodableBodyError,
        cause=zlib.error,
    ),
    Row("gzip that is none", Said(TEXT, "gzip"), UndecodableBodyError, cause=zlib.error),
    Row("gzip that is HTML", Said(HTML, "gzip"), UndecodableBodyError, cause=zlib.error),
    Row(
        "deflate that is none",
        Said(b"\xff" * 99, "deflate"),
        UndecodableBodyError,
        cause=zlib.error,
    ),
    Row("coding nobody knows", Said(TEXT, "snappy"), UndecodableBodyError),
    Row(
        "gzip cut off under a reader",
        Said(zipped(TEXT)[:-20], "gzip"),
        UndecodableBodyError,
        seen=1,
        streamed=True,
    ),
    Row("gzip bomb", Said(bomb(20), "gzip"), ResponseTooLargeError, seen=1, options=BOUNDED),
    Row(
        "gzip bomb under a reader",
        Said(bomb(20), "gzip"),
        ResponseTooLargeError,
        seen=1,
        streamed=True,
        options=BOUNDED,
    ),
    Row(
        "gzip bomb in gzip",
        Said(zipped(bomb(20)), "gzip, gzip"),
        UndecodableBodyError,
        options=BOUNDED,
    ),
    Row("one coding too many", Said(b"x", ", ".join(["gzip"] * 50)), UndecodableBodyError),
    Row(
        "body beyond the limit",
        Said(b"x" * 100_001),
        ResponseTooLargeError,
        seen=1,
        options=BOUNDED,
    ),
    Row("body at the limit", Said(b"x" * 100_000), (200, b"x" * 100_000), seen=1, options=BOUNDED),
    Row("HTML where JSON was asked for", Said(HTML, kind="text/html"), (200, HTML), seen=1),
    Row("HTML, and a check", Said(HTML, kind="text/html"), UndecodableBodyError, options=CHECKED),
    Row(
        "JSON cut off, and a check",
        Said(b"[1, 2", kind=JSON),
        UndecodableBodyError,
        options=CHECKED,
    ),
    Row("NaN, and a check", Said(b"[NaN]", kind=JSON), UndecodableBodyError, options=CHECKED),
    Row("JSON, and a check", Said(b"[1]", kind=JSON), (200, b"[1]"), seen=1, options=CHECKED),
]


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
@on_every_flavour(ROWS)
async def test_a_body_is_whole_and_no_more_than_agreed_or_a_typed_error(
    row: Row[Said], flavour: Flavour, version: Version
) -> None:
    await meet(row, flavour, row.play.site(version))


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("flavour", FLAVOURS, ids=NAMES)
async def test_a_gzip_bomb_takes_no_more_memory_than_the_limit(
    flavour: Flavour, version: Version
) -> None:
    said = Said(bomb(80), "gzip")
    limits = ResponseLimits(max_bytes=5_000_000)
    async with (
        said.site(version) as site,
        opened(flavour, site.server.url, limits=limits) as client,
    ):
        assert (await client.get("/good")).text == "ok"
        tracemalloc.start()
        try:
            with pytest.raises(ResponseTooLargeError):
                await client.get("/bad")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 21_000_000

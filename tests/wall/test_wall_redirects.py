"""Redirects are not followed unless asked for, and then carry nothing to another origin."""

import pytest

from shared.infrastructure.http import CrossOriginError
from tests.raw_server import Peer, raw_server
from tests.wall.answers import Said, Version
from tests.wall.flavours import FLAVOURS, NAMES, Flavour, opened
from tests.wall.row import ONCE_MORE

SECRETS = {"x-api-key": "s3cret", "Authorization": "Bearer s3cret", "Cookie": "id=s3cret"}
ALIKE = pytest.mark.parametrize("flavour", FLAVOURS, ids=NAMES)
BOTH = pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])


def redirect(location: str, status: int) -> Said:
    return Said(b"moved", status=status, fields=(("location", location),))


@BOTH
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@ALIKE
async def test_a_redirect_is_an_answer_like_any_other(
    flavour: Flavour, version: Version, status: int
) -> None:
    async with redirect("http://elsewhere.test/", status).site(version) as site:
        async with opened(flavour, site.server.url) as client:
            response = await client.post("/bad", content=b"order")
            assert (response.status_code, response.content) == (status, b"moved")
            assert client.get_status()["error_count"] == 0
        assert site.asked == ["/bad"]


@BOTH
@pytest.mark.parametrize("scheme", ["http://", "//", "http://us:pw@"])
@pytest.mark.parametrize("status", [302, 307])
@ALIKE
async def test_a_redirect_to_another_origin_is_refused_before_anything_is_sent_there(
    flavour: Flavour, version: Version, status: int, scheme: str
) -> None:
    async with raw_server(never) as other:
        location = other.url.replace("http://", scheme)
        async with (
            redirect(location, status).site(version) as site,
            opened(flavour, site.server.url, headers=SECRETS, auth=("us", "pw")) as client,
        ):
            with pytest.raises(CrossOriginError) as caught:
                await client.post("/bad", content=b"order", follow_redirects=True)
            assert "s3cret" not in str(caught.value)
            assert site.asked == ["/bad"]
            assert client.get_status()["circuit_breaker"]["window_failures"] == 0
            assert (await client.get("/good")).text == "ok"
        assert other.peers == []


async def never(_peer: Peer) -> None:
    raise AssertionError("nobody should have come here")


@BOTH
@ALIKE
async def test_a_redirect_within_the_origin_is_followed_if_asked_for(
    flavour: Flavour, version: Version
) -> None:
    async with (
        redirect("/good", 302).site(version) as site,
        opened(flavour, site.server.url, headers=SECRETS) as client,
    ):
        assert (await client.get("/bad", follow_redirects=True)).text == "ok"
        assert site.asked == ["/bad", "/good"]


@BOTH
@ALIKE
async def test_redirects_in_a_circle_end(flavour: Flavour, version: Version) -> None:
    async with (
        redirect("/bad", 302).site(version) as site,
        opened(flavour, site.server.url, retry_config=ONCE_MORE) as client,
    ):
        with pytest.raises(flavour.library.TooManyRedirects):
            await client.get("/bad", follow_redirects=True)
        assert len(site.asked) == 21
        assert client.get_status()["in_flight"] == 0
        assert (await client.get("/good")).text == "ok"

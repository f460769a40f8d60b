"""A pool with more callers than slots: none too many, in their order, and typed when full."""

import asyncio

import pytest

from shared.infrastructure.http import ConnectionPoolConfig, PoolTimeoutError, TimeoutConfig
from tests.wall.answers import Version
from tests.wall.crowd import SLOTS, crowd_site
from tests.wall.flavours import FLAVOURS, NAMES, Flavour, busy, opened
from tests.wall.leaks import gone_soon

CALLERS = 200
VERSIONS = ["HTTP/1.1", "HTTP/2"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("flavour", FLAVOURS, ids=NAMES)
async def test_200_callers_share_10_slots_in_their_order(
    flavour: Flavour, version: Version
) -> None:
    pool = ConnectionPoolConfig(max_connections=SLOTS, max_keepalive_connections=SLOTS)
    async with (
        crowd_site(version, lambda: 0.005) as site,
        opened(flavour, site.server.url, pool_config=pool) as client,
    ):
        answers = await asyncio.gather(*(client.get(f"/{turn}") for turn in range(CALLERS)))
        assert {answer.text for answer in answers} == {"ok"}
        assert site.server.most_open <= SLOTS
        served = [int(path[1:]) for path in site.asked]
        # Those on the wire together may overtake each other, and nobody else.
        assert max(abs(turn - place) for place, turn in enumerate(served)) < SLOTS
        assert len(served) == CALLERS


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("flavour", FLAVOURS, ids=NAMES)
async def test_a_caller_who_gets_no_slot_in_time_is_told_so(
    flavour: Flavour, version: Version
) -> None:
    options = {
        "pool_config": ConnectionPoolConfig(max_connections=1),
        "timeout_config": TimeoutConfig(pool=0.05, total=10.0),
        "retry_config": None,
    }
    async with (
        crowd_site(version, lambda: 0.5, slots=1) as site,
        opened(flavour, site.server.url, **options) as client,
    ):
        assert (await client.get("/good")).text == "ok"
        slow = asyncio.ensure_future(client.get("/slow"))
        await asyncio.sleep(0.05)
        with pytest.raises(PoolTimeoutError) as caught:
            await client.get("/bad")
        assert caught.value.unsent
        assert isinstance(caught.value, flavour.library.PoolTimeout)
        assert not slow.done()
        assert (await slow).text == "ok"
        assert client.get_status()["circuit_breaker"]["window_failures"] == 0
        await gone_soon(lambda: busy(client))
        assert (await client.get("/good")).text == "ok"
        assert "/bad" not in site.asked

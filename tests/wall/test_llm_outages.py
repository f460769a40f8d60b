"""S15 and S30: hosts that are gone for a while; and our own standing still, which is none of it."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from shared.infrastructure.balancing.config import AnswerTimeoutConfig, BalanceConfig
from shared.infrastructure.resilience import CircuitBreakerConfig
from tests.wall.llm_cell import Leftovers, judge, still_open, under_way
from tests.wall.llm_faults import SERVER_ERROR, status
from tests.wall.llm_hosts import CHAT, Pace, Site, Turn, after, heading, serving, well
from tests.wall.llm_scenarios import Mark, Scenario
from tests.wall.llm_ways import BUFFER_WAY, CHAT_WAY, LIVE_WAY, Way, our_pool

PATIENT = Pace(limit=20.0, deadline=60.0)
EXACT = Scenario("exact", well)
OPEN = 0.4
QUICK: Any = {
    "circuit_breaker_config": CircuitBreakerConfig(timeout=OPEN, max_timeout=2 * OPEN),
    "balance_config": BalanceConfig(slow_start=0.5),
}
WAYS = [CHAT_WAY, LIVE_WAY, BUFFER_WAY]
each_way = pytest.mark.parametrize("way", WAYS, ids=[way.name for way in WAYS])
RATE = 100
WELL = {"ready", "slow_start"}


async def served(way: Way, pool: Any, site: Site, names: list[str]) -> None:
    """Make calls at once, and be sure that each gets its answer."""
    outcomes = await asyncio.gather(*(way.call(pool, name, 55.0) for name in names))
    for name, outcome in zip(names, outcomes, strict=True):
        mark, reason = judge(EXACT, way, outcome, site, name)
        assert mark is Mark.PASS, reason


async def steadily(way: Way, pool: Any, site: Site, prefix: str, count: int) -> None:
    """Make calls one after another."""
    began = time.monotonic()

    async def call(number: int) -> None:
        await asyncio.sleep(began + number / RATE - time.monotonic())
        await served(way, pool, site, [f"{prefix} {number}"])

    await asyncio.gather(*(call(number) for number in range(count)))


@each_way
async def test_a_host_that_was_gone_is_used_again(way: Way) -> None:
    site = Site(3, status(503, SERVER_ERROR), "primary", pace=PATIENT)
    before = Leftovers()
    async with serving(site):
        async with our_pool(site.urls, PATIENT, **QUICK) as pool:
            await steadily(way, pool, site, "outage", 150)
            assert site.primary is not None
            probes = len(site.all_turns(site.primary))
            # Five to open it, those under way by then, and one each time that it half-opens.
            assert probes <= 5 + 10 + 150 / RATE / OPEN + 1
            site.heal()
            answers = 0
            for turn in range(40):
                await steadily(way, pool, site, f"healed {turn}", 25)
                answers = len(site.all_turns(site.primary)) - probes
                if answers >= 20:
                    break
            assert answers >= 20
            assert not await under_way(site, pool)
        assert not await still_open(site)
    assert not await before.found()


@each_way
async def test_a_host_that_comes_back_is_probed_once_at_a_time(way: Way) -> None:
    slow_failures: list[Turn] = []
    most = 0

    async def fails(turn: Turn) -> None:
        nonlocal most
        if len(site.all_turns(site.primary)) > 36 or slow_failures:
            slow_failures.append(turn)
            most = max(most, site.playing[turn.host])
            await asyncio.sleep(0.1)
        await status(500)(turn)

    site = Site(3, fails, "primary", pace=PATIENT)
    async with serving(site), our_pool(site.urls, PATIENT, **QUICK) as pool:
        await served(way, pool, site, [f"first {number}" for number in range(111)])
        assert site.primary is not None
        await site.hosts[0].until(lambda: not any(site.playing))
        slow_failures.clear()
        most = 0
        for turn in range(3):
            await asyncio.sleep(2 * OPEN)
            await served(way, pool, site, [f"storm {turn}.{number}" for number in range(50)])
        assert len(slow_failures) >= 1
        assert most <= 1
        site.heal()
        seen = len(site.all_turns(site.primary))
        for turn in range(40):
            await steadily(way, pool, site, f"healed {turn}", 25)
            if len(site.all_turns(site.primary)) >= seen + 20:
                break
        assert len(site.all_turns(site.primary)) >= seen + 20
        assert not await under_way(site, pool)


async def test_a_429_that_says_when_is_heeded_by_all_callers() -> None:
    """C11: no caller comes back before that, and none goes without an answer."""
    pause = 0.5
    said_at: list[float] = []

    async def once(turn: Turn) -> None:
        if said_at and time.monotonic() - said_at[0] >= pause:
            await well(turn)
            return
        await status(429, SERVER_ERROR, retry_after_ms=f"{pause * 1000:.0f}")(turn)
        said_at.append(time.monotonic())

    site = Site(2, once, "primary", pace=PATIENT)
    async with serving(site), our_pool(site.urls, PATIENT) as pool:
        await served(CHAT_WAY, pool, site, ["the first"])
        await steadily(CHAT_WAY, pool, site, "others", 100)
        early = [turn for turn in site.all_turns(site.primary) if turn.at < said_at[0] + pause]
        assert len(early) == 1
        assert len(site.all_turns(site.primary)) > 10


class _Prompt(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(0.1)
        message = {"role": "assistant", "content": "prompt"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        body = json.dumps({"object": "chat.completion", "choices": choices}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@contextlib.contextmanager
def prompt_host() -> Iterator[str]:
    """Run a host that does not depend on the event loop."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Prompt)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_a_loop_that_stood_still_blames_no_host() -> None:
    """C21: the answers were there in time, and we were not."""
    limit = 2.0
    with prompt_host() as one, prompt_host() as other:
        answers = AnswerTimeoutConfig(first_token=limit, idle=limit)
        options: Any = {"answer_timeouts": answers, "retry_config": None}
        async with our_pool([one, other], PATIENT, **options) as pool:
            calls = [asyncio.ensure_future(pool.post(CHAT, json=heading("x"))) for _ in range(10)]
            await asyncio.sleep(0.05)  # until they are on their way
            time.sleep(limit + 0.5)  # noqa: ASYNC251 - that is what is tested
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
            for host in pool.get_metrics()["hosts"].values():
                assert host["circuit_breaker"]["window_failures"] == 0


async def test_all_hosts_gone_at_once_is_told_soon_and_over_soon() -> None:
    """C1: nobody hangs while all are down, and all are served once they are back."""
    site = Site(3, after(0.0), "all", pace=PATIENT)
    async with serving(site), our_pool(site.urls, PATIENT, **QUICK) as pool:
        await served(CHAT_WAY, pool, site, [f"before {n}" for n in range(9)])
        for host in site.hosts:
            await host.die()
        calls = [CHAT_WAY.call(pool, f"during {n}", 30.0) for n in range(30)]
        outcomes = await asyncio.gather(*calls)
        assert all(isinstance(outcome.error, CHAT_WAY.clean) for outcome in outcomes)
        for host in site.hosts:
            await host.rise()
        for turn in range(400):
            await CHAT_WAY.call(pool, f"probe {turn}", 30.0)
            if {host["state"] for host in pool.get_metrics()["hosts"].values()} <= WELL:
                break
            await asyncio.sleep(0.01)
        await served(CHAT_WAY, pool, site, [f"after {n}" for n in range(30)])
        assert not await under_way(site, pool)

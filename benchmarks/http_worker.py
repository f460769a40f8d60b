"""One HTTP client in a process of its own, which is told when it is its turn.

It reads lines of JSON, one `Turn` each, and answers each with a line of `Figures`. An `error` is
the last line: what comes after one shows nothing.
"""

import asyncio
import gc
import json
import logging
import os
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, NamedTuple

from benchmarks.http_contenders import Call
from benchmarks.http_server import Target

# However slow a client is, this is enough for a turn that has not got stuck.
_PATIENCE = 120.0


class Turn(NamedTuple):
    """Requests in a closed loop: each of `concurrency` tasks sends one as soon as it has the last.

    What happens in the first quarter of `seconds` is not counted, nor before each task can have
    had an answer: connections are opened then.
    """

    path: str
    concurrency: int
    seconds: float


class Figures(NamedTuple):
    """What a turn has shown.

    Attributes:
        cpu: Microseconds that this process was running for each request, user and system.
        rate: Requests a second.
        p50: Median milliseconds a request took.
        p99: Its 99th percentile.
    """

    cpu: float
    rate: float
    p50: float
    p99: float


class WrongAnswerError(Exception):
    """The answer is not the one the server gives."""


async def measure(call: Call, answer: object, turn: Turn) -> Figures:
    taken: list[float] = []
    is_over = False

    async def ask() -> None:
        while not is_over:
            began = time.perf_counter()
            if await call(turn.path) != answer:
                raise WrongAnswerError
            taken.append(time.perf_counter() - began)

    async def run_for(seconds: float, requests: int) -> None:
        until = time.perf_counter() + seconds
        while (left := until - time.perf_counter()) > 0 or len(taken) < requests:
            # None of them ends by itself but by an error.
            ended, _ = await asyncio.wait(
                asking, timeout=max(left, 0.1), return_when=asyncio.FIRST_COMPLETED
            )
            for task in ended:
                task.result()

    gc.collect()
    asking = [asyncio.create_task(ask()) for _ in range(turn.concurrency)]
    try:
        await run_for(turn.seconds / 4, turn.concurrency)
        taken.clear()
        cpu, began = time.process_time(), time.perf_counter()
        await run_for(turn.seconds, turn.concurrency)
        cpu, elapsed = time.process_time() - cpu, time.perf_counter() - began
        seen = sorted(taken)
        is_over = True
        await asyncio.gather(*asking)
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return Figures(
        cpu * 1e6 / len(seen),
        len(seen) / elapsed,
        statistics.median(seen) * 1e3,
        seen[int(0.99 * (len(seen) - 1))] * 1e3,
    )


Measure = Callable[[Call, object, Turn], Awaitable[Any]]
"""Take a turn, and return what it has shown, as a named tuple."""


async def main(
    module: str, arm: str, target: str, core: str, *, measure: Measure = measure
) -> None:
    # What a library prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.sched_setaffinity(0, {int(core)})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    contenders = import_module(module)
    try:
        call = await contenders.ARMS[arm](Target(**json.loads(target)))
        while line := await asyncio.to_thread(sys.stdin.readline):
            async with asyncio.timeout(_PATIENCE):
                figures = await measure(call, contenders.ANSWER, Turn(**json.loads(line)))
            print(json.dumps(figures._asdict()), file=answers)
    except Exception as error:  # whatever it is, it is this client's result
        text = str(error).partition("\n")[0]
        said = f"{type(error).__name__}: {text}" if text else type(error).__name__
        print(json.dumps({"error": said}), file=answers)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    # Nothing is closed: a client's way of closing down is not what is measured.
    os._exit(0)

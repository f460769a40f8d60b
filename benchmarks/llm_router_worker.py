"""A client of `llm_router` in a process of its own; as `http_worker`, and it tells more."""

import asyncio
import os
import resource
import statistics
import sys
import time
from typing import NamedTuple

from benchmarks import http_worker, llm_router_stream
from benchmarks.http_contenders import Call
from benchmarks.http_worker import Turn

_ready: list[float] = []


class RouterFigures(NamedTuple):
    """What a turn has shown.

    Attributes:
        cpu: Microseconds that this process was running for each request, user and system.
        rate: Requests a second.
        p50: Median milliseconds a request took.
        p99: Its 99th percentile.
        first: Median milliseconds to the first content; None if nobody has looked.
        ready: Milliseconds this process had been running before its first request.
        memory: Its peak of resident memory, in MB.
    """

    cpu: float
    rate: float
    p50: float
    p99: float
    first: float | None
    ready: float
    memory: float


async def measure(call: Call, answer: object, turn: Turn) -> RouterFigures:
    if not _ready:
        _ready.append(time.process_time() * 1e3)
    llm_router_stream.FIRST.clear()
    figures = await http_worker.measure(call, answer, turn)
    first = llm_router_stream.FIRST
    return RouterFigures(
        *figures,
        first=statistics.median(first) * 1e3 if first else None,
        ready=_ready[0],
        memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


if __name__ == "__main__":
    asyncio.run(http_worker.main(*sys.argv[1:], measure=measure))
    os._exit(0)

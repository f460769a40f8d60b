"""One contender of `embedding_bulk` in a process of its own, which is told when it is its turn.

Once it is loaded and warm it answers each line with a `Turn`, as a line of JSON; the first comes
unasked, for a few texts.
An `error` is the last line: what comes after one shows nothing.
"""

import gc
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.embedding_contenders import ARMS, Embed, Setup, Vectors


class Task(NamedTuple):
    """What all contenders have to do.

    Attributes:
        texts: JSON file of the texts.
        reference: Vectors that the first texts should have, as a `.npy` file.
        setup: What contenders are given.
    """

    texts: str
    reference: str
    setup: Setup


class Turn(NamedTuple):
    """One turn of a contender.

    Attributes:
        texts: How many it was given.
        seconds: How long it took.
        cpu: Processor seconds of its process.
        others: Share of the processors' time that others used meanwhile, 0 to 1.
        least_cosine: Of the vectors that have a reference, the one that is furthest from it.
        peak: Most memory its process has ever had resident, MB.
    """

    texts: int
    seconds: float
    cpu: float
    others: float
    least_cosine: float
    peak: float


def busy_seconds(stat: str, cpus: Sequence[int]) -> float:
    """Return the seconds that some processors have been busy or stolen, from `/proc/stat`."""
    names = {f"cpu{cpu}" for cpu in cpus}
    ticks = 0
    for line in stat.splitlines():
        name, *fields = line.split()
        if name in names:
            user, nice, system, _idle, _iowait, *rest = map(int, fields)
            # irq, softirq, steal; a guest's time is already in the user's.
            ticks += user + nice + system + sum(rest[:3])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_megabytes() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM")


def least_cosine(vectors: Vectors, reference: Vectors) -> float:
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    return float(((vectors * reference).sum(axis=1) / lengths).min())


def take_turn(embed: Embed, texts: list[str], order: list[int], reference: Vectors) -> Turn:
    """Embed the texts in an order, once; restoring it is not counted."""
    given = [texts[row] for row in order]
    cpus = sorted(os.sched_getaffinity(0))
    gc.collect()
    busy = busy_seconds(Path("/proc/stat").read_text(), cpus)
    cpu, began = time.process_time(), time.perf_counter()
    answer = embed(given)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    busy = busy_seconds(Path("/proc/stat").read_text(), cpus) - busy
    vectors = np.empty(answer.shape, np.float32)
    vectors[order] = answer
    return Turn(
        texts=len(texts),
        seconds=seconds,
        cpu=cpu,
        others=max(0.0, busy - cpu) / (seconds * len(cpus)),
        least_cosine=least_cosine(vectors[: len(reference)], reference),
        peak=peak_megabytes(),
    )


def main(name: str, task: Task) -> None:
    # What a library prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    arm = ARMS[name]
    texts = json.loads(Path(task.texts).read_text())[: arm.most]
    order = list(range(len(texts)))
    if arm.is_sorted:
        order.sort(key=lambda row: -len(texts[row].split()))
    reference = np.load(task.reference)[: len(texts)]
    few = len(reference)
    try:
        embed = arm.open(task.setup)
        # What a first call pays for, such as the growth of an arena, is no part of any turn.
        warm_up = take_turn(embed, texts[:few], [row for row in order if row < few], reference)
        print(json.dumps(warm_up._asdict()), file=answers)
        for _ in sys.stdin:
            print(json.dumps(take_turn(embed, texts, order, reference)._asdict()), file=answers)
    except Exception as error:  # whatever it is, it is this contender's result
        text = str(error).partition("\n")[0]
        print(json.dumps({"error": f"{type(error).__name__}: {text}"}), file=answers)


if __name__ == "__main__":
    _fields = json.loads(sys.argv[2])
    main(sys.argv[1], Task(**_fields | {"setup": Setup(**_fields["setup"])}))
    # Nothing is closed: a contender's way of closing down is not what is measured.
    os._exit(0)

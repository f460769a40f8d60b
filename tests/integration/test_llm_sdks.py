"""Unmodified SDKs of OpenAI and Anthropic over a pool, on real sockets: what they raise."""

import json
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from shared.infrastructure.balancing import (
    AnswerTimeoutConfig,
    FirstTokenTimeoutError,
    InvalidResponseError,
    LLMHost,
    NoHostAvailableError,
    StreamIdleTimeoutError,
    StreamTruncatedError,
)
from shared.infrastructure.balancing.httpx2_transport import balanced_transport
from shared.infrastructure.http import TimeoutConfig
from shared.infrastructure.resilience import DeadlineExceededError, RetryConfig, ServiceError
from tests.scripted_host import (
    ScriptedHost,
    Step,
    answer,
    chat,
    chat_stream,
    choice,
    event,
    silence,
    stream,
)

MESSAGES: Any = [{"role": "user", "content": "hi"}]
SOON = AnswerTimeoutConfig(first_token=0.1, idle=0.1)
BROKEN = event({"error": {"message": "out of memory", "code": 500}})


def http_over(*hosts: ScriptedHost, **options: Any) -> httpx2.AsyncClient:
    configs = [LLMHost(name, host.url) for name, host in zip("ab", hosts, strict=False)]
    options.setdefault("retry_config", None)
    transport = balanced_transport(options.pop("configs", configs), **options)
    return httpx2.AsyncClient(transport=transport, timeout=30.0)


def openai_over(
    *hosts: ScriptedHost, max_retries: int = 0, timeout: float = 30.0, **options: Any
) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key="k",
        base_url="http://pool/v1",
        max_retries=max_retries,
        timeout=timeout,
        http_client=http_over(*hosts, **options),
    )


def anthropic_over(*hosts: ScriptedHost, **options: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        api_key="k", base_url="http://pool", max_retries=0, http_client=http_over(*hosts, **options)
    )


async def said(client: openai.AsyncOpenAI) -> str:
    asked = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    return "".join([one.choices[0].delta.content or "" async for one in asked if one.choices])


TIMEOUT, CONNECTION = openai.APITimeoutError, openai.APIConnectionError
ELSEWHERE = {"configs": [LLMHost("a", "http://a", models=frozenset({"other"}))]}
REQUESTS: dict[str, tuple[Step, dict[str, Any], type[ServiceError], type[Exception]]] = {
    "first token": (silence(), {"answer_timeouts": SOON}, FirstTokenTimeoutError, TIMEOUT),
    "deadline": (
        silence(),
        {"timeout_config": TimeoutConfig(total=0.1)},
        DeadlineExceededError,
        TIMEOUT,
    ),
    "its own timeout": (silence(), {"timeout": 0.1}, FirstTokenTimeoutError, TIMEOUT),
    "no answer": (answer(b"<html>"), {}, InvalidResponseError, CONNECTION),
    "refused": (chat("hi"), ELSEWHERE, NoHostAvailableError, CONNECTION),
}


@pytest.mark.parametrize("case", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_openai_raises_its_own_error_from_ours(case: Any, streamed: bool) -> None:
    step, options, own, theirs = case
    async with ScriptedHost(step) as host, openai_over(host, **options) as client:
        with pytest.raises(theirs) as caught:
            await client.chat.completions.create(model="m", messages=MESSAGES, stream=streamed)
    assert type(caught.value) is theirs
    assert isinstance(caught.value.__cause__, own)


STREAMS: dict[str, tuple[Step, type[ServiceError], type[Exception]]] = {
    "idle": (chat_stream("hello", "stall", after=2), StreamIdleTimeoutError, TIMEOUT),
    "truncated": (chat_stream("hello", "fin", after=2), StreamTruncatedError, CONNECTION),
}


@pytest.mark.parametrize("case", STREAMS.values(), ids=STREAMS)
async def test_openai_raises_its_own_error_in_mid_stream(case: Any) -> None:
    step, own, theirs = case
    async with ScriptedHost(step) as host, openai_over(host, answer_timeouts=SOON) as client:
        with pytest.raises(theirs) as caught:
            await said(client)
    cause: Any = caught.value.__cause__
    assert isinstance(cause, own)
    assert issubclass(type(cause), httpx2.HTTPError)
    assert cause.host == "a"
    assert cause.__cause__ is not cause


async def test_openai_reads_an_error_inside_a_stream_by_itself() -> None:
    step = stream([event(choice({"content": "h"})), BROKEN], pause=0.05)
    async with ScriptedHost(step) as host, openai_over(host) as client:
        with pytest.raises(openai.APIError, match="out of memory"):
            await said(client)


@pytest.mark.parametrize("case", REQUESTS.values(), ids=REQUESTS)
async def test_anthropic_raises_its_own_error_from_ours(case: Any) -> None:
    step, options, own, theirs = case
    seconds = options.get("timeout", 30.0)
    options = {name: value for name, value in options.items() if name != "timeout"}
    async with ScriptedHost(step) as host, anthropic_over(host, **options) as client:
        with pytest.raises(getattr(anthropic, theirs.__name__)) as caught:
            await client.with_options(timeout=seconds).messages.create(
                model="m", max_tokens=5, messages=MESSAGES
            )
    assert isinstance(caught.value.__cause__, own)


async def test_anthropic_lets_an_error_of_its_http_library_through_in_mid_stream() -> None:
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}}
    sent = f"event: content_block_delta\ndata: {json.dumps(text)}\n\n".encode()
    async with ScriptedHost(stream([sent])) as host, anthropic_over(host) as client:
        answers = await client.messages.create(
            model="m", max_tokens=5, messages=MESSAGES, stream=True
        )
        with pytest.raises(httpx2.RemoteProtocolError) as caught:
            async for _ in answers:
                pass
    assert isinstance(caught.value, StreamTruncatedError)


async def test_retries_of_an_sdk_do_not_multiply_attempts_at_error_answers() -> None:
    async with ScriptedHost(answer({}, status=503)) as host:
        async with openai_over(host, max_retries=2) as client:
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model="m", messages=MESSAGES)
        assert len(host.requests) == 1


async def test_an_upload_goes_on_at_the_next_host() -> None:
    async with (
        ScriptedHost(answer({}, status=500)) as bad,
        ScriptedHost(answer({"text": "heard"})) as good,
    ):
        names = {"w": "whisper"}
        configs = [LLMHost("a", bad.url, models=names), LLMHost("b", good.url, models=names)]
        async with openai_over(configs=configs, retry_config=RetryConfig()) as client:
            heard = await client.audio.transcriptions.create(
                model="w", file=("a.wav", b"x" * 100_000)
            )
    assert heard.text == "heard"
    assert [len(host.requests) for host in (bad, good)] == [1, 1]
    assert b"whisper" in good.requests[0].body

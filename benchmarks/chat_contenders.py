"""What `http_client` measures with a chat completion: each entry returns the text of one answer."""

# ruff: noqa: PLC0415 - a library that is missing must not keep the others from running

from functools import partial
from typing import Any

from benchmarks.http_contenders import FLAVOURS, PATIENCE, Call, Make, stack_on, wire_of
from benchmarks.http_server import TEXT, Target

ANSWER = TEXT

_MODEL = "gpt-4o-mini"
_MESSAGES: list[Any] = [
    {"role": "system", "content": "You explain terms of software design in one sentence."},
    {"role": "user", "content": "What does a circuit breaker do?"},
]
_REQUEST = {"model": _MODEL, "messages": _MESSAGES}


async def _ours(library: str, target: Target) -> Call:
    client = stack_on(library, target.http[0], transport=wire_of(library))

    async def call(path: str) -> object:
        answer = (await client.post(path, json=_REQUEST)).json()
        return answer["choices"][0]["message"]["content"]

    return call


async def _composed_by_hand(target: Target) -> Call:
    import aiobreaker
    import aiolimiter
    import httpx
    import tenacity

    client = httpx.AsyncClient(base_url=target.http[0], timeout=PATIENCE)
    breaker = aiobreaker.CircuitBreaker()
    limiter = aiolimiter.AsyncLimiter(100_000_000, 1.0)

    async def post(path: str) -> httpx.Response:
        response = await client.post(path, json=_REQUEST)
        return response.raise_for_status()

    @tenacity.retry(
        stop=tenacity.stop_after_attempt(4), wait=tenacity.wait_random_exponential(max=60)
    )
    async def call(path: str) -> object:
        async with limiter:
            answer = (await breaker.call_async(post, path)).json()
        return answer["choices"][0]["message"]["content"]

    return call


async def _openai(target: Target) -> Call:
    import openai

    client = openai.AsyncOpenAI(base_url=f"{target.http[0]}/v1", api_key="none", timeout=PATIENCE)

    async def call(_path: str) -> object:
        answer = await client.chat.completions.create(model=_MODEL, messages=_MESSAGES)
        return answer.choices[0].message.content

    return call


async def _litellm_router(hosts: int, target: Target) -> Call:
    import litellm

    litellm.suppress_debug_info = True
    router = litellm.Router(
        model_list=[
            {
                "model_name": "chat",
                "litellm_params": {
                    "model": f"openai/{_MODEL}",
                    "api_base": f"{origin}/v1",
                    "api_key": "none",
                    "timeout": PATIENCE,
                },
            }
            for origin in target.http[:hosts]
        ]
    )

    async def call(_path: str) -> object:
        answer = await router.acompletion(model="chat", messages=_MESSAGES)
        return answer.choices[0].message.content

    return call


ARMS: dict[str, Make] = {f"ours on {library}": partial(_ours, library) for library in FLAVOURS} | {
    "tenacity + aiobreaker + aiolimiter": _composed_by_hand,
    "openai": _openai,
    "litellm Router, 1 host": partial(_litellm_router, 1),
    "litellm Router, 3 hosts": partial(_litellm_router, 3),
}

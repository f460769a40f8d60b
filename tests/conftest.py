from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from examples.demo.processes import LlamaHost, serving_sync


@pytest.fixture(scope="session")
def llama_hosts() -> Iterator[list[LlamaHost]]:
    """Three LLM hosts that run for the whole session; a test that kills one starts its own."""
    hosts = [LlamaHost(f"llm-{number}") for number in (1, 2, 3)]
    with serving_sync(*hosts):
        yield hosts


@pytest.fixture
def fresh_llama_hosts() -> Iterator[Callable[[int], list[LlamaHost]]]:
    """Start as many LLM hosts as the test asks for, for this test alone."""
    with contextlib.ExitStack() as stack:

        def start(count: int) -> list[LlamaHost]:
            hosts = [LlamaHost(f"fresh-{number + 1}") for number in range(count)]
            stack.enter_context(serving_sync(*hosts))
            return hosts

        yield start

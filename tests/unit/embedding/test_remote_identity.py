from typing import Any

import httpx
import numpy as np
import pytest
from embedding_fakes import DIMENSION, FakeBackend
from remote_server import Body, Handler, Remote, entry, good

from services.embedding import (
    EmbeddingSettings,
    NotOfferedError,
    ProductionEmbeddingService,
    RemoteBackend,
)
from services.embedding.errors import ModelChangedError
from services.embedding.options import EmbedOptions, Reading
from services.embedding.process import EmbeddingApp

ONES = [1.0] * DIMENSION


def telling(fingerprint: str) -> Handler:
    """Return what answers as a server of ours does."""

    def answer(body: Body) -> httpx.Response:
        response = in_its_api(body)
        response.headers["x-embedding-fingerprint"] = fingerprint
        return response

    return answer


def in_its_api(body: Body) -> httpx.Response:
    """Answer in the API that is spoken."""
    if "inputs" in body:
        return httpx.Response(200, json=[ONES for _ in body["inputs"]])
    if "texts" in body:
        return httpx.Response(200, json={"embeddings": {"float": [ONES for _ in body["texts"]]}})
    return good(body)


@pytest.mark.parametrize(
    "change", [{"headers": {"x-embedding-fingerprint": "two"}}, {"model": "m-2"}]
)
async def test_another_model_in_mid_life_is_an_error_at_once(change: dict[str, Any]) -> None:
    def told(model: str = "m-1", headers: dict[str, str] | None = None) -> httpx.Response:
        return httpx.Response(
            200,
            json={"data": [entry(0, "a")], "model": model},
            headers=headers or {"x-embedding-fingerprint": "one"},
        )

    async with Remote(lambda _: told()) as remote:
        remote.handler = lambda _: told(**change)
        (outcome,) = await remote.ask("a")
        assert isinstance(outcome, ModelChangedError)
        assert len(remote.requests) == 2
        await remote.backend.stop()
        await remote.backend.start()
        await remote.ask("a")


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({}, True),
        ({"model_name": "n"}, False),
        ({"remote_url": "http://other/v1"}, False),
        ({"vector_space": "s"}, False),
        ({"remote_api": "tei"}, False),
    ],
)
async def test_servers_that_tell_no_fingerprint_have_one_of_what_is_known(
    change: dict[str, Any], is_same: bool
) -> None:
    async with Remote(in_its_api) as one, Remote(in_its_api, **change) as other:
        fingerprints = {one.backend.facts.fingerprint, other.backend.facts.fingerprint}
    assert (len(fingerprints) == 1) is is_same


@pytest.mark.parametrize(
    ("change", "told", "is_same"),
    [
        ({"remote_url": "http://replica/v1", "model_name": "alias"}, "one", True),
        ({}, "two", False),
        # It has prompts and a scale of its own.
        ({"remote_api": "tei"}, "one", False),
    ],
)
async def test_replicas_are_equal_by_the_fingerprint_that_they_tell(
    change: dict[str, Any], told: str, is_same: bool
) -> None:
    async with Remote(telling("one")) as one, Remote(telling(told), **change) as other:
        fingerprints = {one.backend.facts.fingerprint, other.backend.facts.fingerprint}
    assert (len(fingerprints) == 1) is is_same
    assert "one" not in fingerprints  # as a model here may be called


async def test_a_declared_vector_space_is_the_fingerprint_whatever_the_server_tells() -> None:
    for handler in (good, telling("one")):
        async with Remote(handler, vector_space="s") as remote:
            assert remote.backend.facts.fingerprint == "s"


async def test_our_own_server_applies_its_prompts_and_leaves_vectors_as_they_are() -> None:
    query = Reading(input_type="query")
    async with Remote(telling("one")) as remote:
        assert remote.backend.facts.takes_input_type
        await remote.ask("a", reading=query)
        asked = remote.bodies[-1]
        remote.handler = lambda body: (
            httpx.Response(422, text="no base64")
            if "encoding_format" in body
            else telling("one")(body)
        )
        await remote.ask("b", reading=query)
        again = remote.bodies[-1]
        await remote.ask("c")
    assert (asked["input"], asked["input_type"], asked["normalize"]) == (["a"], "query", False)
    assert again == {"model": "m", "input": ["b"], "input_type": "query", "normalize": False}
    assert "input_type" not in remote.bodies[-1]


@pytest.mark.parametrize("api", ["openai", "tei", "cohere"])
async def test_other_servers_are_told_no_input_type(api: str) -> None:
    async with Remote(in_its_api, remote_api=api) as remote:
        assert not remote.backend.facts.takes_input_type
        (refused,) = await remote.backend.prepare(["a"], Reading(input_type="query"))
    assert isinstance(refused, NotOfferedError)


async def test_a_server_that_is_not_ours_any_more_is_not_asked_as_if() -> None:
    async with Remote(telling("one")) as remote:
        await remote.backend.stop()
        remote.handler = good
        await remote.backend.start()
        assert not remote.backend.facts.takes_input_type
        await remote.ask("a")
    assert "normalize" not in remote.bodies[-2] | remote.bodies[-1]


async def test_a_service_that_asks_our_own_server_answers_as_that_one_does() -> None:
    async with ProductionEmbeddingService(EmbeddingSettings(), backend=FakeBackend()) as inner:
        settings = EmbeddingSettings(remote_url="http://ours/v1")
        ours = RemoteBackend(settings, transport=httpx.ASGITransport(EmbeddingApp(inner)))
        async with ProductionEmbeddingService(settings, backend=ours) as outer:
            assert outer.facts.fingerprint != inner.facts.fingerprint
            for options in (
                EmbedOptions(input_type="query"),
                EmbedOptions(input_type="document", normalize=False),
                EmbedOptions(),
            ):
                there = await inner.embed_batch(["a", "b"], options)
                here = await outer.embed_batch(["a", "b"], options)
                assert np.allclose(here.vectors, there.vectors)
                assert list(here.token_counts) == list(there.token_counts)

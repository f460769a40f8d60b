import httpx
import pytest
from embedding_fakes import FakeBackend
from remote_server import AS_IT_IS, Body, Remote, failing, good, same

from services.embedding import FallbackBackend, TextRejectedError
from services.embedding.backends.protocol import Prepared
from services.embedding.errors import VectorSpaceError
from services.embedding.outcome import Outcome
from shared.infrastructure.http import UpstreamError
from shared.infrastructure.resilience import ConfigurationError

TEXTS = ["a", "b", "c"]


async def embedded_by(backend: FallbackBackend, *texts: str) -> list[Outcome]:
    prepared = await backend.prepare(texts, AS_IT_IS)
    batch = [item for item in prepared if isinstance(item, Prepared)]
    assert len(batch) == len(texts)
    return list(await backend.embed(batch))


async def test_the_next_does_what_the_first_could_not() -> None:
    first, second = FakeBackend(), FakeBackend()
    backend = FallbackBackend([first, second])
    await backend.start()
    assert same(await embedded_by(backend, *TEXTS), TEXTS)
    assert not second.batches
    first.error = UpstreamError("down")
    assert same(await embedded_by(backend, *TEXTS), TEXTS)
    assert second.batches == [TEXTS]
    await backend.stop()
    assert (first.stops, second.stops) == (1, 1)


async def test_a_text_that_is_rejected_is_not_passed_on() -> None:
    first, second = FakeBackend(), FakeBackend()
    first.poison = {"b"}
    backend = FallbackBackend([first, second])
    await backend.start()
    outcomes = await embedded_by(backend, *TEXTS)
    assert isinstance(outcomes[1], TextRejectedError)
    assert not second.batches


async def test_if_all_fail_the_last_says_why() -> None:
    backends = [FakeBackend(), FakeBackend()]
    backends[0].error, backends[1].error = UpstreamError("first"), UpstreamError("second")
    backend = FallbackBackend(backends)
    await backend.start()
    outcomes = await embedded_by(backend, *TEXTS)
    assert [str(outcome) for outcome in outcomes] == ["second"] * 3


@pytest.mark.parametrize("facts", [{"fingerprint": "other"}, {"dimension": 9}])
async def test_a_backend_that_makes_other_vectors_is_refused_at_the_start(
    facts: dict[str, object],
) -> None:
    first, wrong = FakeBackend(), FakeBackend(model_name="wrong/model", **facts)
    with pytest.raises(VectorSpaceError, match=r"backend 2, wrong/model"):
        await FallbackBackend([first, wrong]).start()
    assert (first.stops, wrong.stops) == (1, 1)


async def test_a_fallback_that_does_not_start_stops_the_others() -> None:
    first, second = FakeBackend(), FakeBackend()
    second.start_error = UpstreamError("down")
    with pytest.raises(UpstreamError):
        await FallbackBackend([first, second]).start()
    assert first.stops == 1


def test_a_fallback_needs_backends() -> None:
    with pytest.raises(ConfigurationError):
        FallbackBackend([])


async def test_a_batch_fits_every_backend() -> None:
    backend = FallbackBackend([FakeBackend(max_rows=8), FakeBackend(max_rows=4, max_tokens=100)])
    assert (backend.facts.max_rows, backend.facts.max_tokens) == (4, 100)


def as_ours(body: Body) -> httpx.Response:
    response = good(body)
    response.headers["x-embedding-fingerprint"] = "fake"
    return response


async def test_a_server_stands_in_for_a_model_here_only_if_that_is_declared() -> None:
    local, remote = FakeBackend(), Remote(as_ours)
    with pytest.raises(VectorSpaceError, match="vector_space"):
        await FallbackBackend([local, remote.backend]).start()
    declared = Remote(as_ours, vector_space=local.facts.fingerprint)
    backend = FallbackBackend([local, declared.backend])
    await backend.start()
    local.error = UpstreamError("down")
    assert same(await embedded_by(backend, *TEXTS), TEXTS)
    assert declared.batches == [TEXTS]
    await backend.stop()


async def test_servers_of_one_declared_vector_space_stand_in_for_each_other() -> None:
    first, second = Remote(vector_space="s"), Remote(vector_space="s", model_name="n")
    backend = FallbackBackend([first.backend, second.backend])
    await backend.start()
    first.handler = failing(401, "no such key")
    assert same(await embedded_by(backend, *TEXTS), TEXTS)
    assert second.batches == [TEXTS]
    assert len(backend.snapshot()["backends"]) == 2
    await backend.stop()

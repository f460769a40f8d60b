import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from services.embedding.errors import InvalidVectorsError
from services.embedding.similarity import Metric, similarity, top_k
from shared.infrastructure.resilience import ConfigurationError

METRICS: tuple[Metric, ...] = ("cosine", "dot", "euclidean", "manhattan")


def by_hand(a: np.ndarray, b: np.ndarray, metric: Metric) -> np.ndarray:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    gaps = a[:, None] - b
    if metric == "euclidean":
        return -np.sqrt((gaps**2).sum(axis=-1))
    if metric == "manhattan":
        return -np.abs(gaps).sum(axis=-1)
    dots = a @ b.T
    if metric == "dot":
        return dots
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    return np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)


def some(rows: int, seed: int, dimension: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)


# Small whole numbers: every product and sum is exact, so that ties are ties.
WHOLE = st.integers(-3, 3).map(float)


def whole(rows: st.SearchStrategy[int]) -> st.SearchStrategy[np.ndarray]:
    return rows.flatmap(lambda n: npst.arrays(np.float32, (n, 3), elements=WHOLE))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_pair_is_scored_as_by_hand(metric: Metric, dtype: type) -> None:
    a, b = some(300, 1).astype(dtype), some(70, 2).astype(dtype)
    scores = similarity(a, b, metric)
    assert (scores.dtype, scores.shape) == (np.float32, (300, 70))
    np.testing.assert_allclose(scores, by_hand(a, b, metric), rtol=2e-5, atol=2e-5)


def test_close_vectors_have_the_distance_they_have() -> None:
    a = some(1, 3, 384) * 100
    b = a.copy()
    b[0, 7] += np.float32(0.01)
    assert similarity(a, b, "euclidean")[0, 0] == pytest.approx(-abs(b[0, 7] - a[0, 7]), rel=1e-3)
    assert similarity(a, a, "euclidean")[0, 0] == pytest.approx(0.0, abs=1e-4)


def test_one_vector_needs_no_second_axis_and_a_zero_one_is_like_none() -> None:
    assert similarity([1.0, 0.0], [[2.0, 0.0], [0.0, 3.0], [0.0, 0.0]]).tolist() == [[1.0, 0, 0]]
    assert similarity([1, 2], [3, 4], "dot").tolist() == [[11.0]]


def test_half_precision_makes_no_ties() -> None:
    corpus = np.full((2, 64), 1.0, np.float16)
    corpus[1, 0] += np.float16(0.001)
    found = top_k(corpus[1], corpus, 2, metric="dot")
    assert found.indices.tolist() == [[1, 0]]
    assert found.scores[0, 0] > found.scores[0, 1]


@given(
    whole(st.integers(0, 5)),
    whole(st.integers(0, 25)),
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from(["dot", "manhattan"]),
)
def test_the_best_are_those_of_a_sort_of_all_whatever_the_block(
    queries: np.ndarray, corpus: np.ndarray, k: int, block: int, metric: Metric
) -> None:
    scores = by_hand(queries, corpus, metric)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = top_k(queries, corpus, k, metric=metric, block=block)
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_array_equal(found.scores, np.take_along_axis(scores, order, 1))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("order", ["as it comes", "worst first", "best first"])
def test_the_best_of_many_are_found_in_any_order(metric: Metric, order: str) -> None:
    queries, corpus = some(3, 4), some(4000, 5)
    if order != "as it comes":
        step = -1 if order == "best first" else 1
        corpus = corpus[np.argsort(by_hand(queries[:1], corpus, metric)[0])][::step]
    found = top_k(queries, corpus, 10, metric=metric, block=512)
    scores = by_hand(queries, corpus, metric)
    best = -np.sort(-scores, axis=1)[:, :10]
    np.testing.assert_allclose(found.scores, best, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(
        np.take_along_axis(scores, found.indices, 1), best, rtol=2e-5, atol=2e-5
    )


def test_more_queries_than_a_block_holds_have_each_their_own() -> None:
    corpus = np.eye(600, dtype=np.float32)
    assert top_k(corpus, corpus, 1, block=100).indices[:, 0].tolist() == list(range(600))


def test_memory_grows_with_the_block_and_not_with_the_corpus(tmp_path) -> None:
    path = tmp_path / "corpus.npy"
    np.save(path, some(200_000, 6, 8).astype(np.float16))
    corpus = np.load(path, mmap_mode="r")
    queries = some(256, 7, 8)
    tracemalloc.start()
    top_k(queries, corpus, 5, block=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 2**20  # all scores would be 205 MB, and the corpus 6 MB


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([[1.0, 2.0]], [[1.0]]),
        ([[1.0], [2.0, 3.0]], [[1.0]]),
        ([["a"]], [[1.0]]),
        ([[True]], [[1.0]]),
        ([[1j]], [[1.0]]),
        ([[[1.0]]], [[1.0]]),
        ([], [[1.0]]),
        (1.0, [[1.0]]),
        ([[np.nan]], [[1.0]]),
        ([[1.0]], [[np.inf]]),
        ([[1e300]], [[1.0]]),
    ],
)
def test_vectors_that_cannot_be_compared_are_refused(a: object, b: object) -> None:
    with pytest.raises(InvalidVectorsError):
        similarity(a, b)  # type: ignore[arg-type]
    with pytest.raises(InvalidVectorsError):
        top_k(a, b, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", ["dot", "manhattan"])
def test_scores_beyond_float32_are_refused(metric: Metric) -> None:
    with pytest.raises(InvalidVectorsError, match="leave float32"):
        similarity([3e38, 3e38], [-3e38, -3e38], metric)


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 1, "block": 0}, {"k": 1, "metric": "angle"}])
def test_wrong_options_are_named(options: dict) -> None:
    with pytest.raises(ConfigurationError):
        top_k([[1.0]], [[1.0]], **options)

"""How alike vectors are, and which of many are most alike, in float32 and bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from services.embedding.errors import InvalidVectorsError
from shared.infrastructure.local_embeddings import normalized
from shared.infrastructure.resilience import ConfigurationError

Metric: TypeAlias = Literal["cosine", "dot", "euclidean", "manhattan"]
Scores: TypeAlias = NDArray[np.float32]

DEFAULT_BLOCK = 8192
_METRICS = ("cosine", "dot", "euclidean", "manhattan")
_QUERIES = 256
# Better scores than this many times k are cut down before they are sorted.
_CROWD = 4


class Neighbours(NamedTuple):
    """The most alike rows of a corpus.

    Attributes:
        indices: Rows of the corpus, best first; int64 of shape (m, min(k, n)).
        scores: How alike each is; float32 of the same shape.
    """

    indices: NDArray[np.int64]
    scores: Scores


def similarity(a: ArrayLike, b: ArrayLike, metric: Metric = "cosine") -> Scores:
    """Return how alike each vector of `a` is to each of `b`; more is more alike.

    Arrays of any real number format are computed with in float32 (squares of distances in
    float64), so that half precision makes no ties.

    Args:
        a: Shape (m, dim), or (dim,) for one vector.
        b: Shape (n, dim), or (dim,) for one vector.
        metric: `cosine` of the angle, from -1 to 1, and 0 if one vector is zero; `dot` product; or
            the distance, below zero: `euclidean` or `manhattan`.

    Returns:
        Float32 of shape (m, n).

    Raises:
        InvalidVectorsError: The shapes do not fit, or a number or a score is not finite.
        ConfigurationError: There is no such metric.
    """
    left, right = _pair(a, b, metric)
    scores: Scores = np.empty((len(left), len(right)), np.float32)
    wide = _readied(right, metric)
    for rows in _slices(len(left), _QUERIES):
        scores[rows] = _scored(_readied(left[rows], metric), wide, metric)
    return scores


def top_k(
    queries: ArrayLike,
    corpus: ArrayLike,
    k: int,
    *,
    metric: Metric = "cosine",
    block: int = DEFAULT_BLOCK,
) -> Neighbours:
    """Return the `k` rows of a corpus that are most alike to each query, best first.

    Every row is compared: nothing is approximate. Of rows with the same score, the one that comes
    first is better. The corpus is read a block at a time, so that it may be a memory-mapped file,
    and no more scores than those of a block are in memory.

    Args:
        queries: Shape (m, dim), or (dim,) for one.
        corpus: Shape (n, dim).
        k: Rows wanted of each query; at least 1; there are fewer if the corpus has.
        metric: As in `similarity`.
        block: Rows of the corpus that are compared at a time; at least 1.

    Raises:
        InvalidVectorsError: The shapes do not fit, or a number or a score is not finite.
        ConfigurationError: There is no such metric, or `k` or `block` is below 1.
    """
    if k < 1 or block < 1:
        raise ConfigurationError(f"k and block must be at least 1, not {k} and {block}")
    left, right = _pair(queries, corpus, metric)
    k = min(k, len(right))
    best = Neighbours(
        np.zeros((len(left), k), np.int64), np.full((len(left), k), -np.inf, np.float32)
    )
    ready = _readied(left, metric)
    for rows in _slices(len(right), block) if k else ():
        part = _readied(right[rows], metric)
        for asked in _slices(len(left), _QUERIES):
            seen = Neighbours(best.indices[asked], best.scores[asked])
            _improve(seen, _scored(ready[asked], part, metric), rows.start)
    return best


def _improve(best: Neighbours, scores: Scores, start: int) -> None:
    """Take the best of a block's scores, whose rows begin at `start`, into what was best so far."""
    k = best.scores.shape[1]
    better = scores > best.scores[:, -1:]
    if k < scores.shape[1] and np.count_nonzero(better) > _CROWD * best.scores.size:
        better &= scores >= np.partition(scores, -k, axis=1)[:, -k, None]
    rows, columns = np.nonzero(better)
    if not len(rows):
        return
    changed, counts = np.unique(rows, return_counts=True)
    every = np.concatenate([np.repeat(changed, k), rows])
    score = np.concatenate([best.scores[changed].ravel(), scores[rows, columns]])
    index = np.concatenate([best.indices[changed].ravel(), columns + start])
    order = np.lexsort((index, -score, every))
    firsts = np.concatenate([[0], np.cumsum(counts + k)[:-1]])
    kept = order[firsts[:, None] + np.arange(k)]
    best.scores[changed], best.indices[changed] = score[kept], index[kept]


def _scored(a: NDArray[Any], b: NDArray[Any], metric: Metric) -> Scores:
    """Return the scores of vectors that are readied."""
    scores: Scores
    with np.errstate(over="ignore", invalid="ignore"):
        if metric == "euclidean":
            squares = _squares(a)[:, None] + _squares(b) - 2.0 * (a @ b.T)
            scores = -np.sqrt(np.maximum(squares, 0.0)).astype(np.float32)
        elif metric == "manhattan":
            scores = np.empty((len(a), len(b)), np.float32)
            for row, vector in enumerate(a):
                scores[row] = -np.abs(b - vector).sum(axis=1)
        else:
            scores = a @ b.T
    if metric == "cosine":
        np.clip(scores, -1.0, 1.0, out=scores)
    elif not np.isfinite(scores).all():
        raise InvalidVectorsError(f"the {metric} scores of such long vectors leave float32")
    return scores


def _squares(vectors: NDArray[Any]) -> NDArray[Any]:
    squares: NDArray[Any] = np.einsum("ij,ij->i", vectors, vectors)
    return squares


def _readied(vectors: NDArray[Any], metric: Metric) -> NDArray[Any]:
    """Return vectors as the metric wants them."""
    with np.errstate(over="ignore"):
        ready = np.ascontiguousarray(vectors, np.float32)
    if not np.isfinite(ready).all():
        raise InvalidVectorsError("vectors must be finite float32 numbers")
    if metric == "cosine":
        return normalized(ready)
    # The difference of two nearly equal squares is all rounding in float32.
    return ready.astype(np.float64) if metric == "euclidean" else ready


def _pair(a: ArrayLike, b: ArrayLike, metric: str) -> tuple[NDArray[Any], NDArray[Any]]:
    if metric not in _METRICS:
        raise ConfigurationError(f"metric must be one of {', '.join(_METRICS)}, not {metric!r}")
    left, right = _matrix(a), _matrix(b)
    if left.shape[1] != right.shape[1]:
        raise InvalidVectorsError(
            f"vectors of {left.shape[1]} and of {right.shape[1]} numbers cannot be compared"
        )
    return left, right


def _matrix(vectors: ArrayLike) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.asanyarray(vectors)
    except ValueError as exc:
        raise InvalidVectorsError(f"vectors must all have the same length: {exc}") from exc
    if array.dtype.kind not in "fiu":
        raise InvalidVectorsError(f"vectors must be real numbers, not {array.dtype}")
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or not array.shape[1]:
        raise InvalidVectorsError(
            f"vectors must have shape (n, dim) or (dim,), dim above 0, not {array.shape}"
        )
    return array


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))

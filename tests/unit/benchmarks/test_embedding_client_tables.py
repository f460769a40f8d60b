import json

import numpy as np
import pytest

from benchmarks.embedding_client import OURS, bars_table, faults_table, figures_table
from benchmarks.embedding_client_server import Replies, text_of, vectors_of
from benchmarks.embedding_client_worker import Turn, lost_and_wrong
from services.embedding.backends.remote.dialects import OpenAIDialect
from services.embedding.options import Reading

DIMENSION = 8


def turn(seconds: float, cpu: float, *, lost: int = 0, wrong: int = 0) -> Turn:
    return Turn(1_000, seconds, cpu, 0.0, lost, wrong)


def test_ratios_are_those_within_a_round() -> None:
    results = {
        OURS: [turn(1.0, 1.0), turn(2.0, 1.0), None],
        "AsyncOpenAI": [turn(9.0, 7.0), turn(20.0, 7.0), turn(1.0, 1.0)],
        "baseten-performance-client": [turn(0.9, 2.0), turn(1.8, 2.0), turn(1.0, 1.0)],
    }
    text = bars_table(results)
    assert "| AsyncOpenAI | ✓ 9.5 (9 to 10) | 7 (7 to 7) | ≥ 8 |" in text
    assert "| baseten-performance-client | ✗ 0.9 (0.9 to 0.9) | 2 (2 to 2) | ≥ 1 |" in text


def test_what_is_lost_or_wrong_counts_against_ours_only() -> None:
    results = {
        OURS: [turn(1.0, 1.0, lost=3)],
        "AsyncOpenAI": [turn(1.0, 1.0, wrong=2)],
        "x": [None],
    }
    text = faults_table(results)
    assert "| ours | ✗ 3 | ✓ 0 |" in text
    assert "| AsyncOpenAI | · 0 | · 2 |" in text
    assert "| x | it failed |" in text
    assert "| ours | 1,000 (1,000 to 1,000) | 1 (1 to 1) | 3 | 0 |" in figures_table(results)


def test_vectors_that_are_not_those_of_their_texts_are_found() -> None:
    vectors: list[object] = list(vectors_of(range(2_000), DIMENSION))
    assert lost_and_wrong(vectors, DIMENSION) == (0, 0)
    vectors[5], vectors[256] = vectors[256], vectors[5]
    vectors[9] = None
    assert lost_and_wrong(vectors, DIMENSION) == (1, 2)


def test_no_two_texts_have_the_same_vector() -> None:
    vectors = vectors_of(range(20_000), DIMENSION)
    assert len(np.unique(vectors, axis=0)) == 20_000


@pytest.mark.parametrize("as_base64", [True, False])
def test_the_server_answers_what_its_texts_stand_for(as_base64: bool) -> None:
    dialect = OpenAIDialect("m")
    dialect.as_base64 = as_base64
    numbers = [3, 299, 0]
    form = dialect.form(Reading())
    request = dialect.write([text_of(number) for number in numbers], form)
    _head, *parts = Replies(DIMENSION, 300).write(request)
    reply = dialect.read(b"".join(parts), {}, len(numbers))
    assert np.array_equal(reply.vectors, vectors_of(numbers, DIMENSION))
    assert json.loads(b"".join(parts))["usage"]["total_tokens"] == reply.total_tokens

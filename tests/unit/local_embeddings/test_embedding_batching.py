import numpy as np
import pytest

from shared.infrastructure.local_embeddings.batching import plan_batches


def plan(lengths, max_rows, max_tokens):
    batches = plan_batches(np.array(lengths), max_rows=max_rows, max_tokens=max_tokens)
    return [batch.tolist() for batch in batches]


def test_texts_of_one_length_share_a_pass_longest_first():
    assert plan([3, 9, 3, 8, 1], max_rows=2, max_tokens=100) == [[1, 3], [0, 2], [4]]


def test_padding_counts_against_the_token_limit():
    assert plan([5, 5, 2, 2, 2], max_rows=9, max_tokens=10) == [[0, 1], [2, 3, 4]]
    assert plan([6, 5, 4], max_rows=9, max_tokens=10) == [[0], [1, 2]]


def test_a_text_longer_than_the_limit_runs_alone():
    assert plan([50, 2, 2], max_rows=9, max_tokens=10) == [[0], [1, 2]]


def test_texts_without_tokens_and_no_texts_are_planned_too():
    assert plan([0, 0, 0], max_rows=2, max_tokens=4) == [[0, 1], [2]]
    assert plan([], max_rows=2, max_tokens=4) == []


@pytest.mark.parametrize("seed", range(20))
def test_every_row_runs_once_and_no_pass_exceeds_its_limits(seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 60, size=random.integers(1, 200))
    rows, tokens = int(random.integers(1, 40)), int(random.integers(1, 300))
    batches = list(plan_batches(lengths, max_rows=rows, max_tokens=tokens))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= tokens

import numpy as np
import pytest

from shared.infrastructure.local_embeddings.batching import plan_passes


def plan(lengths, max_rows, max_tokens, packed=False):
    passes = plan_passes(
        np.array(lengths), max_rows=max_rows, max_tokens=lambda: max_tokens, packed=packed
    )
    return [rows.tolist() for rows in passes]


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


def test_where_padding_costs_nothing_only_real_tokens_count():
    assert plan([9, 1, 1, 1, 4], max_rows=9, max_tokens=10, packed=True) == [[0], [4, 1, 2, 3]]
    assert plan([9, 1, 4], max_rows=9, max_tokens=14, packed=True) == [[0, 2, 1]]
    assert plan([50, 0, 2], max_rows=9, max_tokens=10, packed=True) == [[0], [2, 1]]


def test_a_limit_that_shrinks_meanwhile_holds_for_the_next_pass():
    limit = 8
    passes = plan_passes(np.full(6, 2), max_rows=9, max_tokens=lambda: limit)
    assert len(next(passes)) == 4
    limit = 2
    assert [len(rows) for rows in passes] == [1, 1]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_every_row_runs_once_and_no_pass_exceeds_its_limits(seed, packed):
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 60, size=random.integers(1, 200))
    rows, tokens = int(random.integers(1, 40)), int(random.integers(1, 300))
    batches = list(plan_passes(lengths, max_rows=rows, max_tokens=lambda: tokens, packed=packed))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= rows
        computed = lengths[batch].sum() if packed else len(batch) * lengths[batch].max()
        assert len(batch) == 1 or computed <= tokens

import random
from collections.abc import Sequence

import pytest
from scheduling_fakes import Item, facts

from services.embedding.scheduling import SchedulerConfig
from services.embedding.scheduling.batches import Batch
from services.embedding.scheduling.job import Load
from services.embedding.scheduling.sizing import Sizing


def formed(
    lengths: Sequence[int], *, rows: int = 32, tokens: float = 1024, packed: bool = False
) -> Batch:
    """Form a batch of the first length and what fits of the others."""
    jobs = [Item(length).job for length in lengths]
    batch = Batch(jobs[0], max_rows=rows, max_waste=1.5, packed=packed)
    batch.grow(jobs[1:], tokens)
    return batch


def lengths_of(batch: Batch) -> list[int]:
    return [job.tokens for job in batch.jobs]


@pytest.mark.parametrize(
    ("lengths", "limits", "expected", "closed_by"),
    [
        pytest.param([10], {}, [10], "empty", id="nothing else waits"),
        pytest.param([10, 50, 11, 9], {}, [10, 11, 9], "waste", id="outliers wait"),
        pytest.param([50, 10, 55, 12, 48], {}, [50, 48, 55], "waste", id="on both sides"),
        pytest.param([10, 10, 10, 10], {"rows": 3}, [10, 10, 10], "rows", id="rows"),
        pytest.param([10, 10, 10, 10], {"tokens": 30}, [10, 10, 10], "tokens", id="tokens"),
        pytest.param([10, 12, 9], {"tokens": 30}, [10, 9], "tokens", id="padded tokens"),
        pytest.param([10, 12, 9, 8], {"tokens": 32}, [10, 9, 8], "tokens", id="one side is full"),
        pytest.param([100, 5], {"tokens": 50}, [100], "oversize", id="too long goes alone"),
        pytest.param([10, 0], {"tokens": 20}, [10], "waste", id="an empty text"),
    ],
)
def test_a_batch_takes_the_nearest_lengths_within_its_limits(
    lengths: list[int], limits: dict[str, int], expected: list[int], closed_by: str
) -> None:
    batch = formed(lengths, **limits)
    assert lengths_of(batch) == expected
    assert batch.closed_by == closed_by


@pytest.mark.parametrize(
    ("lengths", "limits", "expected", "closed_by"),
    [
        pytest.param([10, 500, 20], {}, [10, 500, 20], "empty", id="any lengths"),
        pytest.param([10, 500, 20], {"tokens": 500}, [10], "tokens", id="real tokens"),
        pytest.param([10, 20, 30, 40], {"tokens": 60}, [10, 20, 30], "tokens", id="in order"),
        pytest.param([10, 20, 30], {"rows": 2}, [10, 20], "rows", id="rows"),
    ],
)
def test_packed_jobs_are_taken_as_they_come(
    lengths: list[int], limits: dict[str, int], expected: list[int], closed_by: str
) -> None:
    batch = formed(lengths, packed=True, **limits)
    assert lengths_of(batch) == expected
    assert batch.closed_by == closed_by


def test_of_one_length_the_first_in_line_comes_first() -> None:
    items = [Item(length) for length in (10, 12, 11, 12, 11)]
    batch = Batch(items[0].job, max_rows=4, max_waste=1.5, packed=False)
    batch.grow([item.job for item in items[1:]], 1024)
    assert batch.jobs == [items[at].job for at in (0, 2, 4, 1)]


def test_limits_hold_whatever_waits() -> None:
    rng = random.Random(1)
    for _ in range(300):
        lengths = [int(rng.lognormvariate(3, 1)) + 1 for _ in range(rng.randint(1, 80))]
        batch = formed(lengths, rows=16, tokens=400)
        sizes = lengths_of(batch)
        padded = len(sizes) * max(sizes)
        assert len(sizes) <= 16
        assert padded <= 400 or len(sizes) == 1
        assert padded * max(sizes) <= 1.5 * sum(size**2 for size in sizes)
        assert batch.cost == (padded, padded * max(sizes))


def sizing(costs: tuple[float, float, float], **of_facts: int) -> Sizing:
    rng = random.Random(1)
    known = Sizing(facts(**of_facts), SchedulerConfig())
    for _ in range(300):
        length, rows = rng.choice([8, 16, 64, 256]), rng.randint(1, 8)
        tokens, squares = rows * length, rows * length**2
        known.model.observe(tokens, squares, costs[0] + costs[1] * tokens + costs[2] * squares)
    return known


@pytest.mark.parametrize(
    ("costs", "length", "expected"),
    [
        pytest.param((1e-3, 1e-4, 0.0), 10, 256, id="never tiny"),
        pytest.param((2.5e-3, 1e-4, 0.0), 10, 500, id="until the fixed part is 5 percent"),
        pytest.param((2.5e-3, 5e-5, 5e-7), 100, 500, id="attention costs too"),
        pytest.param((0.1, 1e-4, 0.0), 10, 1024, id="never above the backend's own"),
    ],
)
def test_the_budget_amortises_what_every_batch_costs(
    costs: tuple[float, float, float], length: int, expected: float
) -> None:
    assert sizing(costs).budget(length) == pytest.approx(expected, rel=0.05)


def test_beside_somebody_who_waits_a_batch_takes_some_tens_of_milliseconds_more() -> None:
    slow = sizing((0.2, 1e-3, 0.0))
    assert slow.budget(10) == 1024
    assert slow.budget(10, brief=True) == pytest.approx(50, rel=0.05)


def test_before_the_first_batch_the_budget_is_within_the_backends() -> None:
    new = Sizing(facts(), SchedulerConfig())
    assert 256 <= new.budget(10) <= 1024


def test_work_counts_what_full_batches_would_take() -> None:
    known = sizing((2.5e-3, 1e-4, 0.0))  # batches of 500 tokens
    assert known.work(Load()) == 0.0
    assert known.work(Load(100, 1000, 10_000)) == pytest.approx(3.2 * 2.5e-3 + 0.1, rel=0.03)
    assert known.work(Load(10, 1000, 100_000)) == pytest.approx(2 * 2.5e-3 + 0.1, rel=0.03)
    assert known.work(Load(1, 10, 100)) == pytest.approx(2.5e-3 / 32 + 0.001, rel=0.03)


def test_a_busy_backend_that_pads_is_known_to_be_slower() -> None:
    known = sizing((0.0, 1e-4, 0.0))
    batch = formed([20, 18, 18, 18, 18])
    batch.backlogged = True
    for _ in range(100):
        known.observe(batch, 2 * known.work(batch.load))
    assert known.efficiency == pytest.approx(0.5, rel=0.2)


def test_a_batch_with_nothing_behind_it_says_nothing_of_a_busy_backend() -> None:
    known = sizing((0.0, 1e-4, 0.0))
    for _ in range(100):
        known.observe(formed([20, 18]), 1.0)
    assert known.efficiency == 1.0


def test_a_call_whose_texts_are_not_known_is_thought_of_as_recent_ones() -> None:
    known = sizing((1e-3, 1e-4, 0.0))
    for _ in range(400):
        known.observe(formed([20, 20, 20, 20]), 0.01)
    large, small = known.typical(2000), known.typical(7)
    assert (large.rows, large.squares) == pytest.approx((100, 40_000), rel=0.05)
    assert (small.rows, small.tokens, small.squares) == (1, 7, 49)

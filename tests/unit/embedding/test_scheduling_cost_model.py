import random
from collections.abc import Iterator

import pytest

from services.embedding.scheduling import CostModel

TRUTHS = [
    pytest.param((1.1e-3, 6.8e-5, 3e-8), id="cpu"),
    pytest.param((1e-3, 1e-6, 1e-10), id="gpu"),
    pytest.param((0.1, 1e-6, 0.0), id="far away"),
    pytest.param((0.0, 1e-4, 1e-7), id="nothing is fixed"),
]


def batches(rng: random.Random, count: int) -> Iterator[tuple[int, int]]:
    for _ in range(count):
        length = rng.choice([8, 12, 16, 40, 64, 128, 256])
        rows = rng.randint(1, max(1, min(32, 400 // length)))
        yield rows * length, rows * length**2


def seconds(truth: tuple[float, float, float], tokens: int, squares: int) -> float:
    return truth[0] + truth[1] * tokens + truth[2] * squares


def worst_ratio(model: CostModel, truth: tuple[float, float, float]) -> float:
    ratios = [
        model.predict(*shape) / seconds(truth, *shape) for shape in batches(random.Random(5), 200)
    ]
    return max(*ratios, 1 / min(ratios))


def taught(
    truth: tuple[float, float, float], *, noise: float = 0.15, outliers: float = 0.0
) -> CostModel:
    model, rng = CostModel(), random.Random(1)
    for shape in batches(rng, 300):
        stretch = rng.lognormvariate(0, noise) * (100 if rng.random() < outliers else 1)
        model.observe(*shape, seconds(truth, *shape) * stretch)
    return model


def test_before_anything_is_known_a_batch_takes_some_milliseconds() -> None:
    model = CostModel()
    assert 1e-4 < model.predict(10, 100) < model.predict(1000, 100_000) < 1.0
    assert model.observed_count == 0


@pytest.mark.parametrize("took", [1e-4, 0.3])
def test_the_first_batch_sets_the_scale(took: float) -> None:
    model = CostModel()
    model.observe(100, 1000, took)
    assert model.predict(100, 1000) == pytest.approx(took, rel=0.01)
    assert model.predict(200, 2000) < 2 * took


@pytest.mark.parametrize("truth", TRUTHS)
def test_it_finds_what_batches_cost_through_noise(truth: tuple[float, float, float]) -> None:
    assert worst_ratio(taught(truth), truth) < 1.25


@pytest.mark.parametrize("truth", TRUTHS)
def test_a_few_batches_that_took_absurdly_long_hardly_count(
    truth: tuple[float, float, float],
) -> None:
    assert worst_ratio(taught(truth, outliers=0.03), truth) < 1.4


def test_it_tells_the_fixed_part_from_that_of_the_tokens() -> None:
    a, b, c = taught((5e-3, 5e-5, 0.0), noise=0.05).coefficients
    assert a == pytest.approx(5e-3, rel=0.1)
    assert b == pytest.approx(5e-5, rel=0.2)
    assert 0.0 <= c < 1e-7


@pytest.mark.parametrize("truth", TRUTHS)
def test_no_cost_is_ever_negative(truth: tuple[float, float, float]) -> None:
    model, rng = CostModel(), random.Random(2)
    for shape in batches(rng, 300):
        model.observe(*shape, seconds(truth, *shape) * rng.lognormvariate(0, 0.5))
        assert min(model.coefficients) >= 0.0
        assert model.predict(*shape) > 0.0


@pytest.mark.parametrize("speed", [0.1, 0.5, 3, 10])
def test_a_change_of_speed_is_learned_within_forty_batches(speed: float) -> None:
    truth = (1.1e-3, 6.8e-5, 3e-8)
    model, rng = taught(truth), random.Random(3)
    changed = (truth[0] * speed, truth[1] * speed, truth[2] * speed)
    for shape in batches(rng, 40):
        model.observe(*shape, seconds(changed, *shape) * rng.lognormvariate(0, 0.1))
    assert worst_ratio(model, changed) < 1.5


def test_what_batches_that_are_all_alike_leave_open_stays_as_it_was() -> None:
    truth = (5e-3, 5e-5, 0.0)
    model = taught(truth, noise=0.05)
    before = model.coefficients
    for _ in range(500):
        model.observe(320, 3200, seconds(truth, 320, 3200))
    assert model.coefficients[0] == pytest.approx(before[0], rel=0.3)
    assert model.coefficients[1] == pytest.approx(before[1], rel=0.3)


def test_a_batch_that_took_no_time_breaks_nothing() -> None:
    model = CostModel()
    for _ in range(5):
        model.observe(10, 100, 0.0)
    assert 0.0 < model.predict(10, 100) < 1e-3

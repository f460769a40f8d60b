import pytest

from benchmarks.embedding_server_contenders import BF16, INFINITY, OURS
from benchmarks.embedding_server_loop import steps
from benchmarks.embedding_server_overload import Overload, overload_table
from benchmarks.embedding_server_tables import (
    HUNDRED,
    LOOP,
    MANY,
    ONE,
    OPEN,
    REPEATED,
    Turn,
    bars_table,
    figures_table,
    is_valid,
    vectors_table,
)
from benchmarks.http_load import Answer, Load


def turn(rate=100.0, p99=100.0, **figures):
    usual = {"p50": p99 / 2, "p95": p99 * 0.9, "cpu": 2.0}
    return Turn(rate=rate, p99=p99, **usual | figures)


def row_of(table, *words):
    return next(line for line in table.splitlines() if all(word in line for word in words))


@pytest.mark.parametrize(
    ("key", "ours", "peer", "words", "verdict"),
    [
        ((MANY, INFINITY), turn(300), turn(100), ("requests/s", "≥ 3"), "✓ 3 "),
        ((MANY, INFINITY), turn(299), turn(100), ("requests/s", "≥ 3"), "✗ 2.99"),
        ((MANY, INFINITY), turn(p99=35), turn(p99=100), ("p99", "≤ 0.35"), "✓ 0.35"),
        ((MANY, INFINITY), turn(p99=36), turn(p99=100), ("p99", "≤ 0.35"), "✗ 0.36"),
        ((MANY, LOOP), turn(85), turn(100), ("tokens/s",), "✓ 0.85"),
        ((MANY, LOOP), turn(84), turn(100), ("tokens/s",), "✗ 0.84"),
    ],
)
def test_a_bar_is_met_from_its_number_on(key, ours, peer, words, verdict):
    table = bars_table({(MANY, OURS): [ours], key: [peer]})
    assert verdict in row_of(table, *words)


def test_one_client_is_compared_by_its_median():
    table = bars_table({(ONE, OURS): [turn(p99=6)], (ONE, INFINITY): [turn(p99=20)]})
    assert "✓ 0.3 " in row_of(table, "p50")


@pytest.mark.parametrize(("p99", "mark"), [(250, "✓"), (251, "✗")])
@pytest.mark.parametrize(("case", "arm"), [(HUNDRED, OURS), (HUNDRED, BF16), (OPEN, OURS)])
def test_a_hundred_clients_wait_250_milliseconds_at_most(case, arm, p99, mark):
    assert mark in row_of(bars_table({(case, arm): [turn(p99=p99)]}), case, "≤ 250")


def test_ratios_are_taken_within_a_round_and_who_sat_out_is_not_compared():
    ours = [turn(100), turn(1000), turn(200), turn(1)]
    peer = [turn(50), turn(500), turn(150), None]
    table = bars_table({(MANY, OURS): ours, (MANY, INFINITY): peer})
    assert "2 (1.33 to 2)" in row_of(table, "≥ 3")


def test_disturbed_turns_do_not_count_or_give_no_verdict():
    key, busy = (HUNDRED, OURS), turn(p99=999, others=0.5)
    assert "✓ 200" in row_of(bars_table({key: [busy, *[turn(p99=200)] * 3]}), HUNDRED)
    assert "· 999" in row_of(bars_table({key: [busy]}), HUNDRED)
    assert "3; 1 disturbed" in figures_table({key: [busy, *[turn()] * 3]})


@pytest.mark.parametrize(
    ("case", "figures", "valid"),
    [
        (MANY, {}, True),
        (MANY, {"others": 0.09}, False),
        (MANY, {"generator": 0.11}, False),
        (REPEATED, {"generator": 0.6}, True),
        (REPEATED, {"generator": 0.71}, False),
        (OPEN, {"late": 0.02}, False),
    ],
)
def test_a_turn_is_void_if_others_or_the_generator_took_too_much(case, figures, valid):
    assert is_valid(case, turn(**figures)) is valid


def test_failed_requests_are_told():
    assert "1; 7 failed" in figures_table({(MANY, OURS): [turn(failed=7)]})


def test_who_is_out_has_a_row_that_says_so():
    assert "did not run" in figures_table({(MANY, INFINITY): [None]})


def good(due, done, **more):
    return Answer(due, due, done, 200, **more)


def refused(due, retry_after=1.0, **more):
    return Answer(due, due, due + 0.001, 429, retry_after, **more)


def overloaded(answers, peak=10.0, before=100.0, after=110.0, others=0.0):
    return overload_table(Overload(peak, Load(answers, 1.0, 0.0), before, after, others))


def test_goodput_is_of_the_answers_that_came_within_the_overload():
    answers = [good(0.0, 0.1)] * 9 + [good(0.5, 1.5)] * 5
    assert "✓ 0.90" in row_of(overloaded(answers), "goodput")
    assert "✗ 0.80" in row_of(overloaded(answers[1:]), "goodput")
    assert "· 0.80" in row_of(overloaded(answers[1:], others=0.5), "goodput")


def test_who_comes_back_when_he_was_told_to_is_to_get_in():
    answers = [
        *[refused(0.0)] * 4,
        refused(0.9, is_return=True),
        good(0.9, 1.0, is_return=True),
        *[good(1.1, 1.2, is_return=True)] * 2,
    ]
    table = overloaded(answers)
    assert "✗ 75.0% of 4" in row_of(table, "came back as told")
    assert "50.0% of 2" in row_of(table, "while it lasted")
    assert "100.0% of 2" in row_of(table, "after it")
    assert "100% of 4" in row_of(table, "new requests")
    assert "| 2 |" in row_of(overloaded(answers[:-2]), "later than was waited")


@pytest.mark.parametrize(
    ("answer", "row"),
    [
        (Answer(0.0, 0.0, 0.1, 0), "other than 200 and 429"),
        (Answer(0.0, 0.0, 0.1, 500), "other than 200 and 429"),
        (refused(0.0, retry_after=None), "without Retry-After"),
    ],
)
def test_an_answer_that_does_not_say_when_to_come_back_fails(answer, row):
    assert "✓ 0 " in row_of(overloaded([good(0.0, 0.1)]), row)
    assert "✗ 1 " in row_of(overloaded([good(0.0, 0.1), answer]), row)


@pytest.mark.parametrize(("after", "mark"), [(125, "✓"), (126, "✗")])
def test_memory_may_grow_by_a_quarter(after, mark):
    assert mark in row_of(overloaded([good(0.0, 0.1)], after=after), "memory")


def test_vectors_of_another_model_do_not_pass():
    table = vectors_table({OURS: 0.9999, BF16: 0.9998})
    assert "✗" in row_of(table, OURS)
    assert "✓" in row_of(table, BF16)


@pytest.mark.parametrize("mean", [1.0, 2.5, 16.23, 31.9])
def test_steps_are_next_to_their_mean_and_have_it(mean):
    found = steps(mean, 64)
    assert len(found) == 64
    assert sum(found) == pytest.approx(64 * mean, abs=1)
    assert all(abs(step - mean) <= 1 for step in found)

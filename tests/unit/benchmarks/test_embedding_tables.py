import numpy as np
import pytest

from benchmarks.embedding_memory import drift
from benchmarks.embedding_tables import bars_table, counted, figures_table, rate, ratio
from benchmarks.embedding_worker import Turn, busy_seconds, least_cosine


def turn(seconds, others=0.0, texts=100, **figures):
    usual = {"cpu": 2 * seconds, "least_cosine": 1.0, "peak": 200.0}
    return Turn(texts=texts, seconds=seconds, others=others, **usual | figures)


def test_ratios_are_taken_within_a_round():
    results = {"ours": [turn(1), turn(10), turn(2)], "peer": [turn(2), turn(20), turn(3)]}
    found = ratio(results, "ours", "peer", rate)
    assert (found.lowest, found.median, found.highest) == pytest.approx((1.5, 2, 2))


def test_a_rate_is_of_the_texts_that_were_given():
    results = {"ours": [turn(1, texts=400)], "peer": [turn(1, texts=100)]}
    assert ratio(results, "ours", "peer", rate).median == pytest.approx(4)


def test_a_round_in_which_one_was_disturbed_does_not_count():
    results = {
        "ours": [turn(9, others=0.09), turn(1), turn(1), turn(1)],
        "peer": [turn(1), turn(2), turn(2), turn(2)],
    }
    assert ratio(results, "ours", "peer", rate).rounds == 3
    assert len(counted(results["ours"])) == 3


def test_if_all_rounds_were_disturbed_they_count_and_the_table_says_so():
    results = {"ours onnx": [turn(1, others=0.5)] * 4}
    assert len(counted(results["ours onnx"])) == 4
    assert "4; 4 disturbed" in figures_table(results)


def test_disturbed_turns_give_no_verdict_on_speed_but_on_memory():
    results = {
        "ours onnx": [turn(1, others=0.5)],
        "sentence-transformers": [turn(9, peak=900.0)],
    }
    speed, memory, _ = bars_table(results).splitlines()[2:]
    assert "· 9.00" in speed
    assert "✓ 0.22" in memory


def test_who_sat_out_or_failed_is_not_compared():
    results = {"ours": [turn(1), None], "peer": [None, turn(1)], "out": [None, None]}
    assert ratio(results, "ours", "peer", rate) is None
    assert ratio(results, "ours", "nobody", rate) is None
    assert "did not run" in figures_table(results)


@pytest.mark.parametrize(
    ("ours", "peer", "verdict"),
    [
        (turn(10), turn(10.5), "✓ 1.05"),
        (turn(10), turn(10.4), "✗ 1.04"),
    ],
)
def test_a_bar_is_met_from_its_number_on(ours, peer, verdict):
    assert verdict in bars_table({"ours onnx": [ours], "light-embed": [peer]})


@pytest.mark.parametrize(("seconds", "verdict"), [(1.05, "✓"), (1.06, "✗")])
def test_unsorted_texts_may_take_5_percent_longer(seconds, verdict):
    results = {"ours onnx": [turn(seconds)], "ours onnx, sorted": [turn(1)]}
    row = next(line for line in bars_table(results).splitlines() if "unsorted" in line)
    assert verdict in row


@pytest.mark.parametrize(("peak", "verdict"), [(350, "✓"), (351, "✗")])
def test_memory_may_be_half(peak, verdict):
    results = {"ours onnx": [turn(1, peak=peak)], "sentence-transformers": [turn(1, peak=700)]}
    row = next(line for line in bars_table(results).splitlines() if "memory" in line)
    assert verdict in row


def test_vectors_of_another_model_do_not_pass():
    results = {"ours onnx": [turn(1), turn(1, least_cosine=0.9999)]}
    assert "✗ 0.9999" in bars_table(results)


def test_cosines_are_of_the_text_that_is_furthest_off():
    reference = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert least_cosine(np.array([[3.0, 0.0], [0.0, 1.0]]), reference) == pytest.approx(1)
    assert least_cosine(np.array([[3.0, 0.0], [1.0, 0.0]]), reference) == pytest.approx(0)


def test_busy_is_what_others_and_the_hypervisor_took_on_these_processors():
    stat = (
        "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 20 30 999 999 1 2 3 50 0\ncpu1 100 0 0 9 9 0 0 0 0 0\n"
    )
    ticks = busy_seconds(stat, [1])
    assert busy_seconds(stat, [0]) == pytest.approx(1.56 * ticks)
    assert busy_seconds(stat, [0, 1]) == pytest.approx(2.56 * ticks)


def test_drift_leaves_the_warm_up_out_and_sees_a_leak():
    leak = [50.0, 90.0] + [100 + 0.02 * cycle for cycle in range(300)]
    found = drift(leak)
    assert found.start == pytest.approx(100, abs=0.1)
    assert found.growth == pytest.approx(6, abs=0.1)
    assert found.kilobytes_per_cycle == pytest.approx(20.48)
    assert drift([50.0, 90.0] + [100.0] * 300).growth == 0

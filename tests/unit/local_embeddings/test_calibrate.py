import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.infrastructure.local_embeddings import BackendSpec, LocalEmbeddingConfig
from shared.infrastructure.local_embeddings.calibrate import Speed, choose, main, measure
from shared.infrastructure.local_embeddings.calibration import (
    CalibrationKey,
    calibrated_batch_tokens,
    save_calibration,
)
from shared.infrastructure.testing import FakeClock

KEY = CalibrationKey("f" * 64, "onnx", "cpu", "float32", 2)
LONG_TEXTS = BackendSpec(dimension=2, max_length=300)


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({64: 100, 128: 200, 256: 300}, 256),
        ({64: 100, 128: 295, 256: 300}, 128),
        ({64: 100, 128: 293, 256: 300}, 256),
        ({64: 300, 128: 300, 256: 100}, 64),
        ({64: 10}, 64),
    ],
)
def test_the_smallest_pass_within_2_percent_of_the_best_is_chosen(rates, chosen):
    speeds = [Speed(budget, (rate,)) for budget, rate in rates.items()]
    assert choose(speeds).batch_tokens == chosen


def test_one_lucky_round_does_not_decide():
    lucky, steady = Speed(64, (100, 100, 900)), Speed(128, (200, 200, 200))
    assert choose([lucky, steady]) is steady


@pytest.mark.parametrize(("rates", "noisy"), [((100, 124, 110), False), ((100, 126, 110), True)])
def test_rounds_that_differ_by_more_than_a_quarter_are_noise(rates, noisy):
    assert Speed(64, rates).is_noisy is noisy


def test_every_size_is_measured_in_every_round_by_real_tokens(factory):
    factory.spec = LONG_TEXTS
    clock = FakeClock()
    backend = factory(LocalEmbeddingConfig())
    backend.before_forward = lambda: clock.stall(1.0)
    slow, fast = measure(backend, (300, 600), max_rows=100, clock=clock)
    assert len(slow.rates) == len(fast.rates) >= 3
    assert set(slow.rates) == {slow.median}
    assert set(fast.rates) == {fast.median}

    rounds = len(slow.rates) + 1
    sizes = [[len(text) for text in batch] for batch in backend.batches]
    padded = [len(lengths) * max(lengths) for lengths in sizes]
    assert max(padded) == 600
    a_round = len(padded) // rounds
    assert padded == padded[:a_round] * rounds
    for_slow = next(at for at, tokens in enumerate(padded) if tokens > 300)
    real = sum(map(sum, sizes[:for_slow]))
    assert slow.median == pytest.approx(real / for_slow)
    assert fast.median == pytest.approx(real / (a_round - for_slow))


def test_on_a_slow_machine_rounds_are_left_out(factory):
    clock = FakeClock()
    backend = factory(LocalEmbeddingConfig())
    backend.before_forward = lambda: clock.stall(100.0)
    (speed,) = measure(backend, (64,), max_rows=32, clock=clock)
    assert len(speed.rates) == 3


def test_workers_share_the_passes_of_a_round(factory):
    backend = factory(LocalEmbeddingConfig())
    together = measure(backend, (64,), max_rows=32, workers=3)
    alone = factory(LocalEmbeddingConfig())
    measure(alone, (64,), max_rows=32)
    assert len(together) == 1
    assert sorted(backend.batches) == sorted(alone.batches)


def test_what_was_measured_is_found_by_what_it_was_measured_for(tmp_path):
    save_calibration(tmp_path, KEY, 512)
    assert calibrated_batch_tokens(tmp_path, KEY) == 512
    save_calibration(tmp_path, KEY, 256)
    assert calibrated_batch_tokens(tmp_path, KEY) == 256


@pytest.mark.parametrize(
    "other",
    [
        {"fingerprint": "0" * 64},
        {"backend": "fastembed"},
        {"device": "cuda:0"},
        {"dtype": "bfloat16"},
        {"threads": 1},
    ],
)
def test_it_is_not_found_for_anything_else(tmp_path, other):
    save_calibration(tmp_path, KEY, 512)
    assert calibrated_batch_tokens(tmp_path, KEY._replace(**other)) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"null",
        b'{"batch_tokens": null}',
        b'{"batch_tokens": "many"}',
        b'{"batch_tokens": 0}',
        b'{"batch_tokens": Infinity}',
    ],
)
def test_a_damaged_file_is_ignored_with_a_warning(tmp_path, caplog, content):
    path = save_calibration(tmp_path, KEY, 512)
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert calibrated_batch_tokens(tmp_path, KEY) is None
    assert str(path) in caplog.text


def test_nothing_measured_is_no_reason_for_a_warning(tmp_path, caplog):
    assert calibrated_batch_tokens(tmp_path / "nothing", KEY) is None
    assert caplog.text == ""


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    keys = [KEY._replace(threads=threads) for threads in range(1, 33)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: save_calibration(tmp_path, key, 64 * key.threads), keys))
    for key in keys:
        assert calibrated_batch_tokens(tmp_path, key) == 64 * key.threads


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = save_calibration(tmp_path, KEY, 512)

    def full(self: Path, data: str, **_: object) -> int:
        with self.open("w") as file:
            file.write(data[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        save_calibration(tmp_path, KEY, 256)
    assert calibrated_batch_tokens(tmp_path, KEY) == 512
    assert list(path.parent.iterdir()) == [path]


def test_the_file_says_what_it_is_about(tmp_path):
    found = json.loads(save_calibration(tmp_path, KEY, 512).read_text())
    assert found == {**KEY._asdict(), "batch_tokens": 512}


def test_a_model_that_is_not_there_is_one_line_on_stderr(tmp_path, capsys):
    assert main(["package:no_such_package", "--cache-dir", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("calibrate: ")
    assert "no_such_package" in said.err

"""The commands that embed, over a scripted model."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.embedding.cli import bench, embed, main, warm
from services.embedding.service import ProductionEmbeddingService
from services.embedding.sync import SyncEmbeddingService
from shared.infrastructure.local_embeddings.calibrate import Calibration, Speed
from shared.infrastructure.resilience import ServiceError
from tests.unit.embedding.embedding_fakes import DIMENSION, FakeBackend, unit, vector_of

TEXTS = [f"text {number}" for number in range(25)]


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[FakeBackend]:
    """Give each command a scripted model of its own, and keep them."""
    made: list[FakeBackend] = []

    def scripted(kind: type[Any], settings: object) -> Any:
        made.append(FakeBackend())
        made[-1].poison = {"poison"}
        return kind(settings, backend=made[-1])

    for command, kind in (
        (embed, SyncEmbeddingService),
        (warm, SyncEmbeddingService),
        (bench, ProductionEmbeddingService),
    ):
        monkeypatch.setattr(command, kind.__name__, functools.partial(scripted, kind))
    return made


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return path


pytestmark = pytest.mark.usefixtures("backends")


class TestEmbed:
    def test_each_text_is_a_line_in_the_order_of_the_texts(
        self, corpus: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["embed", str(corpus), "--window", "4"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["index"] for line in lines] == list(range(25))
        vectors = [line["embedding"] for line in lines]
        np.testing.assert_allclose(vectors, [unit(vector_of(text)) for text in TEXTS], rtol=1e-5)
        assert (lines[0]["token_count"], lines[0]["truncated"]) == (4, False)

    @pytest.mark.parametrize(
        ("options", "read"),
        [
            ([], "A"),
            (["--input-type", "query"], "q: A"),
            (["--prompt-name", "other"], "o: A"),
            (["--prompt", "my "], "my A"),
        ],
    )
    def test_a_text_is_read_as_the_options_say(
        self, options: list[str], read: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["embed", "--text", "A", "--dimensions", "3", *options]) == 0
        vector = json.loads(capsys.readouterr().out)["embedding"]
        np.testing.assert_allclose(vector, unit(vector_of(read)[:3]), rtol=1e-5)

    def test_a_text_that_fails_does_not_stop_the_others(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["embed", "--text", "a", "--text", "poison", "--text", "b"]) == 1
        captured = capsys.readouterr()
        lines = [json.loads(line) for line in captured.out.splitlines()]
        assert ["embedding" in line for line in lines] == [True, False, True]
        assert lines[1]["error"]["code"] == "text_rejected"
        assert captured.err.startswith("text 1 has no vector: ")

    def test_a_file_is_gone_on_with_where_it_ends(
        self,
        corpus: Path,
        tmp_path: Path,
        backends: list[FakeBackend],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out, part = tmp_path / "out.npy", tmp_path / "part.txt"
        part.write_text("".join(f"{text}\n" for text in TEXTS[:10]))
        assert main(["embed", str(part), "--out", str(out)]) == 0
        assert main(["embed", str(corpus), "--out", str(out), "--json"]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[0] == f"{out}: 10 vectors"
        expected = {"out": str(out), "rows": 25, "dimensions": DIMENSION, "failures": {}}
        assert json.loads(said[1]) == expected
        np.testing.assert_allclose(
            np.load(out), [unit(vector_of(text)) for text in TEXTS], rtol=1e-5
        )
        assert set(backends[1].texts) == set(TEXTS[10:])

    @pytest.mark.parametrize(
        "options", [["--input-type", "query"], ["--truncate", "start"], ["--dimensions", "2"]]
    )
    def test_a_file_that_was_begun_otherwise_is_refused(
        self,
        corpus: Path,
        tmp_path: Path,
        options: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out.npy"
        assert main(["embed", str(corpus), "--out", str(out)]) == 0
        before = out.read_bytes()
        assert main(["embed", str(corpus), "--out", str(out), *options]) == 2
        assert "was begun with another" in capsys.readouterr().err
        assert out.read_bytes() == before

    @pytest.mark.parametrize(
        "options", [["--dimensions", "999"], ["--prompt-name", "none"], ["--dimensions", "0"]]
    )
    def test_what_cannot_be_had_leaves_no_file(
        self,
        corpus: Path,
        tmp_path: Path,
        options: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out.npy"
        assert main(["embed", str(corpus), "--out", str(out), *options]) == 2
        assert capsys.readouterr().err.startswith("error: ")
        assert not out.exists()

    @pytest.mark.parametrize("arguments", [[], ["file", "--text", "a"], ["/no/such/file"]])
    def test_texts_come_from_one_place_that_is_there(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["embed", *arguments]) == 2
        assert "-" in capsys.readouterr().err


class TestWarm:
    def test_what_was_warmed_is_there_for_the_next_process(
        self,
        corpus: Path,
        tmp_path: Path,
        backends: list[FakeBackend],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        arguments = ["warm", str(corpus), "--cache-file", str(tmp_path / "cache"), "--json"]
        assert main(arguments) == 0
        assert main(arguments) == 0
        said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [each["texts"] for each in said] == [25, 25]
        assert [each["were_cached"] for each in said] == [0, 25]
        assert backends[1].texts == []

    def test_a_cache_that_ends_with_the_command_is_not_worth_it(
        self, corpus: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["warm", str(corpus)]) == 2
        assert "--cache-file" in capsys.readouterr().err


class TestBench:
    def test_it_counts_what_it_did(
        self, backends: list[FakeBackend], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["bench", "--texts", "50", "--concurrency", "4", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["texts"], result["concurrency"]) == (50, 4)
        assert result["texts_per_second"] == pytest.approx(50 / result["seconds"])
        assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"]
        assert result["batches"] * result["texts_per_batch"] == pytest.approx(50)
        assert len(set(backends[0].texts)) == len(backends[0].texts) >= 50

    def test_people_read_lines(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "--texts", "5", "--concurrency", "9"]) == 0
        assert "texts/s" in capsys.readouterr().out

    def test_what_fails_for_many_callers_is_said_in_one_line(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async def fail(*_: object) -> None:
            raise ServiceError("the model is on fire")

        monkeypatch.setattr(FakeBackend, "embed", fail)
        assert main(["bench", "--texts", "50", "--concurrency", "20"]) == 1
        assert capsys.readouterr().err.count("error: the model is on fire\n") == 1

    def test_calibrating_uses_the_settings_and_says_what_it_keeps(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked: list[Any] = []

        def calibrate(config: Any, workers: int) -> Calibration:
            asked.append((config.model_name, config.threads, workers))
            speeds = Speed(64, (10.0, 11.0)), Speed(128, (20.0, 20.0))
            return Calibration(speeds, speeds[1], Path("/kept"))

        monkeypatch.setattr(bench, "calibrate", calibrate)
        assert main(["bench", "--calibrate", "--model", "m", "--threads", "3", "--json"]) == 0
        assert asked == [("m", 3, 1)]
        assert json.loads(capsys.readouterr().out) == {
            "tokens_per_pass": 128,
            "kept_in": "/kept",
            "is_noisy": False,
            "tokens_per_second": {"64": 10.5, "128": 20.0},
        }
        assert main(["bench", "--calibrate"]) == 0
        assert "128 tokens a pass, kept in /kept" in capsys.readouterr().out

    def test_a_remote_model_cannot_be_calibrated(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "--calibrate", "--remote-url", "http://a/v1"]) == 2
        assert "only a local model" in capsys.readouterr().err

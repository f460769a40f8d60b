import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from shared.infrastructure.local_embeddings import LocalEmbeddingConfig, LocalEmbeddingModel
from shared.infrastructure.local_embeddings.corpus_file import embed_file, main
from shared.infrastructure.local_embeddings.vector_file import VectorFile
from shared.infrastructure.resilience import ConfigurationError

TEXTS = [chr(97 + number % 26) * (1 + number % 7) for number in range(25)]


def scripted(factory, **options):
    config = LocalEmbeddingConfig(**({"normalize": False} | options))
    return LocalEmbeddingModel(config, backend_factory=factory)


class CrashError(Exception):
    pass


def texts_until_a_crash(count):
    yield from TEXTS[:count]
    raise CrashError


@pytest.mark.parametrize("crash_after", [0, 1, 10, 19, 24])
async def test_a_file_that_was_gone_on_with_is_the_file_without_a_crash(
    factory, tmp_path, crash_after
):
    path = tmp_path / "out.npy"
    async with scripted(factory) as model:
        await embed_file(model, TEXTS, tmp_path / "whole.npy", window=4)
        with pytest.raises(CrashError):
            await embed_file(model, texts_until_a_crash(crash_after), path, window=4)
        safe = np.load(path)
        assert len(safe) % 4 == 0
        file = await embed_file(model, TEXTS, path, window=4)
        np.testing.assert_array_equal(np.load(path), await model.embed(TEXTS))
    assert file.rows == 25
    assert path.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    np.testing.assert_array_equal(np.load(path)[: len(safe)], safe)


async def test_a_finished_file_is_left_as_it_is(factory, tmp_path):
    path = tmp_path / "out.npy"
    async with scripted(factory) as model:
        await embed_file(model, TEXTS, path)
        before, passes = path.read_bytes(), len(factory.opened[0].batches)
        await embed_file(model, TEXTS, path)
    assert path.read_bytes() == before
    assert len(factory.opened[0].batches) == passes


async def test_what_was_written_and_not_counted_is_written_again(factory, tmp_path):
    path = tmp_path / "out.npy"
    async with scripted(factory) as model:
        await embed_file(model, TEXTS[:8], path)
        with path.open("ab") as file:
            file.write(b"half a row")
        await embed_file(model, TEXTS, path)
        np.testing.assert_array_equal(np.load(path), await model.embed(TEXTS))


async def test_a_bad_text_has_a_row_of_nan_and_a_reason(factory, tmp_path):
    async with scripted(factory) as model:
        factory.opened[0].poison = "poison"
        path = tmp_path / "out.npy"
        file = await embed_file(model, ["a", "poison", "b"], path, window=2)
    assert list(file.failures) == [1]
    assert "kernel exploded" in file.failures[1]
    assert np.isnan(np.load(path)).any(axis=1).tolist() == [False, True, False]
    with VectorFile(path, 2, file._identity) as again:
        assert list(again.failures) == [1]


@pytest.mark.parametrize(
    ("config", "texts", "options", "named"),
    [
        ({"normalize": True}, TEXTS, {}, "normalize"),
        ({}, TEXTS, {"prompt": "query: "}, "prompt"),
        ({}, TEXTS, {"dimensions": 1}, "dimension"),
        ({}, ["other", *TEXTS[1:]], {}, "other texts"),
        ({}, TEXTS[:3], {}, "other texts"),
    ],
)
async def test_a_file_is_gone_on_with_only_as_it_was_begun(
    factory, tmp_path, config, texts, options, named
):
    path = tmp_path / "out.npy"
    async with scripted(factory) as model:
        await embed_file(model, TEXTS[:8], path)
    before = path.read_bytes()
    async with scripted(factory, **config) as model:
        with pytest.raises(ConfigurationError, match=named):
            await embed_file(model, texts, path, **options)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [None, "", "{}", '{"identity": 7}'])
async def test_a_file_that_is_not_ours_is_not_touched(factory, tmp_path, content):
    path = tmp_path / "out.npy"
    path.write_bytes(b"precious")
    if content is not None:
        (tmp_path / "out.npy.progress.json").write_text(content)
    async with scripted(factory) as model:
        with pytest.raises(ConfigurationError):
            await embed_file(model, TEXTS, path)
    assert path.read_bytes() == b"precious"


def command(*arguments):
    module = "shared.infrastructure.local_embeddings.corpus_file"
    return [sys.executable, "-m", module, *map(str, arguments)]


def test_a_killed_command_is_run_again_and_comes_to_the_same_end(tmp_path, capfd):
    corpus, out, whole = (tmp_path / name for name in ("corpus.jsonl", "out.npy", "whole.npy"))
    texts = [f"text number {number} " + "word " * (number % 9) for number in range(600)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = ["--jsonl", "text", "--window", "20"]
    progress = tmp_path / "out.npy.progress.json"
    with subprocess.Popen(command(corpus, out, *options), stdout=subprocess.DEVNULL) as process:
        while not progress.exists() or json.loads(progress.read_text())["rows"] == 0:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    # The header is written after it, and may be of a window before.
    assert 0 < json.loads(progress.read_text())["rows"] < len(texts)
    assert main([str(corpus), str(out), *options]) == 0
    assert main([str(corpus), str(whole), *options]) == 0
    assert f"{out}: 600 vectors" in capfd.readouterr().out
    assert np.load(out).shape == (600, 384)
    assert np.abs(np.load(out) - np.load(whole)).max() <= 1e-6


@pytest.mark.parametrize(
    ("content", "arguments", "complaint"),
    [
        (b"\xff\xfe", [], "utf-8"),
        (b'{"other": 1}\n', ["--jsonl", "text"], "line 1 has no field 'text'"),
        (b"not json\n", ["--jsonl", "text"], "line 1"),
        (b'{"text": 7}\n', ["--jsonl", "text"], "text 0 must be a string"),
        (b"a\n", ["--model", os.devnull + "/none"], "neither an existing directory"),
    ],
)
def test_bad_input_of_the_command_is_named(tmp_path, capfd, content, arguments, complaint):
    corpus = tmp_path / "corpus"
    corpus.write_bytes(content)
    assert main([str(corpus), str(tmp_path / "out.npy"), *arguments]) == 1
    assert complaint in capfd.readouterr().err


def test_each_line_is_a_text_also_an_empty_one(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes("one\r\n\nthree \u2028 still three".encode())
    assert main([str(corpus), str(tmp_path / "out.npy"), "--dimensions", "8"]) == 0
    vectors = np.load(tmp_path / "out.npy")
    assert vectors.shape == (3, 8)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1], abs=1e-6)

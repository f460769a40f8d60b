import argparse

import pytest

from services.embedding.cli.flags import FLAGS, add_flags, flag, flagged, name_flags, settings_of
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.local_embeddings import ModelBackend
from shared.infrastructure.resilience import ConfigurationError

GROUPS = ("model", "cache", "remote server", "queue", "server")


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_flags(parser, *GROUPS)
    return parser


def test_every_setting_has_a_flag_but_the_secrets() -> None:
    assert FLAGS.secrets == {"api_keys", "remote_api_key", "cache_redis_url"}
    assert flagged() | FLAGS.secrets == set(EmbeddingSettings.model_fields)
    assert not flagged() & FLAGS.secrets


def test_every_flag_says_what_it_does_in_the_words_of_the_settings(
    parser: argparse.ArgumentParser,
) -> None:
    told = {action.dest: action.help for action in parser._actions if action.dest != "help"}
    assert [name for name, text in told.items() if not text] == []
    assert told["batch_size"] == "Texts given to the model at once at most; 32; at least 1."
    parser.format_help()


def test_a_flag_goes_before_its_variable(
    parser: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDING_THREADS", "1")
    monkeypatch.setenv("EMBEDDING_DTYPE", "int8")
    given = "--model a/b --backend fastembed --threads 3 --model-aliases x,y --cache-ttl 0.5"
    settings = settings_of(parser.parse_args(given.split()))
    assert (settings.model_name, settings.backend) == ("a/b", ModelBackend.FASTEMBED)
    assert (settings.threads, settings.dtype) == (3, "int8")
    assert (settings.model_aliases, settings.cache_ttl) == (("x", "y"), 0.5)
    assert settings_of(parser.parse_args([])).threads == 1


def test_a_wrong_value_is_called_by_the_flag_it_came_with(
    parser: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDING_THREADS", "none")
    options = parser.parse_args(["--port", "70000"])
    with pytest.raises(ConfigurationError) as caught:
        settings_of(options)
    message = name_flags(str(caught.value), options)
    assert "--port: " in message
    assert "EMBEDDING_THREADS: " in message
    assert "EMBEDDING_PORT" not in message


@pytest.mark.parametrize(
    "arguments", [["--backend", "none"], ["--dtype", "float8"], ["--isolation", "jail"]]
)
def test_a_choice_that_is_none_is_refused_at_once(
    parser: argparse.ArgumentParser, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(arguments)
    assert ended.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_a_flag_is_the_name_of_its_setting() -> None:
    assert flag("model_name") == "--model"
    assert flag("cache_file_bytes") == "--cache-file-bytes"

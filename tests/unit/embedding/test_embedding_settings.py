import socket
import sys

import pytest

from services.embedding import EmbeddingSettings
from services.embedding.__main__ import main
from shared.infrastructure.local_embeddings import ModelBackend
from shared.infrastructure.resilience import ConfigurationError


def test_the_defaults_are_the_contracts() -> None:
    settings = EmbeddingSettings.from_env(environ={})
    assert (settings.batch_size, settings.max_text_length, settings.cache_size) == (32, 8192, 1000)
    assert (settings.max_connections, settings.failure_threshold) == (50, 5)
    assert (settings.requests_per_second, settings.burst_size) == (5.0, 10)
    assert (settings.host, settings.port, settings.api_keys) == ("127.0.0.1", 8000, ())
    assert settings.remote_url is None


def test_every_setting_is_a_variable_and_keys_come_in_either_form() -> None:
    for keys in ("key-1, key-2", '["key-1", "key-2"]'):
        environ = {"EMBEDDING_API_KEYS": keys, "EMBEDDING_BACKEND": "fastembed"}
        settings = EmbeddingSettings.from_env(environ=environ)
        assert [key.get_secret_value() for key in settings.api_keys] == ["key-1", "key-2"]
        assert settings.backend is ModelBackend.FASTEMBED
        assert "key-1" not in repr(settings)


def test_options_go_before_variables_and_wrong_ones_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMBEDDING_PORT", "1")
    monkeypatch.setenv("EMBEDDING_BATCH_SIZE", "2")
    settings = EmbeddingSettings.from_options({"port": 3})
    assert (settings.port, settings.batch_size) == (3, 2)
    with pytest.raises(ConfigurationError, match="EMBEDDING_PORT"):
        EmbeddingSettings.from_options({"port": 70_000})
    with pytest.raises(ConfigurationError, match="EMBEDDING_API_KEYS"):
        EmbeddingSettings.from_env(environ={"EMBEDDING_API_KEYS": '[""]'})


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104 - it must be refused
def test_an_open_address_needs_a_key(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--host", host, "--port", "0"]) == 2
    assert "EMBEDDING_API_KEYS" in capsys.readouterr().err


def test_a_busy_port_is_a_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert main(["--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def test_a_model_that_is_nowhere_ends_the_process_with_the_ways_to_provide_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--port", "0", "--model", "/no/such/model"]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("listening on http://127.0.0.1:")
    assert "/no/such/model" in captured.err


def test_a_missing_server_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "orjson", None)
    rooms = ("services.embedding.process", "shared.infrastructure.server")
    for name in [name for name in sys.modules if name.startswith(rooms)]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["--port", "0"]) == 2
    assert "pip install 'morgan-sdk[embedding]'" in capsys.readouterr().err

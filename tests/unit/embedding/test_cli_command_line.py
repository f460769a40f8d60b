import argparse

import pytest

from services.embedding.cli import main
from services.embedding.cli import models as models_command
from services.embedding.cli import serve as serve_command
from services.embedding.cli.command_line import _COMMANDS
from services.embedding.process import server
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.resilience import BulkheadFullError, ConfigurationError


@pytest.mark.parametrize(
    ("arguments", "model"),
    [
        ([], None),
        (["--port", "0", "--model", "embed"], "embed"),
        (["serve", "--port", "0", "--model", "x"], "x"),
    ],
)
def test_no_command_means_serve(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], model: str | None
) -> None:
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr(serve_command, "run", lambda options: seen.append(options) or 0)
    assert main(arguments) == 0
    assert getattr(seen[0], "model_name", None) == model


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigurationError("give another"), 2, "error: give another\n"),
        (BulkheadFullError("too many"), 1, "error: too many\n"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    said: str,
) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(models_command, "run", fail)
    assert main(["models"]) == status
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", said)


@pytest.mark.parametrize("command", [[], *([name] for name in _COMMANDS)])
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "EMBEDDING_MODEL_NAME" in text
    assert ("--json" in text) == bool(command)


@pytest.mark.parametrize(
    "arguments",
    [["--nonsense"], ["embed", "--por", "1"], ["bench", "--texts", "0"], ["warm"], ["bench", "x"]],
)
def test_wrong_arguments_are_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage:" in captured.err


def test_a_misspelt_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMBEDDING_PROT", "1")
    assert main(["models"]) == 2
    assert "did you mean EMBEDDING_PORT" in capsys.readouterr().err


def test_serve_is_given_the_settings_and_announces_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[EmbeddingSettings] = []

    def serve(settings: EmbeddingSettings, **options: object) -> None:
        seen.append(settings)
        if "announce" in options:
            options["announce"]("http://a", "m")  # type: ignore[operator]

    monkeypatch.setattr(server, "serve", serve)
    assert main(["--port", "7"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["serve", "--json", "--host", "localhost"]) == 0
    assert capsys.readouterr().out == '{"url": "http://a", "model": "m"}\n'
    assert [(each.port, each.host) for each in seen] == [(7, "127.0.0.1"), (8000, "localhost")]

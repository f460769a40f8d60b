import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.embedding.cli.texts import count_lines, texts_of
from shared.infrastructure.resilience import ConfigurationError


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("", []),
        ("one", ["one"]),
        ("one\n", ["one"]),
        ("one\r\n\nthree \u2028 still three\x0b\n", ["one", "", "three \u2028 still three\x0b"]),
        ("\ufeffone\rstill one", ["\ufeffone\rstill one"]),
    ],
)
def test_each_line_is_a_text_also_an_empty_one(
    tmp_path: Path, content: str, texts: list[str]
) -> None:
    path = tmp_path / "texts"
    path.write_bytes(content.encode())
    with texts_of(str(path), None) as read:
        assert list(read) == texts
    assert count_lines(str(path)) == len(texts)


def test_a_field_of_json_lines_is_a_text_and_standard_input_is_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = io.BytesIO(b'{"id": 1, "text": "one"}\n{"text": "t\\u00fc\\n"}\n')
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=lines))
    with texts_of("-", "text") as read:
        assert list(read) == ["one", "t\u00fc\n"]
    assert count_lines("-") is None


@pytest.mark.parametrize(
    ("content", "field", "complaint"),
    [
        (b"fine\n\xff\n", None, "line 2 is not UTF-8"),
        (b'{"text": "fine"}\nnot json\n', "text", "line 2 is no JSON"),
        (b'{"other": "a"}\n', "text", "line 1 has no text in a field 'text'"),
        (b'{"text": 7}\n', "text", "line 1 has no text"),
        (b"[]\n", "text", "line 1 has no text"),
    ],
)
def test_a_line_that_is_no_text_is_named(
    tmp_path: Path, content: bytes, field: str | None, complaint: str
) -> None:
    path = tmp_path / "texts"
    path.write_bytes(content)
    with texts_of(str(path), field) as read, pytest.raises(ConfigurationError, match=complaint):
        list(read)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    with pytest.raises(ConfigurationError, match="No such file"), texts_of(path, None):
        pass
    assert count_lines(path) is None

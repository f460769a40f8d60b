import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.infrastructure.http.bodies import Body, body_of, files_are_replayable
from shared.infrastructure.resilience import ConfigurationError


async def sent(body: Body) -> bytes:
    return b"".join([chunk async for chunk in body])


def made(content: Any) -> Body:
    body = body_of(content)
    assert isinstance(body, Body)
    return body


def numbers() -> Iterator[bytes]:
    yield b"1"
    yield b"2"


async def later() -> AsyncIterator[bytes]:
    yield b"1"
    yield b"2"


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("content", "replayable"),
    [
        pytest.param([b"1", b"2"], True, id="list"),
        pytest.param(numbers, True, id="factory"),
        pytest.param(later, True, id="asynchronous factory"),
        pytest.param(io.BytesIO(b"12"), True, id="file"),
        pytest.param(numbers(), False, id="generator"),
        pytest.param(later(), False, id="asynchronous generator"),
        pytest.param(Pipe(b"12"), False, id="pipe"),
    ],
)
async def test_what_can_be_sent_again_is_the_same_again(content: Any, replayable: bool) -> None:
    body = made(content)
    assert body.is_replayable is replayable
    assert await sent(body) == b"12"
    if replayable:
        assert await sent(body) == b"12"


async def test_a_path_is_read_anew_and_its_length_is_known(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"x" * 600_000)
    body = made(path)
    assert body.length == 600_000
    assert len(await sent(body)) == len(await sent(body)) == 600_000


async def test_a_file_is_sent_from_where_it_stood() -> None:
    file = io.BytesIO(b"0123456789")
    file.seek(4)
    body = made(file)
    assert body.length == 6
    assert [await sent(body), await sent(body)] == [b"456789"] * 2


@pytest.mark.parametrize("content", [b"bytes", "text"])
def test_bytes_and_text_stay_as_they_are(content: bytes | str) -> None:
    assert body_of(content) is content


@pytest.mark.parametrize("content", [{"a": 1}, 7])
def test_anything_else_is_refused_in_words(content: Any) -> None:
    with pytest.raises(ConfigurationError, match="json="):
        body_of(content)


@pytest.mark.parametrize(
    ("files", "replayable"),
    [
        ({"a": io.BytesIO(b"1")}, True),
        ({"a": ("name", io.BytesIO(b"1"), "text/plain")}, True),
        ([("a", ("name", b"1")), ("b", "text")], True),
        ([("a", ("name", Pipe(b"1")))], False),
    ],
)
def test_a_form_can_go_twice_if_its_files_can(files: Any, replayable: bool) -> None:
    assert files_are_replayable(files) is replayable

"""Where keys come from, and that they turn up nowhere."""

import logging
import os
import pickle
import traceback
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from shared.infrastructure.http import HTTP
from shared.infrastructure.http.credentials import (
    REDACTED,
    ApiKeyLayer,
    CredentialError,
    key_file,
    redacted,
)
from shared.infrastructure.resilience import (
    Listeners,
    RetryConfig,
    RetryLayer,
    describe,
    stack,
    trace_call,
)
from tests.unit.http.scripted_wire import Wire

KEY = "sk-top-secret"
REQUEST = httpx.Request("POST", "https://api.example/v1", json={"a": 1})


def failing(error: Exception) -> Any:
    def provider() -> str:
        raise error

    return provider


def rotating(*keys: str) -> Any:
    return iter(keys).__next__


async def later() -> SecretStr:
    return SecretStr(KEY)


def test_a_key_file_is_followed_whatever_its_time_stamps_say(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("  first\r\n")
    read, stamp = key_file(str(path)), path.stat()
    assert read() == SecretStr("first")
    path.write_text("  again\r\n")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert read() == SecretStr("again")
    path.unlink()
    with pytest.raises(CredentialError, match="No such file") as caught:
        read()
    assert str(path) in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff" + KEY.encode(), KEY.encode() + b"\n2"])
async def test_a_key_file_that_holds_no_key_is_a_typed_error(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    layer = ApiKeyLayer(key_file(path), origin=None)
    with pytest.raises(CredentialError) as caught:
        await stack(Wire(), layer, semantics=HTTP)(REQUEST)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "provider",
    [
        lambda: KEY + "\n",
        later,
        rotating(KEY, KEY + "-2"),
        failing(ValueError(f"bad {KEY}")),
        failing(UnicodeDecodeError("utf-8", KEY.encode(), 0, 1, KEY)),
    ],
)
async def test_the_key_turns_up_in_nothing_that_is_shown(
    provider: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    heard: list[Any] = []
    layer = ApiKeyLayer(provider, origin=None, listeners=Listeners([heard.append]))
    call = stack(Wire(401, 500), RetryLayer(RetryConfig(max_retries=0)), layer, semantics=HTTP)
    shown: list[object] = [layer, describe(call)]
    with trace_call() as trace:
        try:
            shown.append(await call(REQUEST))
        except CredentialError as error:
            shown += [error, error.to_dict(), error.__context__, error.__cause__, vars(error)]
            error.trace = None
            shown += [*traceback.format_exception(error), pickle.dumps(error)]
    shown += [trace, trace.entries, heard, [event.to_dict() for event in heard], caplog.text]
    assert KEY not in "\n".join(f"{thing} {thing!r}" for thing in shown)


def test_what_holds_a_key_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match="ApiKeyLayer holds a secret"):
        pickle.dumps(ApiKeyLayer(KEY, origin=None))


@pytest.mark.parametrize(
    "name",
    [
        *("Authorization", "authorization", "Proxy-Authorization", "Cookie", "Set-Cookie"),
        *("x-api-key", "api-key", "APIKEY", "X-Amz-Security-Token", "x-goog-api-key"),
        *("X-Auth-Token", "Ocp-Apim-Subscription-Key", "CF-Access-Client-Secret", "x_api_key"),
        *(
            "X-Auth",
            "X-Credential",
            "X-Client-Credentials",
            "X-Jwt",
            "X-Password",
            "Mcp-Session-Id",
        ),
    ],
)
def test_a_field_that_may_hold_a_secret_is_not_for_logs(name: str) -> None:
    assert redacted(httpx.Headers({name: KEY})) == {name.lower(): REDACTED}
    assert redacted({name: KEY}) == {name: REDACTED}


def test_a_field_that_holds_none_is() -> None:
    harmless = {"Idempotency-Key": "7", "content-type": "a/b", "keep-alive": "5", "tokens": "9"}
    assert redacted(harmless) == harmless

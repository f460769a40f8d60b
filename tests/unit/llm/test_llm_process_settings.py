import os
import subprocess
import sys

import pytest

from services.llm.service import client_of
from services.llm.settings import LLMProcessSettings, LLMServiceSettings
from shared.infrastructure.resilience import ConfigurationError

NUMBERS = (
    *("HEADER_TIMEOUT", "BODY_TIMEOUT", "DRAIN_DELAY", "DRAIN_TIMEOUT", "HEALTH_CHECK_INTERVAL"),
    *("CONNECT_TIMEOUT", "READ_TIMEOUT", "FIRST_TOKEN_TIMEOUT", "IDLE_TIMEOUT", "TOTAL_TIMEOUT"),
    *("RECOVERY_TIMEOUT", "REQUESTS_PER_SECOND", "KEY_REQUESTS_PER_SECOND", "HEDGE_DELAY"),
)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
def test_a_number_that_is_none_stops_the_start_and_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"LLM_{name}: "):
        LLMProcessSettings.from_env(environ={f"LLM_{name}": value})


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"LLM_KEY_TOKENS_PER_MINUTE": "5"}, "LLM_KEY_TOKENS_PER_MINUTE .* set LLM_API_KEYS"),
        ({"LLM_KEY_BURST_SIZE": "5"}, "LLM_KEY_BURST_SIZE .* set LLM_API_KEYS"),
        ({"LLM_KEY_BURST_SIZE": "5", "LLM_API_KEYS": "k"}, "without a rate"),
        ({"LLM_API_KEYS": '[{"key": "k", "burst_size": 5}]'}, "without a rate"),
        ({"LLM_API_KEYS": "k,k"}, "LLM_API_KEYS holds a key twice"),
        ({"LLM_ADMIN_KEYS": "k,k"}, "LLM_ADMIN_KEYS holds a key twice"),
        ({"LLM_API_KEYS": "k,l", "LLM_ADMIN_KEYS": "l"}, "in LLM_API_KEYS and in LLM_ADMIN_KEYS"),
        ({"LLM_HOSTS": "gpu/1=http://a"}, "LLM_HOSTS: .*'gpu/1' cannot stand in /admin/hosts"),
        ({"LLM_HOSTS": "gpü=http://a"}, "cannot stand"),
        ({"LLM_HOSTS": "..=http://a"}, "cannot stand"),
    ],
)
def test_settings_that_would_do_nothing_or_harm_are_refused(
    variables: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        LLMProcessSettings.from_env(environ=variables)


def test_a_burst_holds_for_the_keys_that_have_a_rate() -> None:
    keys = '[{"key": "k", "requests_per_second": 1}, "l"]'
    environ = {"LLM_API_KEYS": keys, "LLM_KEY_BURST_SIZE": "5"}
    assert LLMProcessSettings.from_env(environ=environ).key_burst_size == 5


async def test_late_calls_are_hedged_if_a_delay_is_set() -> None:
    for delay, is_hedged in ((None, False), (0.5, True)):
        client = client_of(LLMServiceSettings(hedge_delay=delay))
        assert ("hedged_count" in client.get_status()["hedge"]) is is_hedged
        await client.stop()


def test_check_ends_quietly_when_nobody_reads_on() -> None:
    arguments = [sys.executable, "-m", "services.llm", "check", "--hosts", "a=http://127.0.0.1:9"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            arguments, stdout=pipe, stderr=subprocess.PIPE, check=False, timeout=60
        )
    assert (done.returncode, done.stderr) == (1, b"")

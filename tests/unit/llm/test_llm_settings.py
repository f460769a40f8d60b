import pytest
from pydantic import SecretStr, ValidationError

from services.llm import LLMServiceSettings
from shared.infrastructure.balancing import LLMHost, LoadBalancingStrategy
from shared.infrastructure.resilience import ConfigurationError
from shared.models import LLMRequest


def hosts(text: str) -> list[LLMHost]:
    return list(LLMServiceSettings.from_env("LLM_", {"LLM_HOSTS": text}).hosts)


def test_hosts_are_read_as_json_or_as_a_list_of_names_and_urls() -> None:
    assert hosts("a=http://x:1, b=https://y/base") == [
        LLMHost("a", "http://x:1"),
        LLMHost("b", "https://y/base"),
    ]
    text = '[{"name": "a", "url": "http://x", "weight": 2, "api_key": "k"}]'
    assert hosts(text) == [LLMHost("a", "http://x", 2.0, api_key="k")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://x", "write each host as name=url"),
        ("a=ftp://x", "LLM_HOSTS: .*http:// or https://"),
        ('[{"name": "a"}]', r"LLM_HOSTS\.0\.url: Field required"),
        ('[{"name": "a", "url": "http://x", "wait": 1}]', r"LLM_HOSTS\.0\.wait: Unexpected"),
        ('[{"name": "a", "url": "http://x", "weight": 0}]', "weight of a must be above 0"),
    ],
)
def test_wrong_hosts_are_refused_with_a_reason(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        hosts(text)


def test_the_common_key_goes_to_the_hosts_that_have_none() -> None:
    own, other = LLMHost("a", "http://x", api_key="own"), LLMHost("b", "http://y")
    settings = LLMServiceSettings(hosts=[own, other], api_key=SecretStr("common"))
    assert [host.api_key for host in settings.keyed_hosts()] == [
        SecretStr("own"),
        SecretStr("common"),
    ]
    assert "common" not in repr(settings)


def test_strategy_and_numbers_come_from_the_environment() -> None:
    environ = {"LLM_STRATEGY": "least_loaded", "LLM_REQUESTS_PER_SECOND": "2.5"}
    settings = LLMServiceSettings.from_env("LLM_", environ)
    assert settings.strategy is LoadBalancingStrategy.LEAST_LOADED
    assert settings.requests_per_second == 2.5
    assert [host.url for host in settings.hosts] == ["http://127.0.0.1:8080"]


def test_a_request_is_one_prompt_or_one_conversation() -> None:
    talk = [{"role": "user", "content": "hi"}]
    with pytest.raises(ValidationError, match="exactly one of prompt and messages"):
        LLMRequest()
    with pytest.raises(ValidationError, match="exactly one of prompt and messages"):
        LLMRequest(prompt="hi", messages=talk)
    with pytest.raises(ValidationError, match="is empty"):
        LLMRequest(prompt="")
    with pytest.raises(ValidationError, match="is empty"):
        LLMRequest(messages=[])


def test_a_request_becomes_the_payload_of_a_chat_call() -> None:
    request = LLMRequest(
        prompt="hi", model="m", max_tokens=5, stop=["\n"], extra={"logprobs": True, "n": None}
    )
    assert request.to_payload() == {
        "messages": [{"role": "user", "content": "hi"}],
        "model": "m",
        "max_tokens": 5,
        "stop": ["\n"],
        "logprobs": True,
        "n": None,
    }

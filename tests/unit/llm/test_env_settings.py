import pytest
from pydantic import Field, SecretStr

from shared.infrastructure.resilience import ConfigurationError, RetryConfig
from shared.infrastructure.settings import EnvSettings


class Settings(EnvSettings, frozen=True):
    port: int = 8080
    name: str | None = None
    key: SecretStr | None = None
    retry: RetryConfig = RetryConfig()
    tags: list[str] = Field(default_factory=list)


def settings(**environ: str) -> Settings:
    return Settings.from_env("APP_", {"PATH": "/bin", **environ})


def test_variables_behind_the_prefix_become_fields_and_the_rest_is_left_alone() -> None:
    found = settings(APP_PORT="80", APP_RETRY='{"max_retries": 7}', APP_TAGS='["a", "b"]')
    assert (found.port, found.retry.max_retries, found.tags) == (80, 7, ["a", "b"])
    assert settings() == Settings()


def test_text_that_looks_like_json_stays_text_where_text_is_asked_for() -> None:
    found = settings(APP_NAME='{"a": 1}', APP_KEY="[secret")
    assert found.name == '{"a": 1}'
    assert found.key is not None
    assert found.key.get_secret_value() == "[secret"


def test_a_variable_nobody_knows_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(
        ConfigurationError, match="unknown variable APP_PROT: did you mean APP_PORT"
    ):
        settings(APP_PROT="80")


def test_wrong_values_are_all_named_and_never_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(APP_PORT="s3cret", APP_RETRY='{"max_retries": -1, "s3cret": 1}')
    message = str(caught.value)
    assert "APP_PORT: " in message
    assert "APP_RETRY.max_retries: " in message
    assert "input_value" not in message
    assert message.count("s3cret") == 1  # the unknown key itself, which is no value
    with pytest.raises(ConfigurationError, match="APP_TAGS is not valid JSON") as caught:
        settings(APP_TAGS="[s3cret")
    assert "s3cret" not in str(caught.value)


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_PORT", "81")
    assert Settings.from_env("APP_").port == 81

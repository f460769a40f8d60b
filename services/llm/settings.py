"""Settings of the LLM service, from code or from the environment."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Self, cast

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from shared.infrastructure.balancing import LLMHost, LoadBalancingStrategy
from shared.infrastructure.settings import EnvSettings, Pause, Positive, Seconds, ServerSettings

PREFIX = "LLM_"

# A host is named in paths and in headers.
_HOST_NAME = re.compile(r"(?!\.{1,2}\Z)[!-.0-~]([ -.0-~]*[!-.0-~])?\Z")


class LLMServiceSettings(EnvSettings, frozen=True):
    """How the LLM service reaches its hosts; `LLMServiceSettings.from_env("LLM_")` reads them.

    Attributes:
        hosts: The hosts; from the environment as JSON, or as `name=url,name=url`. Default: one,
            at llama-server's own address, http://127.0.0.1:8080.
        api_key: Bearer token for the hosts that have none of their own; None sends none.
        strategy: Which host gets the next call; round robin.
        model: Model asked for where a request names none; None leaves it to the host.
        embedding_model: The same for embeddings; None is `model`.
        max_connections: Connections to each host; 100; at least 1.
        max_keepalive_connections: Idle connections kept for each host; 20; at least 0.
        connect_timeout: Seconds to open a connection; 5; above 0.
        read_timeout: Silence tolerated, in seconds; 120; above 0. An answer that is not streamed
            comes after a silence as long as its generation.
        first_token_timeout: Seconds to the first content of an answer; None (default) is
            `read_timeout`; above 0.
        idle_timeout: Seconds between two pieces of content; None (default) is `read_timeout`;
            above 0.
        total_timeout: Seconds for a whole call, retries and waits included; None (default) is no
            limit.
        max_retries: Attempts after the first, on all hosts together; 3; at least 0.
        failure_threshold: Failures in a row after which a host is left alone; 5; at least 1.
        recovery_timeout: Seconds it is left alone; 60; above 0.
        requests_per_second: Calls the service starts, whatever their host; 10; above 0.
        burst_size: Calls that may start at once after a quiet time; 20; at least 1.
        health_check_interval: Seconds between the health checks of a host; 30; above 0.
        hedge_delay: Seconds without an answer after which a call is sent to another host, too; None
            (default) never is; at least 0.
    """

    PREFIX: ClassVar[str] = PREFIX

    hosts: Sequence[LLMHost] = (LLMHost("local", "http://127.0.0.1:8080"),)
    api_key: SecretStr | None = None
    strategy: LoadBalancingStrategy = LoadBalancingStrategy.ROUND_ROBIN
    model: str | None = None
    embedding_model: str | None = None
    max_connections: int = Field(default=100, ge=1)
    max_keepalive_connections: int = Field(default=20, ge=0)
    connect_timeout: Seconds = 5.0
    read_timeout: Seconds = 120.0
    first_token_timeout: Seconds | None = None
    idle_timeout: Seconds | None = None
    total_timeout: Seconds | None = None
    max_retries: int = Field(default=3, ge=0)
    failure_threshold: int = Field(default=5, ge=1)
    recovery_timeout: Seconds = 60.0
    requests_per_second: Positive = 10.0
    burst_size: int = Field(default=20, ge=1)
    health_check_interval: Seconds = 30.0
    hedge_delay: Pause | None = None

    @field_validator("hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [_named(part) for part in value.split(",")] if isinstance(value, str) else value

    def keyed_hosts(self) -> list[LLMHost]:
        """Return the hosts, each with the key it is to be sent."""
        return [
            host if host.api_key else replace(host, api_key=self.api_key) for host in self.hosts
        ]


class ClientKey(BaseModel, frozen=True, extra="forbid"):
    """An API key that clients of the process may give, and how much may be done with it.

    Attributes:
        key: The bearer token.
        name: Whose it is, in metrics; None (default) is "default".
        requests_per_second: Requests that may be started with it; None (default) is that of the
            settings; above 0.
        burst_size: Requests that may start at once after a quiet time; None (default) is that of
            the settings; at least 1.
        tokens_per_minute: Tokens that may be read and written; None (default) is that of the
            settings; above 0.
    """

    key: SecretStr = Field(min_length=1)
    name: str | None = Field(default=None, min_length=1, max_length=64)
    requests_per_second: Positive | None = None
    burst_size: int | None = Field(default=None, ge=1)
    tokens_per_minute: Positive | None = None


class LLMProcessSettings(LLMServiceSettings, ServerSettings, frozen=True):
    """What the process needs beside the service: where it listens, and for whom.

    The service's `requests_per_second` and `burst_size` bound the process only if they are given;
    so do `model` and `embedding_model` not at all: requests go up as they are.

    Attributes:
        api_keys: Bearer tokens the process accepts: separated by commas, or as a JSON list of them
            or of objects (`key`, `name`, `requests_per_second`, `burst_size`,
            `tokens_per_minute`); none (default) asks for none.
        admin_keys: Those of the routes under `/admin`, which are not there without one.
        key_requests_per_second: Requests a second with one API key; None (default) is no limit;
            above 0.
        key_burst_size: Requests with one key that may start at once after a quiet time; None
            (default) is a tenth of a second's worth, at least 1.
        key_tokens_per_minute: Tokens a minute with one API key, read and written; None (default)
            is no limit; above 0.
        max_clients: Connections of clients at the same time, health probes aside; None (default)
            is no bound; at least 1.
    """

    api_keys: tuple[ClientKey, ...] = ()
    admin_keys: tuple[Annotated[SecretStr, Field(min_length=1)], ...] = ()
    key_requests_per_second: Positive | None = None
    key_burst_size: int | None = Field(default=None, ge=1)
    key_tokens_per_minute: Positive | None = None
    max_clients: int | None = Field(default=None, ge=1)

    @field_validator("api_keys", mode="before")
    @classmethod
    def _read_keys(cls, value: Any) -> Any:
        keys = _listed(value)
        if not isinstance(keys, (list, tuple)):
            return keys
        listed = cast("Sequence[object]", keys)
        return [{"key": key} if isinstance(key, (str, SecretStr)) else key for key in listed]

    @field_validator("admin_keys", mode="before")
    @classmethod
    def _read_admin_keys(cls, value: Any) -> Any:
        return _listed(value)

    @field_validator("hosts")
    @classmethod
    def _check_names(cls, hosts: Sequence[LLMHost]) -> Sequence[LLMHost]:
        for host in hosts:
            if not _HOST_NAME.match(host.name):
                raise ValueError(
                    f"the name {host.name!r} cannot stand in /admin/hosts/NAME: use letters, "
                    "digits and signs of ASCII, without /"
                )
        return hosts

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        names = ("key_requests_per_second", "key_burst_size", "key_tokens_per_minute")
        given = [PREFIX + name.upper() for name in names if getattr(self, name) is not None]
        if given and not self.api_keys:
            raise ValueError(
                f"{given[0]} limits each API key, and there is none: set {PREFIX}API_KEYS, or "
                f"{PREFIX}REQUESTS_PER_SECOND for all clients together"
            )
        if self.key_requests_per_second is None:
            keys = self.api_keys
            is_idle = self.key_burst_size and not any(key.requests_per_second for key in keys)
            if is_idle or any(key.burst_size and not key.requests_per_second for key in keys):
                raise ValueError(
                    "a burst size limits nothing without a rate: set "
                    f"{PREFIX}KEY_REQUESTS_PER_SECOND, or requests_per_second beside burst_size"
                )
        return self

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        keys = [key.key.get_secret_value() for key in self.api_keys]
        admins = [key.get_secret_value() for key in self.admin_keys]
        for name, listed in (("API_KEYS", keys), ("ADMIN_KEYS", admins)):
            if max(Counter(listed).values(), default=1) > 1:
                raise ValueError(f"{PREFIX}{name} holds a key twice")
        if not set(keys).isdisjoint(admins):
            raise ValueError(
                f"a key is in {PREFIX}API_KEYS and in {PREFIX}ADMIN_KEYS: a client with it could "
                "take hosts out"
            )
        return self


def _listed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [item.strip() for item in value.split(",") if item.strip()]


def _named(text: str) -> LLMHost:
    name, found, url = text.strip().partition("=")
    if not found:
        raise ValueError("write each host as name=url, and commas in between")
    return LLMHost(name.strip(), url.strip())

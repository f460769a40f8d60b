"""Settings of the LLM service, from code or from the environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field, SecretStr, field_validator

from shared.infrastructure.balancing import LLMHost, LoadBalancingStrategy
from shared.infrastructure.settings import EnvSettings


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
        total_timeout: Seconds for a whole call, retries and waits included; None (default) is no
            limit.
        max_retries: Attempts after the first, on all hosts together; 3; at least 0.
        failure_threshold: Failures in a row after which a host is left alone; 5; at least 1.
        recovery_timeout: Seconds it is left alone; 60; above 0.
        requests_per_second: Calls the service starts, whatever their host; 10; above 0.
        burst_size: Calls that may start at once after a quiet time; 20; at least 1.
        health_check_interval: Seconds between the health checks of a host; 30; above 0.
    """

    hosts: Sequence[LLMHost] = (LLMHost("local", "http://127.0.0.1:8080"),)
    api_key: SecretStr | None = None
    strategy: LoadBalancingStrategy = LoadBalancingStrategy.ROUND_ROBIN
    model: str | None = None
    embedding_model: str | None = None
    max_connections: int = Field(default=100, ge=1)
    max_keepalive_connections: int = Field(default=20, ge=0)
    connect_timeout: float = Field(default=5.0, gt=0)
    read_timeout: float = Field(default=120.0, gt=0)
    total_timeout: float | None = Field(default=None, gt=0)
    max_retries: int = Field(default=3, ge=0)
    failure_threshold: int = Field(default=5, ge=1)
    recovery_timeout: float = Field(default=60.0, gt=0)
    requests_per_second: float = Field(default=10.0, gt=0)
    burst_size: int = Field(default=20, ge=1)
    health_check_interval: float = Field(default=30.0, gt=0)

    @field_validator("hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [_named(part) for part in value.split(",")] if isinstance(value, str) else value

    def keyed_hosts(self) -> list[LLMHost]:
        """Return the hosts, each with the key it is to be sent."""
        return [
            host if host.api_key else replace(host, api_key=self.api_key) for host in self.hosts
        ]


def _named(text: str) -> LLMHost:
    name, found, url = text.strip().partition("=")
    if not found:
        raise ValueError("write each host as name=url, and commas in between")
    return LLMHost(name.strip(), url.strip())

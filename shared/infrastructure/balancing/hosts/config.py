"""What the user says about one host."""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, ClassVar, cast

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from shared.infrastructure.balancing.config import AnswerTimeoutConfig, BalanceConfig
from shared.infrastructure.http import TimeoutConfig
from shared.infrastructure.http.credentials import ApiKey
from shared.infrastructure.resilience import (
    AdaptiveBulkheadConfig,
    AdaptiveRateConfig,
    BulkheadConfig,
    CircuitBreakerConfig,
    ConfigurationError,
    HealthConfig,
    RateLimitConfig,
)


class Capability(enum.StrEnum):
    """What a host may be able to do, beyond answering a chat."""

    TOOLS = "tools"
    VISION = "vision"
    JSON_SCHEMA = "json_schema"
    LOGPROBS = "logprobs"
    PREFILL = "prefill"
    """Goes on with an answer that it is given the beginning of."""


class HostLimits(BaseModel, frozen=True, extra="forbid"):
    """How much one host takes; None is no limit.

    Attributes:
        max_in_flight: Calls at once; at least 1.
        requests_per_minute: Above 0.
        tokens_per_minute: Tokens read and written; above 0.
        input_tokens_per_minute: Tokens read; above 0.
        output_tokens_per_minute: Tokens written; above 0.
    """

    max_in_flight: int | None = Field(default=None, ge=1)
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None
    input_tokens_per_minute: Annotated[float, Field(gt=0)] | None = None
    output_tokens_per_minute: Annotated[float, Field(gt=0)] | None = None


_NO_LIMITS = HostLimits()


@dataclass(frozen=True)
class LLMHost:
    """One host of a pool.

    Attributes:
        name: Unique name in errors, events and metrics.
        url: Where it is, `http://` or `https://`; a path in it goes before that of each request.
        weight: Its share of the work relative to the others; 1; above 0.
        api_key: Sent as bearer token, in place of any credentials of the caller; a function is
            asked for it, and again after a 401. None sends the caller's.
        key_header: Header that carries the key; None (default) is `Authorization` with `Bearer`.
        headers: Sent with every request to this host.
        health_path: Asked by active health checks; "/health".
        models: Models it serves; a mapping gives for each the host's own name of it. None
            (default) is any.
        capabilities: What it can do; None (default) is everything but `PREFILL`.
        context_length: Tokens its models can read; None is unknown.
        limits: How much it takes.
        priority: Its tier, for the strategy PRIORITY; the lowest number is asked first; 0.

    Raises:
        ConfigurationError: A name is empty, a URL is not one of a host, or a weight not above 0.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True
    )

    name: str
    url: str
    weight: float = 1.0
    _: KW_ONLY
    api_key: ApiKey | None = field(default=None, repr=False)
    key_header: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    health_path: str = "/health"
    models: Collection[str] | Mapping[str, str] | None = None
    capabilities: Collection[Capability] | None = None
    context_length: int | None = None
    limits: HostLimits = _NO_LIMITS
    priority: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.api_key, str):  # wherever the host goes from here, its key stays hidden
            object.__setattr__(self, "api_key", SecretStr(self.api_key))
        if not self.name:
            raise ConfigurationError("a host needs a name")
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ConfigurationError(f"weight of {self.name} must be above 0, not {self.weight}")
        if not self.health_path.startswith("/"):
            raise ConfigurationError(f"health_path of {self.name} must begin with /")
        # The URL is not repeated in a message: a wrong one may well hold a password.
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL:
            raise ConfigurationError(f"url of {self.name} is not valid") from None
        if url.scheme not in {"http", "https"} or not url.host:
            raise ConfigurationError(f"url of {self.name} must begin with http:// or https://")
        if url.userinfo or url.query or url.fragment:
            raise ConfigurationError(f"url of {self.name} must have no user, query or fragment")

    def serves(self, model: str | None) -> bool:
        """Say whether it serves a model; None is a request that names none."""
        return self.models is None or model is None or model in self.models

    def can(self, needs: frozenset[str]) -> bool:
        """Say whether it has every capability that is needed."""
        if self.capabilities is None:
            return Capability.PREFILL not in needs
        return needs.issubset(self.capabilities)

    def reads(self, tokens: int) -> bool:
        """Say whether its models can read so many tokens, as far as that is known."""
        return self.context_length is None or tokens <= self.context_length

    def own_name(self, model: str | None) -> str | None:
        """Return how the host itself calls a model."""
        models = self.models
        if model is None or not isinstance(models, Mapping):
            return model
        return cast("Mapping[str, str]", models).get(model, model)


@dataclass(frozen=True)
class HostPolicy:
    """What guards each host of a pool; None leaves that layer out.

    Attributes:
        timeout: Time limits of an exchange.
        answers: Time limits in terms of content.
        circuit_breaker: When to leave a model at a host alone.
        rate_limit: How fast to call a host.
        bulkhead: How many calls at once.
        health: Active checks; None is those of `HealthConfig()`.
        balance: How hosts are chosen.
        max_connections: Calls at once that its connections are enough for; None is any number.
    """

    timeout: TimeoutConfig = TimeoutConfig()  # noqa: RUF009 - frozen
    answers: AnswerTimeoutConfig = AnswerTimeoutConfig()  # noqa: RUF009 - frozen
    circuit_breaker: CircuitBreakerConfig | None = None
    rate_limit: RateLimitConfig | AdaptiveRateConfig | None = None
    bulkhead: BulkheadConfig | AdaptiveBulkheadConfig | None = None
    health: HealthConfig | None = None
    balance: BalanceConfig = BalanceConfig()  # noqa: RUF009 - frozen
    max_connections: int | None = None

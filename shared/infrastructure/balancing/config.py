"""What the user says about a pool as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class AnswerTimeoutConfig(BaseModel, frozen=True, extra="forbid"):
    """How long a host may keep a caller waiting, in seconds of what the caller waits for: content.

    Attributes:
        first_token: From sending to the first content: text, reasoning or a tool call; roles,
            pings and blanks are none. A plain answer is all first token. None (default) is `read`
            of the pool's `TimeoutConfig`; "adaptive" is three times the 99th percentile of the
            host's latest, at least 10 and at most 120.
        idle: Between two pieces of content; None (default) is `read`. Time that the reader of the
            stream takes does not count.
        idle_bytes: Between two bytes of any kind; None (default) is `read`.
        first_token_by_model: `first_token` of models that think longer, or shorter.
        min_chars_per_second: Fewer are too few, as long as the answer can still be had elsewhere
            unnoticed; None (default) is no bound; above 0.
        slow_window: Seconds over which they are counted; 5; above 0.
    """

    first_token: Seconds | Literal["adaptive"] | None = None
    idle: Seconds | None = None
    idle_bytes: Seconds | None = None
    first_token_by_model: Mapping[str, Seconds] = Field(default_factory=dict)
    min_chars_per_second: Seconds | None = None
    slow_window: Seconds = 5.0


class BalanceConfig(BaseModel, frozen=True, extra="forbid"):
    """How hosts are chosen, beside the strategy.

    Attributes:
        queue_timeout: Seconds a call waits for room if every host is full; 10; at least 0.
        max_queued: Calls that may wait so; 1000; at least 0.
        slow_start: Seconds over which a host that comes back, or is new, grows to its weight; 30;
            at least 0. 0 is at once.
        panic_threshold: Share of hosts that must be open or down before that is ignored for a call
            that has no other host left, since then it is more likely our own trouble than theirs;
            0.5; 0 to 1. 1 never ignores it, and if no host at all is well it is ignored only for
            calls that have had an attempt.
        throttle: Seconds a host is left alone after a 429 that names none, doubling to
            `max_throttle` with each in a row; 1; above 0.
        max_throttle: See there; 30; above 0.
        max_wait: Longest wait a host may ask for while no other is left, in seconds; 10; at least
            0. Asked for more, the call fails at once.
        misconfigured: Seconds a host is left alone after it refused its key; 30; above 0.
        missing: Seconds a model counts as missing at a host that said it does not know it; 60;
            above 0.
    """

    queue_timeout: float = Field(default=10.0, ge=0)
    max_queued: int = Field(default=1000, ge=0)
    slow_start: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    panic_threshold: float = Field(default=0.5, ge=0, le=1)
    throttle: Seconds = 1.0
    max_throttle: Seconds = 30.0
    max_wait: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    misconfigured: Seconds = 30.0
    missing: Seconds = 60.0


class FallbackConfig(BaseModel, frozen=True, extra="forbid"):
    """Which model answers in place of one that cannot.

    Attributes:
        models: By model, those to try after it, in order, when every host has failed it.
        context_window: By model, larger ones for a request that is too long for it.
        content_filter: By model, others for a request that a policy forbade: empty, unless you
            have made sure that you may do that.
        rate_limit: By model, others while it is throttled everywhere; those of `models` else.
        aliases: By name that callers use, the model it stands for.
        max_fallbacks: Models tried after the first; 5; at least 0.
    """

    models: Mapping[str, Sequence[str]] = Field(default_factory=dict)
    context_window: Mapping[str, Sequence[str]] = Field(default_factory=dict)
    content_filter: Mapping[str, Sequence[str]] = Field(default_factory=dict)
    rate_limit: Mapping[str, Sequence[str]] = Field(default_factory=dict)
    aliases: Mapping[str, str] = Field(default_factory=dict)
    max_fallbacks: int = Field(default=5, ge=0)

"""Several LLM hosts that answer as one: balancing, failover, and streams that tell the truth.

A call goes down this list, its answer up again::

    distributed_llm.py      what a user calls
    httpx_transport.py, httpx2_transport.py     the same pool under an SDK
    typed/                  requests and answers as models; streams that recover
    facts.py, dialects/     what is asked, as far as the way of the call depends on it
    pool.py                 the stack of layers
    fallback.py             other models, where all hosts failed one
    failover.py             whether and when there is another attempt: faults.py, classify.py
    hedging.py              a late request to a second host
    balance.py, strategies/ which host gets it
    hosts/                  a host, and a lane for each of its models
    accounting/             token limits, prices, budgets, kept answers
    answers/                innermost: what is an answer at all, and how long it may take

What they share::

    call.py                 what the attempts of one call know of each other
    config.py, options.py   what the user says about the pool
    semantics.py            how layers read its outcomes
    errors.py               what can go wrong
"""

from shared.infrastructure.balancing.accounting import (
    AnswerCacheConfig,
    Budget,
    BudgetExceededError,
    Ledger,
    Price,
    PriceTable,
)
from shared.infrastructure.balancing.call import CallOptions
from shared.infrastructure.balancing.config import (
    AnswerTimeoutConfig,
    BalanceConfig,
    FallbackConfig,
)
from shared.infrastructure.balancing.distributed_llm import DistributedLLMClient
from shared.infrastructure.balancing.errors import (
    AuthenticationError,
    BadRequestError,
    ConflictError,
    ContentFilterError,
    ContextWindowError,
    FirstTokenTimeoutError,
    InBandError,
    InsufficientQuotaError,
    InvalidResponseError,
    InvalidStreamError,
    ModelNotFoundError,
    NoHostAvailableError,
    NotRunningError,
    OverloadedError,
    PaymentRequiredError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    SilenceError,
    SlowStreamError,
    StreamIdleTimeoutError,
    StreamInterruptedError,
    StreamTruncatedError,
    TokenLimitError,
    UnexpectedAnswerError,
    UnprocessableError,
    UpstreamStatusError,
)
from shared.infrastructure.balancing.faults import RULES, Fault, Rule
from shared.infrastructure.balancing.hosts import Capability, HostLimits, LLMHost
from shared.infrastructure.balancing.httpx_transport import BalancedTransport, balanced_transport
from shared.infrastructure.balancing.options import PoolOptions
from shared.infrastructure.balancing.pool import HostPool
from shared.infrastructure.balancing.route import route_of
from shared.infrastructure.balancing.strategies import (
    BalancingStrategy,
    Candidate,
    LoadBalancingStrategy,
    PickContext,
)
from shared.infrastructure.balancing.typed import ChatStream, Recovery

__all__ = [
    # errors.py
    "AuthenticationError",
    "BadRequestError",
    "ConflictError",
    "ContentFilterError",
    "ContextWindowError",
    "FirstTokenTimeoutError",
    "InBandError",
    "InsufficientQuotaError",
    "InvalidResponseError",
    "InvalidStreamError",
    "ModelNotFoundError",
    "NoHostAvailableError",
    "NotRunningError",
    "OverloadedError",
    "PaymentRequiredError",
    "PermissionDeniedError",
    "RateLimitedError",
    "ServerError",
    "SilenceError",
    "SlowStreamError",
    "StreamIdleTimeoutError",
    "StreamInterruptedError",
    "StreamTruncatedError",
    "TokenLimitError",
    "UnexpectedAnswerError",
    "UnprocessableError",
    "UpstreamStatusError",
    # faults.py
    "RULES",
    "Fault",
    "Rule",
    # config.py
    "AnswerTimeoutConfig",
    "BalanceConfig",
    "FallbackConfig",
    # call.py
    "CallOptions",
    # hosts
    "Capability",
    "HostLimits",
    "LLMHost",
    # strategies
    "BalancingStrategy",
    "Candidate",
    "LoadBalancingStrategy",
    "PickContext",
    # accounting
    "AnswerCacheConfig",
    "Budget",
    "BudgetExceededError",
    "Ledger",
    "Price",
    "PriceTable",
    # typed
    "ChatStream",
    "Recovery",
    # options.py
    "PoolOptions",
    # pool.py
    "HostPool",
    # distributed_llm.py
    "DistributedLLMClient",
    # httpx_transport.py
    "BalancedTransport",
    "balanced_transport",
    # route.py
    "route_of",
]

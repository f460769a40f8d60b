"""What calls cost: token limits, prices, budgets, and answers that need not be paid twice."""

from shared.infrastructure.balancing.accounting.answer_cache import AnswerCache, AnswerCacheConfig
from shared.infrastructure.balancing.accounting.answer_cache_layer import (
    CACHED,
    AnswerCacheLayer,
    Cached,
)
from shared.infrastructure.balancing.accounting.bill import (
    Bill,
    BillItem,
    bill_of,
    tokens_of,
    usage_of,
)
from shared.infrastructure.balancing.accounting.errors import BudgetExceededError
from shared.infrastructure.balancing.accounting.estimate import (
    CountTokens,
    Estimate,
    TokenEstimator,
    estimate_tokens,
)
from shared.infrastructure.balancing.accounting.ledger import Budget, BudgetReservation, Ledger
from shared.infrastructure.balancing.accounting.ledger_layer import LedgerLayer
from shared.infrastructure.balancing.accounting.prices import Price, PriceTable
from shared.infrastructure.balancing.accounting.shared_limits import (
    CostLimiter,
    SharedTokenLimits,
    SharedTokenReservation,
)
from shared.infrastructure.balancing.accounting.token_limits import TokenLimits, TokenReservation
from shared.infrastructure.balancing.accounting.usage import TokenUsage

__all__ = [
    # answer_cache.py
    "AnswerCache",
    "AnswerCacheConfig",
    # answer_cache_layer.py
    "CACHED",
    "AnswerCacheLayer",
    "Cached",
    # bill.py
    "Bill",
    "BillItem",
    "bill_of",
    "tokens_of",
    "usage_of",
    # errors.py
    "BudgetExceededError",
    # estimate.py
    "CountTokens",
    "Estimate",
    "TokenEstimator",
    "estimate_tokens",
    # ledger.py
    "Budget",
    "BudgetReservation",
    "Ledger",
    # ledger_layer.py
    "LedgerLayer",
    # prices.py
    "Price",
    "PriceTable",
    # shared_limits.py
    "CostLimiter",
    "SharedTokenLimits",
    "SharedTokenReservation",
    # token_limits.py
    "TokenLimits",
    "TokenReservation",
    # usage.py
    "TokenUsage",
]

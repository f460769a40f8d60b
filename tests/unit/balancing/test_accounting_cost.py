"""Prices, bills, and what may be spent."""

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.infrastructure.balancing.accounting import (
    Bill,
    Budget,
    BudgetExceededError,
    Ledger,
    PriceTable,
    TokenUsage,
    bill_of,
)
from shared.infrastructure.balancing.call import CALL, Attempt, Call
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.resilience import CallRefusedError, ConfigurationError
from tests.unit.balancing.accounting_calls import question

USAGE = TokenUsage(1000, 500, cached_read=200, cache_write=100, reasoning=300)
FULL: Mapping[str, Any] = {
    "input": "1",
    "output": "10",
    "cached_read": "0.1",
    "cache_write": "1.25",
    "reasoning": "20",
    "per_request": "0.01",
}


def cost(prices: Mapping[str, Any], model: str, usage: Any = USAGE) -> Decimal | None:
    return PriceTable.of(prices).cost(model, usage)


def flat(price: int) -> dict[str, int]:
    return {"input": price, "output": price}


def test_each_kind_of_token_has_its_price() -> None:
    expected = Decimal(700 * 1 + 20 + 125 + 200 * 10 + 300 * 20) / 1_000_000 + Decimal("0.01")
    assert cost({"m": FULL}, "m") == expected


def test_kinds_without_a_price_cost_what_they_are_part_of() -> None:
    assert cost({"m": {"input": 1, "output": 2}}, "m") == Decimal("0.002")


def test_money_is_exact() -> None:
    table = PriceTable.of({"m": {"input": 0.1, "output": 0.2}})
    total = sum((table.cost("m", TokenUsage(1, 1)) or Decimal(0) for _ in range(1000)), Decimal(0))
    assert total == Decimal("0.0003")


def test_an_unknown_price_is_none_and_an_explicit_zero_is_zero() -> None:
    assert cost({"m": flat(1)}, "other") is None
    assert cost({"m": flat(1)}, "m", None) is None
    assert cost({"m": flat(1)}, "m", {}) is None
    assert cost({"m": flat(1)}, "m", {"prompt_tokens": 0, "completion_tokens": 0}) == 0
    assert cost({"m": flat(0)}, "m") == 0


TABLE = {
    "gpt-4o": flat(1),
    "gpt-4o-mini": flat(2),
    "gpt-*": flat(3),
    "gpt-4.1*": flat(4),
    "local/*": flat(5),
    "azure/gpt-4o": flat(6),
}
LOOKED_UP = {
    "gpt-4o": 1,
    "gpt-4o-2024-08-06": 1,
    "gpt-4o-mini": 2,
    "gpt-4o-mini-2024-07-18": 2,
    "gpt-4o-audio": 3,
    "gpt-4.1-nano": 4,
    "openai/gpt-4o": 1,
    "azure/gpt-4o": 6,
    "azure/gpt-4o-20240806": 6,
    "local/llama": 5,
    "openrouter/openai/gpt-4o-mini": 2,
    "llama": None,
    "my-gpt-4o": None,
}


@pytest.mark.parametrize("model", LOOKED_UP)
def test_a_model_is_looked_up_exactly_then_by_pattern_then_unqualified(model: str) -> None:
    price = PriceTable.of(TABLE).price_of(model)
    assert (price.input if price else None) == LOOKED_UP[model]


def test_looking_up_ever_new_names_takes_no_memory() -> None:
    table = PriceTable.of(TABLE)
    for number in range(5000):
        assert table.price_of(f"unknown-{number}") is None
    assert len(table._found) <= 1000


@pytest.mark.parametrize("name", ["prices.json", "prices.toml"])
def test_prices_are_read_from_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    toml = '["m"]\ninput = 0.15\noutput = 0.6\n'
    path.write_text(json.dumps({"m": {"input": 0.15, "output": 0.6}}) if "json" in name else toml)
    assert PriceTable.from_file(path).cost("m", TokenUsage(10**6, 0)) == Decimal("0.15")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "{"),
        ("a.toml", "= 1"),
        ("a.json", "[]"),
        ("a.json", '{"m": {}}'),
        ("a.json", '{"m": {"input": -1, "output": 1}}'),
        ("a.json", '{"m": {"input": 1, "output": 1, "outptu": 1}}'),
    ],
)
def test_a_file_that_holds_no_prices_is_refused(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigurationError):
        PriceTable.from_file(path)


def test_public_prices_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    with pytest.raises(ConfigurationError, match="pip install genai-prices"):
        PriceTable.from_genai_prices()


def test_public_prices_stand_behind_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def calc_price(usage: Any, model: str, provider_id: str | None) -> Any:
        asked.append((model, provider_id))
        if model == "unknown" or provider_id == "a":
            raise LookupError(model)
        return SimpleNamespace(total_price=Decimal(usage.input_tokens))

    package = SimpleNamespace(calc_price=calc_price, Usage=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "genai_prices", package)
    table = PriceTable.from_genai_prices({"mine": flat(1)})
    assert table.cost("mine", USAGE) == Decimal("0.0015")
    assert table.cost("openai/m", USAGE) == 1000
    assert table.cost("a/m", USAGE) == 1000
    assert table.cost("unknown", USAGE) is None
    assert asked[:3] == [("m", "openai"), ("m", "a"), ("m", None)]


PRICES = PriceTable.of({"m": flat(1), "free/m": flat(0)})
COUNTED = {"prompt_tokens": 100, "completion_tokens": 50}


def call_of_attempts(*attempts: Attempt, answered_by: int | None = -1) -> Call:
    call: Call = question(messages=[{"role": "user", "content": "x" * 64}]).extensions[CALL]
    call.attempts.extend(attempts)
    call.answered_by = None if answered_by is None else attempts[answered_by]
    return call


def micros(bill: Bill) -> list[int | None]:
    return [None if item.cost is None else int(item.cost * 10**6) for item in bill.items]


def test_a_bill_names_each_attempt_and_what_was_wasted() -> None:
    call = call_of_attempts(
        Attempt("a", 0.0, "m", usage=COUNTED),
        Attempt("b", 0.1, "m", is_hedge=True, usage={"prompt_tokens": 100, "completion_tokens": 5}),
        answered_by=0,
    )
    bill = bill_of(call, PRICES)
    assert micros(bill) == [150, 105]
    assert [(item.is_waste, item.is_hedge) for item in bill.items] == [(False, False), (True, True)]
    assert (bill.total, bill.waste) == (Decimal("0.000255"), Decimal("0.000105"))
    assert bill.items[1].to_dict() == {
        "host": "b",
        "model": "m",
        "input": 100,
        "output": 5,
        "estimated": False,
        "cost": "0.000105",
        "is_hedge": True,
        "is_waste": True,
    }


ATTEMPTS: dict[str, tuple[Attempt, int | None, bool]] = {
    "answered, and counted": (Attempt("a", 0, "m", usage=COUNTED), 150, False),
    "answered, and counted as nothing": (
        Attempt("a", 0, "m", usage={"prompt_tokens": 0, "completion_tokens": 0}),
        0,
        False,
    ),
    "answered, and not counted": (Attempt("a", 0, "m", characters=40), 30, True),
    "cancelled after a part": (Attempt("a", 0, "m", fault=Fault.OURS, characters=40), 30, True),
    "cancelled before any": (Attempt("a", 0, "m", fault=Fault.OURS), 20, True),
    "silent": (Attempt("a", 0, "m", fault=Fault.SILENT), 20, True),
    "broken off after a part": (Attempt("a", 0, "m", fault=Fault.BROKEN, characters=4), 21, True),
    "refused": (Attempt("a", 0, "m", fault=Fault.THROTTLED), 0, False),
    "never connected": (Attempt("a", 0, "m", fault=Fault.BROKEN), 0, False),
    "failed, and counted all the same": (
        Attempt("a", 0, "m", fault=Fault.BROKEN, usage=COUNTED),
        150,
        False,
    ),
    "at a host that is free": (Attempt("free", 0, "m", usage=COUNTED), 0, False),
    "by the host's own name, which has no price": (
        Attempt("a", 0, "m.gguf", usage=COUNTED),
        150,
        False,
    ),
}


@pytest.mark.parametrize("case", ATTEMPTS)
def test_an_attempt_is_billed_for_what_the_host_did(case: str) -> None:
    attempt, expected, estimated = ATTEMPTS[case]
    bill = bill_of(call_of_attempts(attempt), PRICES)
    assert (micros(bill), bill.estimated) == ([expected], estimated)


def test_a_bill_with_an_unknown_price_has_no_total() -> None:
    call = call_of_attempts(
        Attempt("a", 0, "m", usage=COUNTED), Attempt("b", 0, "m", usage=COUNTED)
    )
    call.facts = question(model="unpriced").extensions[CALL].facts
    call.attempts[1].model = "unpriced"
    bill = bill_of(call, PRICES)
    assert (micros(bill), bill.total) == ([150, None], None)
    assert bill_of(call, None).total is None


class Calendar:
    """A date that moves only when told to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 22, 10, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def euros(text: str, window: Any = "month") -> Budget:
    return Budget(limit=Decimal(text), window=window)


RENEWALS = {
    "hour": datetime(2026, 11, 22, 11, tzinfo=UTC),
    "day": datetime(2026, 11, 23, tzinfo=UTC),
    "month": datetime(2026, 12, 1, tzinfo=UTC),
    "total": None,
}


@pytest.mark.parametrize("window", RENEWALS)
def test_a_used_up_budget_refuses_and_says_when_it_renews(window: str) -> None:
    calendar = Calendar()
    ledger = Ledger({"t": [euros("1", window)]}, now=calendar)
    ledger.reserve("t", Decimal("0.4")).settle(Decimal("0.7"))
    with pytest.raises(BudgetExceededError) as refused:
        ledger.reserve("t", Decimal("0.31"))
    error, renews_at = refused.value, RENEWALS[window]
    assert isinstance(error, CallRefusedError)
    assert (error.key, error.left, error.renews_at) == ("t", Decimal("0.3"), renews_at)
    assert error.to_dict()["left"] == "0.3"
    ledger.reserve("t", Decimal("0.3")).cancel()
    if renews_at is None:
        assert error.retry_after is None
        calendar.now += timedelta(days=5000)
        with pytest.raises(BudgetExceededError):
            ledger.reserve("t", Decimal("0.31"))
    else:
        assert error.retry_after == (renews_at - calendar.now).total_seconds()
        calendar.now = renews_at
        ledger.reserve("t", Decimal(1))


@pytest.mark.parametrize("month", range(1, 13))
def test_a_month_ends_where_the_next_begins(month: int) -> None:
    last = datetime(2026, month, 28, 23, tzinfo=UTC)
    renews_at = euros("1").renews_at(last)
    assert renews_at == datetime(2026 + month // 12, month % 12 + 1, 1, tzinfo=UTC)


def test_what_is_reserved_is_not_given_twice() -> None:
    ledger = Ledger(each=[euros("1")], now=Calendar())
    first = ledger.reserve("t", Decimal("0.6"))
    with pytest.raises(BudgetExceededError):
        ledger.reserve("t", Decimal("0.6"))
    ledger.reserve("other", Decimal("0.6"))
    first.cancel()
    first.settle(Decimal(5))
    ledger.reserve("t", Decimal("0.6"))


def test_a_refusal_reserves_nothing_anywhere() -> None:
    ledger = Ledger(each=[euros("10"), euros("1", "hour")], together=[euros("2")], now=Calendar())
    with pytest.raises(BudgetExceededError):
        ledger.reserve("a", Decimal("1.5"))
    ledger.reserve("a", Decimal(1))
    ledger.reserve("b", Decimal(1))
    with pytest.raises(BudgetExceededError) as refused:
        ledger.reserve("c", Decimal("0.1"))
    assert refused.value.key == "all"


def test_a_cost_that_is_not_known_is_refused_only_by_a_used_up_budget() -> None:
    ledger = Ledger(each=[euros("1")], now=Calendar())
    ledger.reserve("t", None).settle(None)
    ledger.reserve("t", Decimal(1)).settle(Decimal(1))
    with pytest.raises(BudgetExceededError):
        ledger.reserve("t", None)


def test_what_is_settled_late_is_booked_where_it_was_reserved() -> None:
    calendar = Calendar()
    ledger = Ledger(each=[euros("1", "hour")], now=calendar)
    late = ledger.reserve("t", Decimal(1))
    calendar.now += timedelta(hours=1)
    ledger.reserve("t", Decimal("0.9"))
    late.settle(Decimal(1))
    ledger.reserve("t", Decimal("0.1"))


def test_a_flood_of_keys_shares_one_budget() -> None:
    calendar = Calendar()
    ledger = Ledger({"own": [euros("1")]}, each=[euros("1", "hour")], max_names=3, now=calendar)
    for key in ("a", "b", "c", "d"):
        ledger.reserve(key, Decimal("0.6")).settle(Decimal("0.6"))
    with pytest.raises(BudgetExceededError) as refused:
        ledger.reserve("e", Decimal("0.6"))
    assert refused.value.key == "(others)"
    ledger.reserve("own", Decimal(1))
    calendar.now += timedelta(hours=1)
    ledger.reserve("e", Decimal("0.6"))
    assert len(ledger.snapshot()["budgets"]) <= 5


def test_totals_are_kept_by_model_host_and_key() -> None:
    ledger = Ledger(max_names=2, now=Calendar())
    won, lost = Attempt("a", 0, "m", usage=COUNTED), Attempt("b", 0, "m", characters=40)
    ledger.book("t", bill_of(call_of_attempts(won, lost, answered_by=0), PRICES))
    unpriced = call_of_attempts(Attempt("c", 0, "x", usage=COUNTED))
    unpriced.facts = question(model="x").extensions[CALL].facts
    ledger.book("t", bill_of(unpriced, PRICES))
    snapshot = ledger.snapshot()
    assert snapshot["total"] == snapshot["keys"]["t"]
    assert snapshot["total"] == {
        "attempts": 3,
        "input": 220,
        "output": 110,
        "cost": "0.00018",
        "waste": "0.00003",
        "estimated": "0.00003",
        "unpriced": 1,
    }
    assert list(snapshot["models"]) == ["m", "x"]
    assert list(snapshot["hosts"]) == ["a", "b", "(others)"]
    assert json.dumps(snapshot)

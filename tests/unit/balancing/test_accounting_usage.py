"""Tokens as hosts count them, in every spelling, and what a call has cost so far."""

from decimal import Decimal
from typing import Any

import pytest

from shared.infrastructure.balancing.accounting import Price, PriceTable, TokenUsage, tokens_of
from shared.infrastructure.balancing.call import CALL, Call
from shared.infrastructure.balancing.faults import Fault
from tests.unit.balancing.accounting_calls import question

COUNTED: dict[str, tuple[dict[str, Any], TokenUsage | None]] = {
    "cached tokens are counted apart": (
        {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 90},
        TokenUsage(100, 5, cached_read=90),
    ),
    "cached tokens are counted in": (
        {"prompt_tokens": 100, "completion_tokens": 5, "cache_read_input_tokens": 90},
        TokenUsage(100, 5, cached_read=90),
    ),
    "both spellings": (
        {
            "prompt_tokens": 100,
            "input_tokens": 100,
            "output_tokens": 5,
            "cache_creation_input_tokens": 40,
        },
        TokenUsage(100, 5, cache_write=40),
    ),
    "no number": ({"prompt_tokens": True, "completion_tokens": False}, None),
    "whole numbers with a point": (
        {"prompt_tokens": 12.0, "completion_tokens": 3.0},
        TokenUsage(12, 3),
    ),
    "half a token": ({"prompt_tokens": 12.5, "completion_tokens": 3}, TokenUsage(0, 3)),
    "no finite number": ({"prompt_tokens": float("inf"), "total_tokens": 1}, TokenUsage(1, 0)),
    "more thought than written": (
        {
            "prompt_tokens": 1,
            "completion_tokens": 10,
            "completion_tokens_details": {"reasoning_tokens": 1000},
        },
        TokenUsage(1, 10, reasoning=10),
    ),
    "more cached than read": (
        {"prompt_tokens": 10, "cache_read_input_tokens": 50, "cache_creation_input_tokens": 50},
        TokenUsage(10, 0, cached_read=10),
    ),
}


@pytest.mark.parametrize("case", COUNTED)
def test_what_a_host_counts_is_read_with_care(case: str) -> None:
    counted, expected = COUNTED[case]
    assert TokenUsage.of(counted) == expected


def test_thoughts_that_were_not_written_are_not_billed() -> None:
    price = Price(input=Decimal(0), output=Decimal(1))
    usage = TokenUsage.of(COUNTED["more thought than written"][0])
    assert usage is not None
    assert price.cost(usage) == Decimal("0.00001")


RELEASES = {
    "gpt-4-0613": True,
    "gpt-4-1106-preview": False,
    "gpt-4-1106": True,
    "gpt-4-2411": True,
    "gpt-4-20240806": True,
    "gpt-4-2024-08-06": True,
    "gpt-4-latest": True,
    "gpt-4-8192": False,
    "gpt-4-4096": False,
    "gpt-4-1024": False,
    "gpt-4-12345678": False,
}


@pytest.mark.parametrize("model", RELEASES)
def test_a_release_is_no_other_model_and_a_size_is(model: str) -> None:
    found = PriceTable.of({"gpt-4": {"input": 1, "output": 1}}).price_of(model)
    assert (found is not None) == RELEASES[model]


def call() -> Call:
    asked: Call = question().extensions[CALL]
    return asked


def test_a_call_of_which_nothing_departed_has_cost_nothing() -> None:
    assert tokens_of(call()) == TokenUsage()


@pytest.mark.parametrize("fault", [None, Fault.OURS, Fault.SILENT])
def test_what_we_cut_off_costs_its_question_and_what_came(fault: Fault | None) -> None:
    asked = call()
    attempt = asked.depart("a", 0.0)
    attempt.characters = 41
    attempt.fault = fault
    assert tokens_of(asked) == TokenUsage(7, 11, estimated=True)


def test_a_failure_without_a_word_costs_nothing_and_all_else_adds_up() -> None:
    asked = call()
    failed, lost, answered = (asked.depart(host, 0.0) for host in "abc")
    failed.fault = Fault.BROKEN
    lost.characters = 4
    answered.usage = {"prompt_tokens": 20, "completion_tokens": 30}
    assert tokens_of(asked) == TokenUsage(27, 31, estimated=True)

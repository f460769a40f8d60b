"""Calls within their budgets: what is reserved before, and booked when all is over."""

import asyncio
from decimal import Decimal

import httpx
import pytest

from shared.infrastructure.balancing.accounting import (
    Budget,
    BudgetExceededError,
    Ledger,
    LedgerLayer,
    PriceTable,
)
from shared.infrastructure.balancing.call import Attempt, CallOptions, call_of
from shared.infrastructure.balancing.semantics import POOL
from shared.infrastructure.resilience import Send, Verdict, stack
from shared.infrastructure.resilience.layer import Settle
from tests.unit.balancing.accounting_calls import USAGE, Hosts, question

# A token costs a millionth; the question is estimated at 7 tokens and its answer at 100.
PRICES = PriceTable.of({"m": {"input": 1, "output": 1}})
ASKED = {"max_tokens": 100, "options": CallOptions(tenant="t")}


def budgeted(limit: str) -> tuple[Send[httpx.Request, httpx.Response], Ledger, Hosts]:
    ledger = Ledger(each=[Budget(limit=Decimal(limit), window="total")])
    hosts = Hosts()

    async def attempted(request: httpx.Request) -> httpx.Response:
        call = call_of(request.extensions)
        attempt = call.depart("a", 0.0, "m")
        response = await hosts(request)
        attempt.usage = USAGE
        call.answered_by = attempt
        return response

    return stack(attempted, LedgerLayer(ledger, PRICES), semantics=POOL), ledger, hosts


def spent(ledger: Ledger) -> tuple[Decimal, Decimal]:
    [budget] = ledger.snapshot()["budgets"]
    return Decimal(budget["spent"]) * 10**6, Decimal(budget["reserved"]) * 10**6


async def test_a_call_is_booked_at_what_it_cost() -> None:
    ask, ledger, _ = budgeted("1")
    await ask(question(**ASKED))
    assert spent(ledger) == (10, 0)
    assert ledger.snapshot()["keys"]["t"]["attempts"] == 1


async def test_calls_at_once_do_not_overdraw_a_budget() -> None:
    ask, ledger, hosts = budgeted("0.00022")
    hosts.gate.clear()
    calls = [asyncio.ensure_future(ask(question(**ASKED))) for _ in range(3)]
    await asyncio.sleep(0.0)
    hosts.gate.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [
        httpx.Response,
        httpx.Response,
        BudgetExceededError,
    ]
    assert (spent(ledger), len(hosts.asked)) == ((20, 0), 2)


async def test_a_cancelled_call_pays_for_what_the_host_may_have_read() -> None:
    ask, ledger, hosts = budgeted("1")
    hosts.gate.clear()
    call = asyncio.ensure_future(ask(question(**ASKED)))
    await asyncio.sleep(0.0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert spent(ledger) == (7, 0)
    assert ledger.snapshot()["total"]["estimated"] == "0.000007"
    assert ledger.snapshot()["total"]["waste"] == "0.000007"


class Body(httpx.AsyncByteStream):
    """A body that is over when it is told to be."""

    def on_over(self, settle: Settle) -> None:
        self._settle = settle

    def end(self) -> None:
        self._settle(Verdict.OK)


async def test_a_stream_is_booked_when_it_is_over() -> None:
    ledger = Ledger(each=[Budget(limit=Decimal(1), window="total")])
    body, request = Body(), question(**ASKED)

    async def streaming(_request: httpx.Request) -> httpx.Response:
        call_of(request.extensions).attempts.append(Attempt("a", 0.0, "m", characters=40))
        return httpx.Response(200, stream=body)

    ask = stack(streaming, LedgerLayer(ledger, PRICES), semantics=POOL)
    await ask(request)
    assert spent(ledger) == (0, 107)
    call_of(request.extensions).attempts[0].usage = USAGE
    body.end()
    assert spent(ledger) == (10, 0)


async def test_what_has_no_price_is_asked_all_the_same() -> None:
    ask, ledger, _ = budgeted("1")
    request = question(**ASKED, model="unpriced")
    await ask(request)
    assert spent(ledger) == (10, 0)


@pytest.mark.parametrize("failure", [httpx.ReadError("gone"), asyncio.CancelledError()])
async def test_a_failed_call_leaves_nothing_reserved(failure: BaseException) -> None:
    ledger = Ledger(each=[Budget(limit=Decimal(1), window="total")])

    async def failing(_request: httpx.Request) -> httpx.Response:
        raise failure

    ask = stack(failing, LedgerLayer(ledger, PRICES), semantics=POOL)
    with pytest.raises(type(failure)):
        await ask(question(**ASKED))
    assert spent(ledger) == (0, 0)


PRICES_BY_HOST = {"a/m": 1, "b/big-m": 30, "m": 2}
ESTIMATES = {
    "the dearest host": (PRICES_BY_HOST, [("a", "m"), ("b", "big-m")], 107 * 30),
    "the only host": (PRICES_BY_HOST, [("a", "m")], 107),
    "a host with the price of the model": (PRICES_BY_HOST, [("a", "m"), ("c", "m-c")], 107 * 2),
    "hosts whose price nobody knows": ({}, [("a", "m")], 0),
}


@pytest.mark.parametrize("case", ESTIMATES)
async def test_a_budget_reckons_with_the_dearest_host_that_may_answer(case: str) -> None:
    table, hosts, expected = ESTIMATES[case]
    prices = PriceTable.of({name: {"input": each, "output": each} for name, each in table.items()})
    ledger = Ledger(each=[Budget(limit=Decimal(1), window="total")])
    reserved: list[Decimal] = []

    async def look(_request: httpx.Request) -> httpx.Response:
        reserved.append(spent(ledger)[1])
        return httpx.Response(200)

    layer = LedgerLayer(ledger, prices, served_by=lambda _model: hosts)
    await stack(look, layer, semantics=POOL)(question(**ASKED))
    assert reserved == [expected]

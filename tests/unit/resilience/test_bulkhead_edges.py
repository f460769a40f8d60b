"""What a bulkhead layer passes on, and what a full one says."""

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    Bulkhead,
    BulkheadConfig,
    BulkheadFullError,
    BulkheadLayer,
    stack,
)
from shared.infrastructure.testing import FakeClock, ScriptedSend


async def test_the_error_of_a_call_comes_out_as_it_is_and_its_slot_is_free() -> None:
    bulkhead = Bulkhead(BulkheadConfig(max_concurrent=1), clock=FakeClock())
    error = KeyError("theirs")
    send = stack(ScriptedSend([error]), BulkheadLayer(bulkhead), semantics=PLAIN_CALL)
    for _ in range(3):
        with pytest.raises(KeyError) as caught:
            await send("x")
        assert caught.value is error
    assert bulkhead.snapshot()["in_flight"] == 0


async def test_a_full_one_says_how_many_are_in_flight_and_waiting() -> None:
    bulkhead = Bulkhead(BulkheadConfig(max_concurrent=2, max_queue=0), clock=FakeClock())
    assert bulkhead.try_acquire()
    assert bulkhead.try_acquire()
    with pytest.raises(BulkheadFullError, match="2 calls in flight, 0 waiting"):
        await bulkhead.acquire()

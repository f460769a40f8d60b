"""A bulkhead under calls that come, end, lose patience and are cancelled, in any order."""

import asyncio

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from shared.infrastructure.resilience import Bulkhead, BulkheadConfig, BulkheadFullError
from tests.property.machine import TICK, TimedMachine, thorough

SLOTS, PLACES = 3, 4


class BulkheadMachine(TimedMachine):
    """The model is two lists: who is in flight, and who waits since when until when."""

    def __init__(self) -> None:
        super().__init__()
        self.bulkhead = Bulkhead(
            BulkheadConfig(max_concurrent=SLOTS, max_queue=PLACES), clock=self.clock
        )
        self.calls: list[asyncio.Task[None]] = []
        self.ends: dict[int, asyncio.Event] = {}
        self.entered: list[int] = []
        self.in_flight: list[int] = []
        self.waiting: list[tuple[int, float]] = []
        self.expected: list[int] = []
        self.refused = 0

    @rule(patience=st.none() | st.integers(0, 100))
    def come(self, patience: int | None) -> None:
        number = len(self.calls)
        max_wait = None if patience is None else (patience + 0.5) * TICK
        refused = len(self.in_flight) == SLOTS and len(self.waiting) == PLACES
        self.ends[number] = asyncio.Event()
        self.calls.append(self.start(self.call(number, max_wait)))
        if refused:
            assert isinstance(self.calls[number].exception(), BulkheadFullError)
            self.refused += 1
            return
        until = float("inf") if max_wait is None else self.clock.now() + max_wait
        self.waiting.append((number, until))
        self.move_up()

    async def call(self, number: int, max_wait: float | None) -> None:
        await self.bulkhead.acquire(max_wait=max_wait)
        self.entered.append(number)
        try:
            await self.ends[number].wait()
        finally:
            self.bulkhead.release()

    @rule()
    def try_without_waiting(self) -> None:
        taken = self.bulkhead.try_acquire()
        assert taken == (len(self.in_flight) < SLOTS and not self.waiting)
        if taken:
            self.bulkhead.release()

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), cancelled=st.booleans())
    def end_a_call(self, data: st.DataObject, cancelled: bool) -> None:
        number = data.draw(st.sampled_from(self.in_flight))
        if cancelled:
            self.calls[number].cancel()
        self.ends[number].set()
        self.pass_time()
        self.in_flight.remove(number)
        self.move_up()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel_a_waiter(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(waiter)
        self.cancel(self.calls[waiter[0]])
        assert self.calls[waiter[0]].cancelled()

    @precondition(lambda self: self.waiting and self.in_flight)
    @rule(data=st.data())
    def cancel_a_waiter_in_the_tick_of_a_free_slot(self, data: st.DataObject) -> None:
        ending = data.draw(st.sampled_from(self.in_flight))
        waiter = self.waiting.pop(0)
        self.ends[ending].set()
        self.calls[ending].add_done_callback(lambda _: self.calls[waiter[0]].cancel())
        self.pass_time()
        self.in_flight.remove(ending)
        if not self.calls[waiter[0]].cancelled():
            raise AssertionError("a cancellation was swallowed")
        self.entered = [number for number in self.entered if number != waiter[0]]
        self.move_up()

    @rule(ticks=st.integers(1, 100))
    def let_pass(self, ticks: int) -> None:
        self.pass_time(ticks * TICK)
        now = self.clock.now()
        self.refused += sum(until <= now for _, until in self.waiting)
        self.waiting = [(number, until) for number, until in self.waiting if until > now]

    @invariant()
    def calls_enter_in_order_and_never_too_many(self) -> None:
        assert self.entered == self.expected
        assert len(self.in_flight) <= SLOTS
        snapshot = self.bulkhead.snapshot()
        assert snapshot == {
            "in_flight": len(self.in_flight),
            "max_concurrent": SLOTS,
            "waiting": len(self.waiting),
            "refused_count": self.refused,
        }
        assert self.clock.pending == sum(until < float("inf") for _, until in self.waiting)

    def at_the_end(self) -> None:
        """Nothing is held once every call has ended."""
        for end in self.ends.values():
            end.set()
        self.pass_time(10.0)
        assert self.bulkhead.snapshot()["in_flight"] == 0
        assert self.bulkhead.snapshot()["waiting"] == 0
        assert all(self.bulkhead.try_acquire() for _ in range(SLOTS))
        assert not self.bulkhead.try_acquire()

    def move_up(self) -> None:
        while self.waiting and len(self.in_flight) < SLOTS:
            number, _ = self.waiting.pop(0)
            self.in_flight.append(number)
            self.expected.append(number)


TestBulkheadMachine = BulkheadMachine.TestCase
TestBulkheadMachine.settings = thorough(examples=80, steps=40)

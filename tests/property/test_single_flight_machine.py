"""Single flight under callers of three keys that come, are cancelled, and get what they share."""

import asyncio
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from shared.infrastructure.resilience import SingleFlight
from tests.property.machine import TimedMachine, thorough

KEYS = ("a", "b", "c")


@dataclass
class Flight:
    """One computation, as the model sees it."""

    key: str
    number: int
    end: asyncio.Future[str]
    callers: list[asyncio.Task[str]] = field(default_factory=list)


class SingleFlightMachine(TimedMachine):
    """The model knows which computation each caller waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.flights = SingleFlight[str, str]()
        self.under_way: dict[str, Flight] = {}
        self.computing = dict.fromkeys(KEYS, 0)
        self.most_at_once = 0
        self.begun = 0

    async def compute(self, key: str, end: asyncio.Future[str]) -> str:
        self.begun += 1
        self.computing[key] += 1
        self.most_at_once = max(self.most_at_once, self.computing[key])
        try:
            return await end
        finally:
            self.computing[key] -= 1

    @rule(key=st.sampled_from(KEYS))
    def come(self, key: str) -> None:
        end = self.runner.get_loop().create_future()
        expected = self.begun + (key not in self.under_way)
        caller = self.start(self.flights.do(key, lambda: self.compute(key, end)))
        assert self.begun == expected
        self.under_way.setdefault(key, Flight(key, self.begun, end)).callers.append(caller)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), fails=st.booleans())
    def land(self, data: st.DataObject, fails: bool) -> None:
        flight = self.under_way.pop(data.draw(st.sampled_from(sorted(self.under_way))))
        if fails:
            flight.end.set_exception(KeyError(flight.number))
        else:
            flight.end.set_result(f"{flight.key}{flight.number}")
        self.pass_time()
        for caller in flight.callers:
            if fails:
                assert isinstance(caller.exception(), KeyError)
            else:
                assert caller.result() == f"{flight.key}{flight.number}"

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), is_leader=st.booleans())
    def cancel_a_caller(self, data: st.DataObject, is_leader: bool) -> None:
        flight = self.under_way[data.draw(st.sampled_from(sorted(self.under_way)))]
        caller = flight.callers.pop(0 if is_leader else -1)
        self.cancel(caller)
        assert caller.cancelled()
        assert not any(other.done() for other in flight.callers)
        if not flight.callers:
            del self.under_way[flight.key]

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def kill_the_computation(self, data: st.DataObject) -> None:
        flight = self.under_way.pop(data.draw(st.sampled_from(sorted(self.under_way))))
        flight.end.cancel()
        self.pass_time()
        assert all(caller.cancelled() for caller in flight.callers)

    @invariant()
    def a_key_is_computed_once_at_a_time_and_nothing_else_is(self) -> None:
        assert self.most_at_once <= 1
        assert len(self.flights) == len(self.under_way)
        for key in KEYS:
            assert self.computing[key] == (key in self.under_way)

    def at_the_end(self) -> None:
        """Nothing is left in the table once the last caller is gone."""
        for flight in self.under_way.values():
            for caller in flight.callers:
                caller.cancel()
        self.pass_time()
        assert len(self.flights) == 0
        assert set(self.computing.values()) == {0}
        assert len(asyncio.all_tasks(self.runner.get_loop())) == 0


TestSingleFlightMachine = SingleFlightMachine.TestCase
TestSingleFlightMachine.settings = thorough(examples=80, steps=40)

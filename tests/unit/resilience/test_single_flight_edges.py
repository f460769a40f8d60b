import asyncio

from shared.infrastructure.resilience import Event, FlightJoined, Listeners, SingleFlight


async def test_a_flight_without_a_name_is_called_so_in_what_is_told() -> None:
    told: list[Event] = []
    flights = SingleFlight[str, str](listeners=Listeners([told.append]))

    async def compute() -> str:
        await asyncio.sleep(0)
        return "value"

    assert await asyncio.gather(*(flights.do("k", compute) for _ in range(2))) == ["value"] * 2
    assert told == [FlightJoined("flight", 2)]

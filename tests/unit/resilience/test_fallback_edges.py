from shared.infrastructure.resilience import PLAIN_CALL, Event, FallbackLayer, Listeners, stack
from shared.infrastructure.testing import ScriptedSend


async def test_a_fallback_without_a_name_speaks_of_the_service() -> None:
    told: list[Event] = []

    async def instead(_request: str, _outcome: str | Exception) -> str:
        return "cached"

    layer = FallbackLayer[str, str](instead, listeners=Listeners([told.append]))
    assert await stack(ScriptedSend([KeyError()]), layer, semantics=PLAIN_CALL)("x") == "cached"
    assert [event.service for event in told] == ["service"]

"""Every scenario of failover, against two and three hosts, alone and by crowds of fifty calls."""

import pytest

from tests.wall.llm_cell import meet, no_long_collections, run
from tests.wall.llm_hosts import Pace
from tests.wall.llm_scenarios import SCENARIOS, Mark, Scenario
from tests.wall.llm_ways import (
    BUFFER_WAY,
    CARELESS,
    CHAT_WAY,
    LIVE_WAY,
    OPENAI_STREAMS,
    OURS,
    UNDER_OPENAI,
    Way,
)

__all__ = ["no_long_collections"]  # a fixture

HOSTS = (2, 3)
CROWDED = [scenario for scenario in SCENARIOS if scenario.crowd]
# Those that a careless client meets badly, and soon.
TELLING = ["S17 clean end", "S18 an error as", "S22"]


def named(cases: list[Scenario] | list[Way]) -> pytest.MarkDecorator:
    argument = "scenario" if isinstance(cases[0], Scenario) else "way"
    return pytest.mark.parametrize(argument, cases, ids=[case.name for case in cases])


@named(SCENARIOS)
@named(OURS + UNDER_OPENAI)
async def test_a_call_gets_its_answer_whole_or_an_error(scenario: Scenario, way: Way) -> None:
    await meet(scenario, way, [(hosts, 1) for hosts in HOSTS])


@named(CROWDED)
@named(OPENAI_STREAMS)
async def test_each_stream_of_a_dozen_under_openai_is_its_own(scenario: Scenario, way: Way) -> None:
    await meet(scenario, way, [(3, 12)])


@named(CROWDED)
@named(OURS)
async def test_each_of_a_crowd_gets_its_own_answer(scenario: Scenario, way: Way) -> None:
    # The others differ from these in what comes after; the scorecard has them all.
    hosts = HOSTS if way in (CHAT_WAY, LIVE_WAY, BUFFER_WAY) else HOSTS[-1:]
    await meet(scenario, way, [(count, scenario.crowd) for count in hosts])


@named(CARELESS)
async def test_the_wall_stops_a_careless_client(way: Way) -> None:
    telling = [one for one in SCENARIOS if one.name.startswith(tuple(TELLING))]
    cells = [await run(scenario, way, [(2, 1)], Pace()) for scenario in telling]
    assert all(cell.worst < Mark.PASS for cell in cells)
    if way.is_streamed:
        assert all(cell.worst is Mark.FAIL for cell in cells)

import dataclasses
import json
import logging
from typing import Any, get_args

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    Event,
    FallbackUsed,
    Listeners,
    RetryConfig,
    RetryGivenUp,
    RetryLayer,
    RetryScheduled,
    events,
    stack,
    trace_call,
)
from shared.infrastructure.resilience.events import NO_LISTENERS, DelayReason, GiveUpReason
from shared.infrastructure.testing import FakeClock, ScriptedSend

KINDS: list[type[Any]] = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
]
EXAMPLES = {"float": 1.5, "float | None": 1.5, "int": 2, "bool": True, "str": "text"}
EXAMPLES |= {
    "DelayReason": "backoff",
    "GiveUpReason": "budget",
    "Literal['budget', 'busy']": "busy",
}


def example(kind: type[Any]) -> Event:
    values = {field.name: EXAMPLES[str(field.type)] for field in dataclasses.fields(kind)}
    event: Event = kind(**values)
    return event


def explode(_event: Event) -> None:
    raise ValueError("a broken listener")


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_is_plain_data_and_says_itself_in_words(kind: type[Any]) -> None:
    event = example(kind)
    data = event.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["event"] == kind.kind
    assert data["service"] == "text"
    assert len(data) == 1 + len(dataclasses.fields(kind))
    assert kind.__name__ not in str(event)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.service = "other"  # type: ignore[misc]


def test_every_kind_of_event_has_a_name_of_its_own() -> None:
    assert len({kind.kind for kind in KINDS} | {Event.kind}) == len(KINDS) + 1


def test_every_reason_has_words_of_its_own() -> None:
    given_up = {str(RetryGivenUp("a", 1, reason)) for reason in get_args(GiveUpReason)}
    delayed = {str(RetryScheduled("a", 1, 0.0, "b", reason)) for reason in get_args(DelayReason)}
    assert (len(given_up), len(delayed)) == (9, 3)


async def test_a_listener_that_fails_is_logged_once_and_never_hurts_the_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Event] = []
    listeners = Listeners([explode, told.append])
    clock, script = FakeClock(), ScriptedSend([ValueError("down"), ValueError("down"), "fine"])
    retry = RetryLayer(RetryConfig(base_delay=0.0), clock=clock, listeners=listeners)
    with caplog.at_level(logging.WARNING):
        assert await stack(script, retry, semantics=PLAIN_CALL)("x") == "fine"
    assert len([event for event in told if isinstance(event, RetryScheduled)]) == 2
    assert [record.getMessage().split(" at ")[0] for record in caplog.records] == [
        "listener <function explode"
    ]


def test_two_listeners_that_fail_are_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    listeners = Listeners([explode, explode])
    for _ in range(3):
        listeners(FallbackUsed("a", "down"))
    assert len(caplog.records) == 2


def test_there_is_an_audience_if_somebody_listens_or_the_call_is_traced() -> None:
    assert Listeners([explode]).has_audience
    assert not NO_LISTENERS.has_audience
    with trace_call():
        assert NO_LISTENERS.has_audience
    assert not NO_LISTENERS.has_audience

"""The names of events, and the listener that must not be held back."""

import logging
import re

import pytest

from shared.infrastructure.resilience import CircuitStateChanged, Event, Listeners
from shared.infrastructure.resilience.events import CallRefused, RetryScheduled

EVENT = CircuitStateChanged("llm", "closed", "open", "why")


def kinds() -> list[type[Event]]:
    # A dataclass with slots is made twice, and only the second one is found in its module.
    return [kind for kind in Event.__subclasses__() if "__slots__" in vars(kind)]


def test_the_kind_of_an_event_is_the_name_of_its_class_in_small_letters() -> None:
    assert Event.kind == "event"
    assert len(kinds()) > 10
    for kind in kinds():
        assert kind.kind == re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def test_a_refusal_says_for_how_long_if_that_is_known() -> None:
    assert str(CallRefused("llm", "circuit_open")) == "refused: circuit_open"
    assert str(CallRefused("llm", "circuit_open", 2.0)) == "refused: circuit_open, for 2 s"


def test_a_delay_is_a_backoff_unless_told_otherwise() -> None:
    assert RetryScheduled("llm", 1, 2.0, "KeyError").reason == "backoff"


def test_the_failure_of_a_listener_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(_event: Event) -> None:
        raise KeyError("sink")

    with caplog.at_level(logging.WARNING):
        Listeners([broken])(EVENT)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError


def test_what_ends_the_program_is_not_taken_for_a_failure_of_a_listener() -> None:
    def interrupted(_event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Listeners([interrupted])(EVENT)

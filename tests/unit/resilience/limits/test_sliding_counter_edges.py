"""Where one slice of the window ends and the next begins."""

from shared.infrastructure.resilience import SlidingCounter
from shared.infrastructure.testing import FakeClock


def test_by_default_a_permit_counts_for_a_fiftieth_of_a_second_too_long_at_most() -> None:
    clock = FakeClock(0.0)
    counter = SlidingCounter(2, clock=clock)
    assert counter.window == 1.0
    assert counter.try_acquire()
    clock.stall(0.0199)
    assert counter.try_acquire()  # the same slice: both leave with this one
    clock.stall(0.999)
    assert not counter.try_acquire()
    clock.stall(0.001)
    assert counter.try_acquire(2)


def test_at_the_very_end_of_a_slice_the_next_begins() -> None:
    clock = FakeClock()
    counter = SlidingCounter(10, 1.0, slices=4, clock=clock)
    assert counter.try_acquire(5)
    clock.stall(0.25)
    assert counter.try_acquire(5)
    clock.stall(0.75)
    assert counter.try_acquire(5)
    assert not counter.try_acquire()

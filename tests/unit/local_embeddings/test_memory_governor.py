import gc
import json
import threading
import weakref

import pytest
from pydantic import ValidationError

from shared.infrastructure.local_embeddings.errors import MemoryPressureError
from shared.infrastructure.local_embeddings.memory.governor import (
    MemoryConfig,
    MemoryGovernor,
    Stage,
)
from shared.infrastructure.local_embeddings.memory.readings import Gauge, MemoryReading
from shared.infrastructure.resilience.errors import CallRefusedError
from shared.infrastructure.testing import FakeClock

STAGES = [Stage.TRIM, Stage.BUDGET, Stage.CACHE, Stage.MODELS, Stage.REFUSE]


class Bench:
    """A governor over 100 bytes of memory, 40 of a GPU's, and a clock that stands still."""

    def __init__(self, **config) -> None:
        self.clock = FakeClock()
        self.used = {"cpu": 10, "cuda:0": 0}
        self.rss = 0
        self.reads = 0
        self.governor = MemoryGovernor(MemoryConfig(**config), read=self.read, clock=self.clock)
        self.calls: list[str] = []

    def read(self) -> MemoryReading:
        self.reads += 1
        gauges = [Gauge("cpu", self.used["cpu"], 100)]
        if self.used["cuda:0"]:
            gauges.append(Gauge("cuda:0", self.used["cuda:0"], 40))
        return MemoryReading(self.rss, tuple(gauges))

    def look(self, times: int = 1, **used: int) -> None:
        self.used |= used
        for _ in range(times):
            self.clock.stall(0.25)
            self.governor.check()

    def register_all(self, device: str = "cpu") -> None:
        for stage in reversed(STAGES):
            self.governor.register(
                stage, lambda name=stage.name: self.calls.append(name), device=device
            )

    def stage(self, device: str = "cpu") -> str:
        return self.governor.snapshot()["devices"][device]["stage"]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_calm_memory_calls_for_nothing(bench):
    bench.register_all()
    bench.look(times=5, cpu=84)
    assert bench.calls == []
    assert bench.stage() == "calm"


def test_pressure_that_persists_goes_one_stage_further_each_interval(bench):
    bench.register_all()
    names = [stage.name for stage in STAGES]
    for reached in [1, 2, 3, 4, 5, 5]:
        bench.calls.clear()
        bench.look(cpu=85)
        assert bench.calls == names[:reached]
        assert bench.stage() == names[reached - 1].lower()


def test_looks_are_an_interval_apart_however_often_it_is_asked(bench):
    for _ in range(1000):
        bench.governor.check()
    assert bench.reads == 1
    bench.clock.stall(0.24)
    bench.governor.check()
    assert bench.reads == 1
    bench.clock.stall(0.01)
    bench.governor.check()
    assert bench.reads == 2


def test_a_stage_that_has_more_to_give_is_asked_again_before_the_next(bench):
    idle = ["oldest", "older", "young"]
    bench.governor.register(Stage.MODELS, lambda: bool(idle.pop(0) and idle))
    bench.look(times=3, cpu=90)
    unloaded = []
    for _ in range(3):
        bench.look(cpu=90)
        unloaded.append(len(idle))
        assert bench.stage() == "models"
    assert unloaded == [2, 1, 0]
    idle.append("late")
    bench.look(cpu=90)
    assert bench.stage() == "refuse"


def test_only_the_stage_that_was_reached_holds_the_next_one_back(bench):
    more = [False, True, True]
    bench.governor.register(Stage.TRIM, lambda: more.pop(0))
    bench.look(times=3, cpu=90)
    assert bench.stage() == "cache"


def test_a_stage_that_had_more_to_give_does_not_hold_back_the_next_pressure(bench):
    bench.governor.register(Stage.MODELS, lambda: True)
    bench.look(times=5, cpu=90)
    assert bench.stage() == "models"
    bench.look(cpu=10)
    bench.look(cpu=90)
    assert bench.stage() == "models"


def test_between_the_thresholds_nothing_changes_and_below_it_goes_back_one_by_one(bench):
    bench.look(times=3, cpu=85)
    bench.look(times=9, cpu=84)
    bench.look(times=9, cpu=75)
    assert bench.stage() == "cache"
    for name in ["budget", "trim", "calm", "calm"]:
        bench.look(cpu=74)
        assert bench.stage() == name


def test_bulk_work_is_refused_at_the_last_stage_until_memory_is_ample(bench):
    bench.look(times=4, cpu=90)
    bench.governor.admit_bulk()
    bench.look(cpu=90)
    with pytest.raises(MemoryPressureError) as refused:
        bench.governor.admit_bulk()
    assert isinstance(refused.value, CallRefusedError)
    assert refused.value.retry_after == 0.25
    assert bench.governor.snapshot()["refused_count"] == 1
    bench.look(cpu=74)
    bench.governor.admit_bulk()


def test_bulk_work_is_admitted_again_though_nobody_else_looks(bench):
    bench.register_all()
    bench.look(times=5, cpu=90)
    bench.calls.clear()
    bench.clock.stall(0.25)
    with pytest.raises(MemoryPressureError):
        bench.governor.admit_bulk()
    bench.used["cpu"] = 10
    with pytest.raises(MemoryPressureError):
        bench.governor.admit_bulk()
    bench.clock.stall(0.25)
    bench.governor.admit_bulk()
    assert bench.calls == []


def test_who_asks_for_bulk_work_does_not_take_the_turn_of_relief(bench):
    bench.register_all()
    bench.look(times=5, cpu=90)
    bench.calls.clear()
    bench.clock.stall(0.25)
    with pytest.raises(MemoryPressureError):
        bench.governor.admit_bulk()
    bench.governor.check()
    assert bench.calls == [stage.name for stage in STAGES]


def test_a_relief_that_raises_is_counted_and_does_not_stop_the_others(bench, caplog):
    def broken() -> None:
        raise OSError("no")

    bench.governor.register(Stage.TRIM, broken)
    bench.register_all()
    bench.look(cpu=90)
    assert bench.calls == ["TRIM"]
    assert bench.governor.snapshot()["relief_error_count"] == 1
    assert bench.governor.snapshot()["relief_count"] == 2
    assert "broken" in caplog.text


def test_what_was_unregistered_is_not_called(bench):
    unregister = bench.governor.register(Stage.TRIM, lambda: bench.calls.append("a"))
    bench.governor.register(Stage.TRIM, lambda: bench.calls.append("b"))
    unregister()
    unregister()
    bench.look(cpu=90)
    assert bench.calls == ["b"]


def test_a_relief_may_register_unregister_and_check(bench):
    def once() -> None:
        bench.calls.append("once")
        unregister()
        bench.register_all()
        bench.clock.stall(1)
        bench.governor.check()

    unregister = bench.governor.register(Stage.TRIM, once)
    bench.look(cpu=90)
    assert bench.calls == ["once"]
    bench.look(cpu=90)
    assert bench.calls == ["once", "TRIM", "BUDGET"]


class Model:
    def trim(self) -> None:
        pass


def test_ten_thousand_models_come_and_go_and_nothing_is_kept(bench):
    kept = weakref.WeakSet()
    for number in range(10_000):
        model = Model()
        kept.add(model)
        unregister = bench.governor.register(Stage.TRIM, model.trim)
        if number % 2:
            unregister()
    del model, unregister
    gc.collect()
    assert len(kept) == 0
    assert bench.governor.snapshot()["registered"] == 0


def test_a_gpu_has_stages_of_its_own(bench):
    bench.register_all("cuda:0")
    bench.governor.register(Stage.TRIM, lambda: bench.calls.append("cpu"))
    bench.look(times=2, **{"cpu": 10, "cuda:0": 36})
    assert bench.calls == ["TRIM", "TRIM", "BUDGET"]
    assert (bench.stage("cpu"), bench.stage("cuda:0")) == ("calm", "budget")


def test_bulk_work_of_a_full_gpu_is_refused_and_of_the_cpu_is_not(bench):
    bench.look(times=5, **{"cuda:0": 40})
    bench.governor.admit_bulk()
    with pytest.raises(MemoryPressureError):
        bench.governor.admit_bulk(device="cuda:0")


def test_bulk_work_of_a_gpu_waits_for_the_machines_memory_too(bench):
    bench.look(times=5, cpu=100)
    with pytest.raises(MemoryPressureError):
        bench.governor.admit_bulk(device="cuda:0")


def test_a_gpu_that_is_no_longer_in_use_is_calm(bench):
    bench.look(times=5, **{"cuda:0": 40})
    bench.look(times=1, **{"cuda:0": 0})
    bench.governor.admit_bulk(device="cuda:0")


def test_a_pass_is_admitted_if_memory_is_not_short_with_it(bench):
    bench.used = {"cpu": 30, "cuda:0": 24}
    assert bench.governor.admits(55)
    assert not bench.governor.admits(56)
    assert bench.governor.admits(10, device="cuda:0")
    assert not bench.governor.admits(11, device="cuda:0")
    assert bench.governor.admits(2**60, device="cuda:1")
    bench.look(cpu=90)
    assert not bench.governor.admits(1)


def test_a_small_pass_is_admitted_without_another_look(bench):
    bench.look(cpu=5)
    for _ in range(100):
        assert bench.governor.admits(20)
    assert bench.reads == 1
    bench.used["cpu"] = 80
    assert not bench.governor.admits(21)
    assert bench.reads == 2


def test_the_bound_that_is_fullest_makes_the_pressure_and_the_one_with_least_room_admits():
    gauges = (Gauge("cpu", 850, 1000), Gauge("cpu", 2, 10), Gauge("cpu", 0, 1000))
    governor = MemoryGovernor(
        MemoryConfig(high=0.9), read=lambda: MemoryReading(0, gauges), clock=FakeClock()
    )
    governor.check()
    assert governor.snapshot()["devices"]["cpu"]["used_bytes"] == 850
    assert governor.admits(7)
    assert not governor.admits(8)


def test_a_configured_limit_bounds_this_process_beside_all_others():
    bench = Bench(limit_bytes=50)
    bench.rss = 45
    bench.look()
    assert bench.governor.snapshot()["devices"]["cpu"] == {
        "stage": "trim",
        "used_bytes": 45,
        "limit_bytes": 50,
    }
    bench.rss = 40
    bench.look()
    assert bench.governor.admits(2)
    assert not bench.governor.admits(3)
    bench.rss = 0
    bench.look(cpu=84)
    assert not bench.governor.admits(2)


def test_where_nothing_is_known_everything_is_admitted():
    governor = MemoryGovernor(MemoryConfig(limit_bytes=1), read=MemoryReading, clock=FakeClock())
    governor.check()
    governor.admit_bulk()
    assert governor.admits(2**60)
    assert governor.snapshot()["devices"] == {}


def test_a_thread_goes_on_while_another_one_looks(bench):
    looking, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        looking.set()
        assert go_on.wait(30)

    bench.governor.register(Stage.TRIM, slow)
    thread = threading.Thread(target=bench.look, kwargs={"cpu": 90})
    thread.start()
    assert looking.wait(30)
    bench.clock.stall(1)
    bench.governor.check()  # would wait for ever if it waited
    bench.governor.admit_bulk()
    assert bench.reads == 1
    go_on.set()
    thread.join()


def test_a_snapshot_is_plain_json_before_and_after_a_look(bench):
    json.dumps(bench.governor.snapshot())
    bench.look()
    json.dumps(bench.governor.snapshot())


@pytest.mark.parametrize(
    "config", [{"low": 0.9, "high": 0.9}, {"high": 1.1}, {"interval": 0}, {"limit_bytes": 0}]
)
def test_thresholds_that_make_no_sense_are_refused(config):
    with pytest.raises(ValidationError):
        MemoryConfig(**config)


def test_the_memory_of_this_process_is_read_unless_told_otherwise():
    governor = MemoryGovernor()
    governor.check()
    assert governor.snapshot()["rss_bytes"] > 2**20
    assert not governor.admits(2**60)

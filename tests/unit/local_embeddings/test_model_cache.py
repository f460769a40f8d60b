import asyncio
import json

import numpy as np
import pytest

from shared.infrastructure.local_embeddings import LocalEmbeddingConfig, LocalEmbeddingModel
from shared.infrastructure.local_embeddings.memory.governor import MemoryGovernor
from shared.infrastructure.local_embeddings.memory.readings import Gauge, MemoryReading
from shared.infrastructure.local_embeddings.model_cache import ModelCache
from shared.infrastructure.resilience.errors import ConfigurationError
from shared.infrastructure.testing import FakeClock

A, B, C = (LocalEmbeddingConfig(model_name=name) for name in "abc")


class ScriptedModel:
    def __init__(self, config: LocalEmbeddingConfig) -> None:
        self.config = config
        self.events: list[str] = []
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.load_error: Exception | None = None
        self.unload_error: Exception | None = None

    async def load(self) -> None:
        await self.may_load.wait()
        if self.load_error:
            raise self.load_error
        self.events.append("load")

    async def unload(self) -> None:
        self.events.append("unload")
        if self.unload_error:
            raise self.unload_error

    def get_info(self) -> dict[str, object]:
        return {"device": "cuda:0" if self.config == C else "cpu", "model_path": None}

    @property
    def is_loaded(self) -> bool:
        return self.events[-1:] == ["load"]


class Bench:
    def __init__(self, **settings) -> None:
        self.clock = FakeClock()
        self.used = {"cpu": 0, "cuda:0": 0}
        self.governor = MemoryGovernor(read=self.read, clock=self.clock)
        self.models: dict[LocalEmbeddingConfig, ScriptedModel] = {}
        self.cache = ModelCache(
            **settings,
            governor=self.governor,
            clock=self.clock,
            model_factory=self.model,
            weight_bytes=lambda _: 10,
        )

    def read(self) -> MemoryReading:
        return MemoryReading(0, tuple(Gauge(name, used, 100) for name, used in self.used.items()))

    def model(self, config: LocalEmbeddingConfig) -> ScriptedModel:
        return self.models.setdefault(config, ScriptedModel(config))

    async def use(self, *configs: LocalEmbeddingConfig) -> None:
        for config in configs:
            async with self.cache.use(config):
                pass
        await self.clock.advance()

    def loaded(self) -> str:
        return "".join(
            config.model_name for config, model in self.models.items() if model.is_loaded
        )

    async def look(self, **used: int) -> None:
        self.used |= used
        self.clock.stall(1.0)
        # On a thread of its own, as the workers of a model do.
        await asyncio.to_thread(self.governor.check)
        await self.clock.advance()


async def test_a_model_is_loaded_once_for_many_uses():
    bench = Bench()
    async with bench.cache.use(A) as first, bench.cache.use(A) as second:
        assert first is second
    await bench.use(A, A)
    assert bench.models[A].events == ["load"]
    assert bench.cache.snapshot()["hit_count"] == 3


async def test_the_least_recently_used_idle_model_makes_room():
    bench = Bench(max_models=2)
    await bench.use(A, B, A, C)
    assert bench.loaded() == "ac"


async def test_room_is_made_before_the_next_model_is_loaded():
    bench = Bench(max_models=1)
    await bench.use(A)
    bench.model(B).may_load.clear()
    using = asyncio.create_task(bench.use(B))
    await bench.clock.advance()
    assert bench.models[A].events == ["load", "unload"]
    bench.model(B).may_load.set()
    await using


async def test_models_in_use_stay_though_they_are_too_many():
    bench = Bench(max_models=1)
    async with bench.cache.use(A), bench.cache.use(B):
        await bench.clock.advance()
        assert bench.loaded() == "ab"
    await bench.clock.advance()
    assert bench.loaded() == "a"


async def test_bytes_are_bounded_as_well():
    bench = Bench(max_bytes=25)
    await bench.use(A, B)
    async with bench.cache.use(C):
        await bench.clock.advance()
        assert bench.loaded() == "bc"


async def test_an_idle_model_goes_after_its_time_and_use_begins_it_anew():
    bench = Bench(keep_alive=300.0)
    await bench.use(A)
    await bench.clock.advance(299)
    await bench.use(A)
    await bench.clock.advance(299)
    assert bench.loaded() == "a"
    async with bench.cache.use(A):
        assert bench.clock.pending == 0
        await bench.clock.advance(1000)
        assert bench.loaded() == "a"
    await bench.clock.advance(300)
    assert bench.loaded() == ""
    assert bench.cache.snapshot()["models"] == []


async def test_a_model_may_stay_for_ever_or_go_at_once():
    for keep_alive, loaded in [(None, "a"), (0.0, "")]:
        bench = Bench(keep_alive=keep_alive)
        await bench.use(A)
        await bench.clock.advance(1e6)
        assert bench.loaded() == loaded


async def test_a_model_that_did_not_load_leaves_nothing_and_is_tried_again():
    bench = Bench()
    bench.model(A).load_error = OSError("no weights")
    with pytest.raises(OSError, match="no weights"):
        await bench.use(A)
    await bench.clock.advance()
    assert bench.cache.snapshot()["models"] == []
    assert bench.clock.pending == 0
    bench.model(A).load_error = None
    await bench.use(A)
    assert bench.loaded() == "a"


async def test_a_cancelled_load_is_undone_if_nobody_else_waits_for_it():
    bench = Bench()
    bench.model(A).may_load.clear()
    waiting = [asyncio.create_task(bench.use(A)) for _ in range(2)]
    await bench.clock.advance()
    waiting[0].cancel()
    await bench.clock.advance()
    assert bench.models[A].events == []
    waiting[1].cancel()
    await bench.clock.advance()
    assert bench.models[A].events == ["unload"]
    assert bench.cache.snapshot()["models"] == []


async def test_who_comes_just_before_a_model_goes_keeps_it():
    bench = Bench(max_models=1)
    await bench.use(A)
    bench.model(B).may_load.clear()
    loading = asyncio.create_task(bench.use(B))
    await asyncio.sleep(0)  # A is to go, but has not been told yet
    async with bench.cache.use(A):
        await bench.clock.advance()
        assert bench.models[A].events == ["load"]
    bench.model(B).may_load.set()
    await loading


async def test_memory_pressure_unloads_idle_models_of_its_device_one_after_another():
    bench = Bench()
    await bench.use(C, B, A)
    for _ in range(3):
        await bench.look(cpu=90)
    assert bench.loaded() == "cba"
    await bench.look()
    assert bench.loaded() == "ca"
    async with bench.cache.use(A):
        await bench.look()
        assert bench.loaded() == "ca"
        # Bulk work is refused only once no idle model is left.
        assert bench.governor.snapshot()["devices"]["cpu"]["stage"] == "models"
        await bench.look()
        assert bench.governor.snapshot()["devices"]["cpu"]["stage"] == "refuse"
    await bench.look()
    assert bench.loaded() == "c"
    for _ in range(4):
        await bench.look(**{"cpu": 0, "cuda:0": 90})
    assert bench.loaded() == ""


async def test_a_model_that_does_not_unload_cleanly_is_counted_and_gone(caplog):
    bench = Bench(keep_alive=0.0)
    bench.model(A).unload_error = RuntimeError("stuck")
    await bench.use(A)
    await bench.clock.advance()
    assert bench.cache.snapshot()["unload_error_count"] == 1
    assert bench.cache.snapshot()["models"] == []
    assert "stuck" in caplog.text


async def test_closing_waits_for_models_in_use_and_lends_no_more():
    bench = Bench()
    await bench.use(A)
    async with bench.cache.use(B):
        closing = asyncio.create_task(bench.cache.aclose())
        await bench.clock.advance()
        assert bench.loaded() == "b"
        with pytest.raises(ConfigurationError, match="closed"):
            await bench.use(A)
        assert not closing.done()
    await closing
    assert bench.loaded() == ""
    assert bench.clock.pending == 0
    assert bench.governor.snapshot()["registered"] == 0
    await bench.cache.aclose()


async def test_a_snapshot_is_plain_json():
    bench = Bench()
    async with bench.cache.use(A):
        snapshot = json.loads(json.dumps(bench.cache.snapshot()))
    assert snapshot["models"] == [
        {
            "model_name": "a",
            "backend": "sentence_transformers",
            "loaded": True,
            "uses": 1,
            "size_bytes": 10,
        }
    ]


@pytest.mark.parametrize("settings", [{"max_models": 0}, {"max_bytes": -1}, {"keep_alive": -1.0}])
def test_bounds_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigurationError):
        ModelCache(**settings)


async def test_it_lends_models_that_work(factory):
    def make(config: LocalEmbeddingConfig) -> LocalEmbeddingModel:
        return LocalEmbeddingModel(config, backend_factory=factory)

    async with ModelCache(max_models=1, model_factory=make) as cache:
        for config in [A, B, A]:
            async with cache.use(config) as model:
                assert np.isclose(np.linalg.norm(await model.embed("cat")), 1.0)
    assert [backend.closed for backend in factory.opened] == [True, True, True]


async def test_a_models_size_is_that_of_its_weights(minilm):
    config = LocalEmbeddingConfig(model_name=str(minilm), backend="onnx", threads=1)
    async with ModelCache() as cache, cache.use(config):
        (model,) = cache.snapshot()["models"]
    assert model["size_bytes"] == (minilm / "model.safetensors").stat().st_size

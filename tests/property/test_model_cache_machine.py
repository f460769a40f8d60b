"""A model cache under users that come, go and are cancelled, slow loads, and memory pressure."""

import asyncio
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig
from shared.infrastructure.local_embeddings.memory.governor import MemoryConfig, MemoryGovernor
from shared.infrastructure.local_embeddings.memory.readings import Gauge, MemoryReading
from shared.infrastructure.local_embeddings.model_cache import ModelCache
from tests.property.machine import TimedMachine, thorough

NAMES = ("a", "b", "c")
KEEP_ALIVE = 8.0


class ScriptedModel:
    """Loads and unloads when it is told to; a load goes on though its callers are cancelled."""

    def __init__(self) -> None:
        self.is_loaded = False
        self.loads = self.unloads = 0
        self.opening: asyncio.Future[None] | None = None
        self.closing: asyncio.Future[None] | None = None

    async def load(self) -> None:
        assert self.closing is None, "loaded before its memory was given back"
        if self.is_loaded:
            return
        if self.opening is None:
            self.opening = asyncio.get_running_loop().create_future()
        opening = self.opening
        await asyncio.wait((opening,))
        opening.result()

    async def unload(self) -> None:
        if self.opening is not None and not self.opening.done():
            await asyncio.wait((self.opening,))
        if self.is_loaded:
            self.is_loaded = False
            self.closing = asyncio.get_running_loop().create_future()
            try:
                await self.closing
            finally:
                self.closing = None
                self.unloads += 1

    def open(self, *, fails: bool) -> None:
        assert self.opening is not None
        opening, self.opening = self.opening, None
        if fails:
            opening.set_exception(OSError("no weights"))
            opening.exception()
        else:
            self.is_loaded = True
            self.loads += 1
            opening.set_result(None)

    def get_info(self) -> dict[str, object]:
        return {"device": "cpu", "model_path": None}


@dataclass(eq=False)
class User:
    name: str
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    model: ScriptedModel | None = None


@dataclass
class Memory:
    used: int = 0

    def read(self) -> MemoryReading:
        return MemoryReading(0, (Gauge("cpu", self.used, 100),))


class ModelCacheMachine(TimedMachine):
    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()
        self.governor = MemoryGovernor(
            MemoryConfig(interval=0.25), read=self.memory.read, clock=self.clock
        )
        self.models: list[ScriptedModel] = []
        self.users: list[User] = []

    @initialize(max_models=st.sampled_from([1, 2]))
    def begin(self, max_models: int) -> None:
        self.max_models = max_models

        def make(config: LocalEmbeddingConfig) -> ScriptedModel:
            self.models.append(ScriptedModel())
            return self.models[-1]

        self.cache = ModelCache(
            max_models=max_models,
            keep_alive=KEEP_ALIVE,
            governor=self.governor,
            clock=self.clock,
            model_factory=make,
        )

    async def visit(self, user: User) -> None:
        try:
            async with self.cache.use(LocalEmbeddingConfig(model_name=user.name)) as model:
                user.model = model
                await user.leave.wait()
        except OSError:
            pass
        finally:
            user.model = None

    @rule(name=st.sampled_from(NAMES))
    def come(self, name: str) -> None:
        user = User(name)
        self.users.append(user)
        user.task = self.start(self.visit(user))

    @rule(name=st.sampled_from(NAMES))
    def comes_for_a_moment(self, name: str) -> None:
        known = list(self.models)
        self.come(name)
        for model in self.models:
            if model not in known and model.opening:
                model.open(fails=False)
        self.users[-1].leave.set()
        self.pass_time()

    def present(self) -> list[User]:
        return [user for user in self.users if not user.task.done()]

    @precondition(lambda self: self.present())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.present())).leave.set()
        self.pass_time()

    @precondition(lambda self: self.present())
    @rule(data=st.data())
    def is_cancelled(self, data: st.DataObject) -> None:
        self.cancel(data.draw(st.sampled_from(self.present())).task)

    @precondition(lambda self: self.present())
    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def one_leaves_as_another_comes(self, data: st.DataObject, name: str) -> None:
        data.draw(st.sampled_from(self.present())).leave.set()
        self.come(name)

    def opening(self) -> list[ScriptedModel]:
        return [model for model in self.models if model.opening]

    @precondition(lambda self: self.opening())
    @rule(data=st.data(), fails=st.sampled_from([False, False, True]))
    def a_load_ends(self, data: st.DataObject, fails: bool) -> None:
        data.draw(st.sampled_from(self.opening())).open(fails=fails)
        self.pass_time()

    def closing(self) -> list[ScriptedModel]:
        return [model for model in self.models if model.closing and not model.closing.done()]

    @precondition(lambda self: self.closing())
    @rule(data=st.data(), fails=st.booleans())
    def an_unload_ends(self, data: st.DataObject, fails: bool) -> None:
        closing = data.draw(st.sampled_from(self.closing())).closing
        closing.set_exception(OSError("stuck")) if fails else closing.set_result(None)
        self.pass_time()

    @rule(seconds=st.sampled_from([0.25, 4.0, 8.0]))
    def time_passes(self, seconds: float) -> None:
        idle = self.idle()
        self.pass_time(seconds)
        if seconds == KEEP_ALIVE:
            assert not any(model.is_loaded for model in idle)

    @rule(used=st.sampled_from([10, 90]))
    def memory_is_looked_at(self, used: int) -> None:
        self.memory.used = used
        self.clock.stall(0.25)
        self.governor.check()
        self.pass_time()

    def idle(self) -> list[ScriptedModel]:
        in_use = [user.model for user in self.users if user.model]
        return [model for model in self.models if model.is_loaded and model not in in_use]

    @invariant()
    def what_is_in_use_is_loaded(self) -> None:
        assert all(user.model.is_loaded for user in self.users if user.model)

    @invariant()
    def users_of_one_configuration_share_a_model(self) -> None:
        pairs = {(user.name, id(user.model)) for user in self.users if user.model}
        assert len(pairs) == len({name for name, _ in pairs})

    @invariant()
    def few_are_idle(self) -> None:
        assert len(self.idle()) <= self.max_models

    @invariant()
    def idle_models_make_room_for_those_in_use(self) -> None:
        in_use = {user.model for user in self.users if user.model}
        assert not self.idle() or len(self.idle()) + len(in_use) <= self.max_models

    @invariant()
    def a_model_is_loaded_or_unloaded(self) -> None:
        for model in self.models:
            is_up = model.is_loaded or model.closing is not None
            assert model.loads == model.unloads + is_up

    def at_the_end(self) -> None:
        for user in self.present():
            user.leave.set()
        closed = self.start(self.cache.aclose())
        while self.opening() or self.closing():
            for model in self.opening():
                model.open(fails=False)
            for model in self.closing():
                model.closing.set_result(None)
            self.pass_time()
        assert all(user.task.cancelled() or user.task.exception() is None for user in self.users)
        assert closed.done()
        assert closed.exception() is None
        assert all(model.loads == model.unloads for model in self.models)
        assert self.cache.snapshot()["models"] == []
        assert self.cache.snapshot()["load_count"] <= sum(model.loads for model in self.models)
        assert self.cache.snapshot()["load_count"] == self.cache.snapshot()["unload_count"]
        assert self.governor.snapshot()["registered"] == 0
        assert self.clock.pending == 0


TestModelCacheMachine = ModelCacheMachine.TestCase
TestModelCacheMachine.settings = thorough(150, 40)

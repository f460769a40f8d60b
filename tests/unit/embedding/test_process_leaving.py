import asyncio
import os
import signal
from typing import cast

import pytest
from process_service import ScriptedService
from process_wire import POST, Wire, until

from services.embedding import EmbeddingSettings, ProductionEmbeddingService
from services.embedding.process import EmbeddingApp
from shared.infrastructure.server import Server, bind


@pytest.mark.parametrize("stuck", ["request", "load", "stop"])
async def test_a_second_signal_skips_whatever_is_waited_for(stuck: str) -> None:
    settings = EmbeddingSettings(drain_delay=0, drain_timeout=1000, port=0)
    service = ScriptedService(settings)
    server = Server(EmbeddingApp(cast("ProductionEmbeddingService", service)), lambda _: None)
    sock = bind(server._app.config, has_keys=False, variable="KEYS")
    if stuck == "load":
        service.is_started = service.is_ready = False
        service.open.clear()
    stopping = asyncio.Event()

    async def stop() -> None:
        stopping.set()
        await asyncio.Event().wait()

    if stuck != "request":
        service.stop = stop  # type: ignore[method-assign]
    running = asyncio.create_task(server.run(sock))
    host, port = sock.getsockname()
    wire = Wire(*await asyncio.open_connection(host, port))
    await asyncio.sleep(0)
    if stuck == "request":
        service.open.clear()
        wire.send(POST)
        await until(lambda: service.calls)
    os.kill(os.getpid(), signal.SIGTERM)
    if stuck == "request":
        await until(lambda: server._app.draining)
    elif stuck == "stop":
        await stopping.wait()
    # A load is not waited for, whoever asks for the end.
    if stuck != "load":
        os.kill(os.getpid(), signal.SIGTERM)
    if stuck == "request":
        assert (await wire.reply())[0] == 503
    async with asyncio.timeout(10):
        await running
    assert server.is_stopped == (stuck == "request")
    wire.reset()
    sock.close()


async def test_a_server_that_is_told_to_leave_once_stops_in_order() -> None:
    settings = EmbeddingSettings(drain_delay=0, port=0)
    service = ScriptedService(settings)
    server = Server(EmbeddingApp(cast("ProductionEmbeddingService", service)), lambda _: None)
    sock = bind(server._app.config, has_keys=False, variable="KEYS")
    running = asyncio.create_task(server.run(sock))
    await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    async with asyncio.timeout(10):
        await running
    assert (server.is_stopped, service.stops) == (True, 1)
    sock.close()

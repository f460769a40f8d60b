"""Run an application: bind, serve, and leave without dropping a request."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from shared.infrastructure.resilience import ConfigurationError
from shared.infrastructure.server.app import App
from shared.infrastructure.server.config import ServerConfig
from shared.infrastructure.server.listener import BACKLOG, Listener

_log = logging.getLogger(__name__)

Announce = Callable[[str], object]
"""Told the URL once there is somebody to listen."""


def serve(make: Callable[[], App], sock: socket.socket, announce: Announce) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT, then finish what is in flight.

    Args:
        make: Returns the application, in the event loop it will run in.
        sock: Closed in the end.
        announce: Told the URL.

    Raises:
        ServiceError: What the application serves cannot be had.
    """

    async def run() -> None:
        server = Server(make(), announce)
        await server.run(sock)
        if not server.is_stopped:
            # A thread that loads a model ends when it has loaded it, and the interpreter waits.
            sys.stdout.flush()
            os._exit(0)

    with contextlib.closing(sock):
        asyncio.run(run())


class Server:
    """A process: it serves; told to leave it is first not ready, then deaf, then gone.

    Args:
        app: It belongs to the server from now on.
        announce: Told the URL.

    Attributes:
        is_stopped: Whether the application was stopped in order, and not given up.
    """

    def __init__(self, app: App, announce: Announce) -> None:
        self._announce = announce
        self._app = app
        self._app.on_failure = self._fail
        self._config = app.config
        self._failure: Exception | None = None
        self._leaving = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._forced = asyncio.Event()
        self.is_stopped = False

    async def run(self, sock: socket.socket) -> None:
        """Serve on a bound socket until a signal comes.

        SIGTERM serves on for `drain_delay`, while balancers notice that it is not ready. SIGINT
        skips that, and a second signal skips whatever is waited for.

        Raises:
            ServiceError: What the application serves cannot be had.
        """
        listener = Listener(self._app)
        with self._signals():
            await self._app.start()
            await listener.start(sock)
            self._announce(url_of(sock))
            await self._leaving.wait()
            await self._drain(listener)
        if self._failure is not None:
            raise self._failure

    async def _drain(self, listener: Listener) -> None:
        self._app.draining = True
        if not self._app.is_started and self._failure is None:
            # No balancer has sent anything yet, and there is nothing to write down.
            self._force()
        if self._config.drain_delay and not self._hurrying.is_set():
            _log.info("not ready; serving on for %g s", self._config.drain_delay)
            await self._unless(self._hurrying, asyncio.sleep(self._config.drain_delay))
        _log.info("finishing requests in flight")
        listener.close()
        closed = asyncio.wait_for(listener.closed(), self._config.drain_timeout)
        with contextlib.suppress(TimeoutError):
            await self._unless(self._forced, closed)
        await listener.abandon()
        self.is_stopped = await self._unless(self._forced, self._app.stop())

    async def _unless(self, event: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
        """Return whether `work` was done before an event, at which it is cancelled."""
        task, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            await task
            return True
        task.cancel()
        return False

    def _force(self) -> None:
        self._hurrying.set()
        self._forced.set()

    @contextlib.contextmanager
    def _signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._leaving.is_set():
            self._force()
        elif number == signal.SIGINT:
            self._hurrying.set()
        self._leaving.set()

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._hurrying.set()
        self._leaving.set()


def url_of(sock: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def bind(config: ServerConfig, *, has_keys: bool, variable: str) -> socket.socket:
    """Return a socket that listens on the address of a config.

    Args:
        config: Says where.
        has_keys: Whether clients must give an API key.
        variable: Environment variable that sets these keys, for the message.

    Raises:
        ConfigurationError: It cannot be listened on, or must not be without API keys.
    """
    host, port = config.host, config.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        if not has_keys and not ipaddress.ip_address(address[0]).is_loopback:
            raise ConfigurationError(
                f"{host} can be reached from other machines: set {variable} to the keys "
                "that clients must give, or listen on 127.0.0.1"
            )
        return _listening(socket.socket(family, kind, protocol), address)
    except OSError as exc:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {exc.strerror}; choose another address by --host or "
            "--port (0 takes a free port)"
        ) from exc


def _listening(sock: socket.socket, address: Any) -> socket.socket:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def freeze() -> None:
    """Leave what loading made out of later collections.

    Each full one would walk it, and nobody be answered for some tenths of a second.
    """
    gc.collect()
    gc.freeze()

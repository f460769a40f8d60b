"""Run the embedding process: bind, serve, and leave without dropping a request."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Generator
from typing import Any

from services.embedding.app import EmbeddingApp
from services.embedding.service import ProductionEmbeddingService
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.resilience import ConfigurationError, MissingExtraError

try:
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError as exc:
    raise MissingExtraError("the embedding process", "embedding") from exc

_log = logging.getLogger(__name__)

_BACKLOG = 2048
# Longer than clients keep idle connections: it must be they who close them, for a request may be
# on its way when we do.
_KEEP_ALIVE = 75


def serve(settings: EmbeddingSettings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight.

    Raises:
        ConfigurationError: The address cannot be listened on, or must not be without API keys.
        ServiceError: The model cannot be loaded.
    """
    listener = _bind(settings)
    with contextlib.closing(listener):
        server = _Server(settings)
        _announce(listener, settings)
        server.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure


class _Server(uvicorn.Server):
    """uvicorn with a way out of its own: first not ready, then deaf, then gone.

    Attributes:
        failure: Why the model could not be loaded, if so.
    """

    def __init__(self, settings: EmbeddingSettings) -> None:
        self.failure: Exception | None = None
        self._drain_delay = settings.drain_delay
        self._service = ProductionEmbeddingService(settings)
        self._app = EmbeddingApp(self._service, on_failure=self._fail)
        super().__init__(
            uvicorn.Config(
                self._app,
                http=HttpToolsProtocol,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=settings.drain_timeout,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Take the signals as events of the loop; uvicorn would raise them again at the end."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        # Before the model is loaded no balancer has sent anything yet.
        at_once = number == signal.SIGINT or not self._drain_delay or not self._service.is_started
        if self.should_exit:
            self.force_exit = True
        elif self._app.draining or at_once:
            self._exit()
        else:
            _log.info("draining for %g s", self._drain_delay)
            self._app.draining = True
            asyncio.get_running_loop().call_later(self._drain_delay, self._exit)

    def _exit(self) -> None:
        _log.info("finishing requests in flight")
        self._app.draining = self.should_exit = True

    def _fail(self, error: Exception) -> None:
        self.failure = error
        self.should_exit = True


def _bind(settings: EmbeddingSettings) -> socket.socket:
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        if not settings.api_keys and not ipaddress.ip_address(address[0]).is_loopback:
            raise ConfigurationError(
                f"{host} can be reached from other machines: set EMBEDDING_API_KEYS to the keys "
                "that clients must give, or listen on 127.0.0.1"
            )
        return _listen(socket.socket(family, kind, protocol), address)
    except OSError as exc:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {exc.strerror}; choose another address by --host or "
            "--port (0 takes a free port)"
        ) from exc


def _listen(listener: socket.socket, address: Any) -> socket.socket:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _announce(listener: socket.socket, settings: EmbeddingSettings) -> None:
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"listening on http://{host}:{port} (model {settings.model_name})\n")
    sys.stdout.flush()

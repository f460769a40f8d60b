"""Certificates of every kind, and a server that says why it refuses one.

asyncio's own server would hang up without sending the alert, as few others do.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import trustme

from tests.raw_server import OK


class Authority:
    """Issues certificates and trusts them."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    @property
    def pem(self) -> bytes:
        return self._ca.cert_pem.bytes()

    def issue(self, identity: str = "127.0.0.1", *, days: int = 2) -> trustme.LeafCert:
        now = datetime.now(UTC)
        lasting = (now - timedelta(days=9), now + timedelta(days=days))
        return self._ca.issue_cert(identity, not_before=lasting[0], not_after=lasting[1])

    def trust(self, context: ssl.SSLContext) -> None:
        self._ca.configure_trust(context)

    def client(self, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
        """Return a context that trusts this authority."""
        context = ssl.create_default_context()
        self.trust(context)
        if certificate is not None:
            certificate.configure_cert(context)
        return context

    def asking(self, server: ssl.SSLContext) -> ssl.SSLContext:
        """Let `server` ask its clients for a certificate of this authority."""
        server.verify_mode = ssl.CERT_REQUIRED
        self.trust(server)
        return server


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """Return the context of a server that shows `certificate`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def name_in(certificate: Any) -> str:
    """Return whose certificate it is, as `getpeercert` has it; "" if there is none."""
    return certificate["subjectAltName"][0][1] if certificate else ""


def write_pair(folder: Path, leaf: trustme.LeafCert) -> None:
    """Write `cert.pem` and `key.pem`."""
    chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
    (folder / "cert.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(leaf.private_key_pem.bytes())


def handshake(
    client: ssl.SSLContext, server: ssl.SSLContext, name: str = "127.0.0.1"
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Let the two meet in memory; return both ends.

    Raises:
        ssl.SSLError: As the client has it, which reads what a server of TLS 1.3 says afterwards.
    """
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(down, up, server_hostname=name)
    theirs = server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        with contextlib.suppress(ssl.SSLWantReadError):
            ours.do_handshake()
        with contextlib.suppress(ssl.SSLError):
            theirs.do_handshake()
    with contextlib.suppress(ssl.SSLWantReadError):
        ours.read()
    return ours, theirs


class TLSServer:
    """Answers "ok" to every request without a body, in HTTP/1.1 or HTTP/2.

    Attributes:
        port: Where it listens, on loopback.
        url: The same as a URL.
        names: What each client said it wanted to reach.
        clients: Names in the certificates of those that were let in; "" for none.
        accepted: Connections, handshake or not.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._sockets: list[socket.socket] = []
        self.port: int = self._listening.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self.names: list[str | None] = []
        self.clients: list[str] = []
        self.accepted = 0
        context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self._threads[0].start()

    def close(self) -> None:
        for open_one in (self._listening, *self._sockets):
            with contextlib.suppress(OSError):
                open_one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listening.accept()
                self.accepted += 1
                self._sockets.append(plain)
                thread = threading.Thread(target=self._serve, args=(plain,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, plain: socket.socket) -> None:
        # A file descriptor of its own, so that `close` can shut it whatever becomes of this one.
        with contextlib.suppress(OSError), plain:
            tls = self._context.wrap_socket(
                plain.dup(), server_side=True, do_handshake_on_connect=False
            )
            with tls:
                try:
                    tls.do_handshake()
                except ssl.SSLError:
                    plain.shutdown(socket.SHUT_WR)
                    while plain.recv(4096):
                        pass
                    return
                self.clients.append(name_in(tls.getpeercert()))
                is_h2 = tls.selected_alpn_protocol() == "h2"
                (_answer_h2 if is_h2 else _answer_h1)(tls)


def _answer_h1(tls: ssl.SSLSocket) -> None:
    unread = b""
    while data := tls.recv(4096):
        unread += data
        while b"\r\n\r\n" in unread:
            _, unread = unread.split(b"\r\n\r\n", 1)
            tls.sendall(OK)


def _answer_h2(tls: ssl.SSLSocket) -> None:
    state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    state.initiate_connection()
    tls.sendall(state.data_to_send())
    while data := tls.recv(4096):
        for event in state.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                state.send_headers(event.stream_id, [(":status", "200")])
                state.send_data(event.stream_id, b"ok", end_stream=True)
        tls.sendall(state.data_to_send())


@contextmanager
def tls_server(context: ssl.SSLContext) -> Iterator[TLSServer]:
    """Serve on loopback, on threads of its own."""
    server = TLSServer(context)
    try:
        yield server
    finally:
        server.close()

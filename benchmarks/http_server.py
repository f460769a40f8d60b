"""The server of every HTTP client that is measured: nginx on the loopback."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

JSON = b'{"id": 7, "text": "%b"}' % (b"a" * 179)  # 200 bytes
TEXT = "A circuit breaker stops calling a service that fails, and tries again after a while."
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "gpt-4o-mini",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 20, "completion_tokens": 18, "total_tokens": 38},
}
LATENCY = 0.1

CONFIG = """\
{modules}
daemon off;
master_process off;
worker_rlimit_nofile 8192;
pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    default_type application/json;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {{
        {listen}
        ssl_certificate server.pem;
        ssl_certificate_key server.key;
        location = /json {{ return 200 '{json}'; }}
        location = /v1/chat/completions {{ return 200 '{chat}'; }}
        {slow}
    }}
}}
"""


class Target(NamedTuple):
    """Where the server is.

    Attributes:
        http: Three origins without TLS, all of them this one server.
        https: Its origin with TLS, where it speaks HTTP/2.
        authority: File with the certificate authority to trust.
        has_slow: It has `/slow`, which answers after `LATENCY`.
    """

    http: list[str]
    https: str
    authority: str
    has_slow: bool


def find_nginx() -> str | None:
    """Return the path of nginx, which Debian keeps from the search path of ordinary users."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def serving(nginx: str, core: int) -> Iterator[Target]:
    """Run nginx as one process on one core."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _certify(folder)
        ports = _free_ports(4)
        listen = [f"listen 127.0.0.1:{port};" for port in ports[:3]]
        listen.append(f"listen 127.0.0.1:{ports[3]} ssl http2;")
        echo = _echo_module(nginx)
        slow = f"location = /slow {{ echo_sleep {LATENCY}; echo_exec /json; }}"
        config = CONFIG.format(
            modules=f"load_module {echo};" if echo else "",
            listen=" ".join(listen),
            json=JSON.decode(),
            chat=json.dumps(CHAT),
            slow=slow if echo else "",
        )
        (folder / "nginx.conf").write_text(config)
        command = [nginx, "-p", name, "-c", str(folder / "nginx.conf"), "-e", "error.log"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            os.sched_setaffinity(process.pid, {core})
            _wait_until_up(process, ports, folder / "error.log")
            http = [f"http://127.0.0.1:{port}" for port in ports[:3]]
            https = f"https://127.0.0.1:{ports[3]}"
            yield Target(http, https, str(folder / "authority.pem"), echo is not None)
        finally:
            process.terminate()
            process.wait()


def _certify(folder: Path) -> None:
    import trustme  # noqa: PLC0415 - nothing but the server itself needs it

    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    server.private_key_pem.write_to_path(folder / "server.key")
    for number, pem in enumerate(server.cert_chain_pems):
        pem.write_to_path(folder / "server.pem", append=number > 0)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _echo_module(nginx: str) -> Path | None:
    built = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=True).stderr
    for option in built.split():
        if option.startswith("--modules-path="):
            module = Path(option.partition("=")[2], "ngx_http_echo_module.so")
            return module if module.exists() else None
    return None


def _wait_until_up(process: subprocess.Popen[bytes], ports: list[int], log: Path) -> None:
    deadline = time.monotonic() + 10.0
    for port in ports:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    said = log.read_text() if log.exists() else ""
                    raise RuntimeError(f"nginx does not answer: {said}") from None
                time.sleep(0.02)

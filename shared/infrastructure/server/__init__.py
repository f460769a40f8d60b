"""An HTTP/1.1 server for one application: patient, bounded, and polite when it leaves."""

from shared.infrastructure.server.app import App
from shared.infrastructure.server.config import ServerConfig
from shared.infrastructure.server.health import HealthHandlers, health_routes
from shared.infrastructure.server.keys import Keyring
from shared.infrastructure.server.messages import (
    CLOSE,
    JSON,
    Header,
    HTTPError,
    Reply,
    Request,
    StreamedReply,
    json_reply,
    not_ready,
    openai_error,
    retry_after,
)
from shared.infrastructure.server.problems import Problem, Problems
from shared.infrastructure.server.routes import Handler, Route, Routes
from shared.infrastructure.server.server import Server, bind, freeze, serve

__all__ = [
    # app.py
    "App",
    # config.py
    "ServerConfig",
    # health.py
    "HealthHandlers",
    "health_routes",
    # keys.py
    "Keyring",
    # messages.py
    "CLOSE",
    "JSON",
    "HTTPError",
    "Header",
    "Reply",
    "Request",
    "StreamedReply",
    "json_reply",
    "not_ready",
    "openai_error",
    "retry_after",
    # problems.py
    "Problem",
    "Problems",
    # routes.py
    "Handler",
    "Route",
    "Routes",
    # server.py
    "Server",
    "bind",
    "freeze",
    "serve",
]

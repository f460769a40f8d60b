"""What the SDK needs of an HTTP library: httpx and httpx2 are alike, but share no class.

Everything else in this package is written once, against an `HTTPLibrary`; `httpx.py` and
`httpx2.py` have the few classes that a user sees, one set for each library.
"""

from __future__ import annotations

import logging
import ssl
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, cast

import httpx

from shared.infrastructure.http import errors
from shared.infrastructure.http.amend import OutgoingRequest
from shared.infrastructure.http.errors import UpstreamError
from shared.infrastructure.http.secrecy import PublicURLs
from shared.infrastructure.http.semantics import WHOLE_BODIES
from shared.infrastructure.http.tls_failure import tls_reason_of
from shared.infrastructure.http.wire.errors import StaleConnectionError
from shared.infrastructure.resilience import (
    AttemptTimeoutError,
    CallRefusedError,
    DeadlineExceededError,
    ServiceError,
)

THEIR_NAMES: dict[type[ServiceError], str] = {
    ServiceError: "TransportError",
    AttemptTimeoutError: "ReadTimeout",
    DeadlineExceededError: "ReadTimeout",
    CallRefusedError: "ConnectError",
    UpstreamError: "TransportError",
    errors.ConnectFailedError: "ConnectError",
    errors.TLSFailedError: "ConnectError",
    errors.ConnectTimeoutError: "ConnectTimeout",
    errors.PoolTimeoutError: "PoolTimeout",
    errors.ProxyFailedError: "ProxyError",
    errors.WriteFailedError: "WriteError",
    errors.WriteTimeoutError: "WriteTimeout",
    errors.ReadFailedError: "ReadError",
    errors.ReadTimeoutError: "ReadTimeout",
    StaleConnectionError: "ReadError",
    errors.UnprocessedError: "RemoteProtocolError",
    errors.ResponseTooLargeError: "RemoteProtocolError",
    errors.RemoteProtocolViolationError: "RemoteProtocolError",
    errors.UndecodableBodyError: "DecodingError",
    errors.LocalProtocolViolationError: "LocalProtocolError",
}
"""For errors of ours, the class of the library that they are as well; other rooms add theirs."""

_OUR_CLASSES: dict[str, type[UpstreamError]] = {
    "TransportError": UpstreamError,
    "ConnectError": errors.ConnectFailedError,
    "ConnectTimeout": errors.ConnectTimeoutError,
    "PoolTimeout": errors.PoolTimeoutError,
    "ProxyError": errors.ProxyFailedError,
    "WriteError": errors.WriteFailedError,
    "WriteTimeout": errors.WriteTimeoutError,
    "ReadError": errors.ReadFailedError,
    "CloseError": errors.ReadFailedError,
    "ReadTimeout": errors.ReadTimeoutError,
    "RemoteProtocolError": errors.RemoteProtocolViolationError,
    "LocalProtocolError": errors.LocalProtocolViolationError,
    "UnsupportedProtocol": errors.LocalProtocolViolationError,
}
"""For each error of the library, the class of ours that says the same."""

# RFC 9113, section 7.
_REFUSED_STREAM = 7

_Error = TypeVar("_Error", bound=ServiceError)
# For classes that are ours and a library's, the one that is ours alone.
_OWN: dict[type[ServiceError], type[ServiceError]] = {}


if TYPE_CHECKING:

    class AsyncClient:
        """What the clients of the two libraries have alike."""

        @property
        def base_url(self) -> Any: ...
        @base_url.setter
        def base_url(self, url: Any) -> None: ...
        def __init__(self, **options: Any) -> None: ...
        def build_request(self, method: str, url: Any, **options: Any) -> Any: ...
        async def send(self, request: Any, **options: Any) -> Any: ...

        follow_redirects: bool

        @property
        def auth(self) -> Any: ...
        @auth.setter
        def auth(self, auth: Any) -> None: ...
        @property
        def params(self) -> Any: ...
        @params.setter
        def params(self, params: Any) -> None: ...
        async def aclose(self) -> None: ...
        async def __aenter__(self) -> Self: ...
        async def __aexit__(
            self,
            exc_type: type[BaseException] | None = None,
            exc_value: BaseException | None = None,
            traceback: TracebackType | None = None,
        ) -> None: ...

else:
    AsyncClient = object


class HTTPLibrary:
    """One of the libraries that offer the interface of httpx.

    Args:
        module: `httpx`, or one like it.

    Attributes:
        response: Class of its responses.
        url: Class of its URLs.
        timeout: Class of its time limits.
        limits: Class of the bounds of its pool.
        client_default: Stands for an argument that is left to the client.
        byte_stream: Class of a body that is there as a whole.
        native: Class of its own transport.
        failures: What `translated` takes: errors of its transports, and ours.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.response: Any = module.Response
        self.url: Any = module.URL
        self.timeout: Any = module.Timeout
        self.limits: Any = module.Limits
        self.client_default: Any = module.USE_CLIENT_DEFAULT
        self.byte_stream: Any = module.ByteStream
        self._public_urls = PublicURLs(self.url)
        WHOLE_BODIES.add(self.byte_stream)
        self.native: type[Any] = module.AsyncHTTPTransport
        self.failures: tuple[type[Exception], ...] = (
            module.TransportError,
            UpstreamError,
            ssl.SSLError,
        )
        self._ours = {getattr(module, name): kind for name, kind in _OUR_CLASSES.items()}
        self._both: dict[type[ServiceError], type[ServiceError]] = {}
        self._streams: dict[type, type[Any]] = {}

    def hide_urls(self) -> None:
        """Have the library log URLs without what may be secret in them; for the whole process."""
        logging.getLogger(self._module.__name__).addFilter(self._public_urls)

    def default_tls(self) -> ssl.SSLContext:
        """Return the library's own context: verifying, and deaf to the environment."""
        context: ssl.SSLContext = self._module.create_ssl_context(trust_env=False)
        return context

    def stream_class(self, kind: type) -> type[Any]:
        """Return `kind` as a class whose instances the library takes for the body of a message."""
        if kind not in self._streams:
            self._streams[kind] = type(kind.__name__, (kind, self._module.AsyncByteStream), {})
        return self._streams[kind]

    def hold(self, response: Any, content: bytes) -> None:
        """Give a response the body that was read for it, as its own `aread()` would have."""
        # The public ways to the same end take five times as long.
        response._content = content  # noqa: SLF001
        response._num_bytes_downloaded = len(content)  # noqa: SLF001
        response.is_closed = response.is_stream_consumed = True

    def error_class(self, kind: type[_Error]) -> type[_Error]:
        """Return `kind` as a class that an `except` for the library's own class catches too."""
        if kind not in self._both:
            name = next(THEIR_NAMES[base] for base in kind.__mro__ if base in THEIR_NAMES)
            bases = (kind, getattr(self._module, name))
            self._both[kind] = both = type(kind.__name__, bases, {})
            _OWN[both] = kind
        return cast("type[_Error]", self._both[kind])

    def error(
        self, kind: type[UpstreamError], reason: str, request: OutgoingRequest
    ) -> UpstreamError:
        """Return an error about the exchange that `request` asked for; it is the library's too."""
        host = request.url.netloc.decode("ascii")
        error = self.error_class(kind)(
            f"{request.method} {host}{request.url.path}: {reason}", host=host
        )
        error.attempts = 1
        cast("Any", error).request = request
        return error

    def adopted(self, exc: ServiceError, request: Any) -> ServiceError:
        """Return an error as one of this library's, too, about `request` of this library.

        It is `exc` itself if it is one already; else a copy of its own class with all that is known
        of it, and with `exc` as its cause.
        """
        if issubclass(type(exc), self._module.TransportError):
            return exc
        both = self.error_class(_OWN.get(type(exc), type(exc)))
        error: ServiceError = both.__new__(both, *exc.args)
        error.args = exc.args
        vars(error).update(vars(exc))  # `__init__` need not take what it says
        cast("Any", error).request = request
        error.__cause__ = exc
        return error

    def fail(self, exc: Exception, request: OutgoingRequest) -> NoReturn:
        """Raise the error of ours, and the library's, for one that is only either of them."""
        error = self.translated(exc, request)
        raise error from error.__cause__

    def translated(self, exc: Exception, request: OutgoingRequest) -> ServiceError:
        """Return what `fail` raises; its cause is set."""
        # httpx often leaves the text empty; the class of the cause is then all there is to say.
        reason = str(exc) or type(exc).__name__
        if not isinstance(exc, ServiceError):
            tls = tls_reason_of(exc)
            kind = errors.TLSFailedError if tls else self._kind_of(exc)
            error = self.error(kind, tls or reason, request)
            error.__cause__ = exc
            return error
        if not isinstance(exc, UpstreamError) or type(exc) not in THEIR_NAMES:
            return exc  # it is both already, or of another room
        error = self.error(type(exc), reason, request)
        error.__cause__ = exc.__cause__
        return error

    def _kind_of(self, exc: Exception) -> type[UpstreamError]:
        if _is_unprocessed(exc):
            return errors.UnprocessedError
        if isinstance(exc, ssl.SSLError):  # the native transports let one through as it is
            return errors.ReadFailedError
        kind = next(self._ours[base] for base in type(exc).__mro__ if base in self._ours)
        if kind is errors.LocalProtocolViolationError and _is_of_h2(exc):
            return errors.RemoteProtocolViolationError
        return kind


def _is_unprocessed(exc: Exception) -> bool:
    """Whether HTTP/2 said so: a stream refused, or a GOAWAY that covers no stream at all.

    What the native transports raise then has the event itself as its argument. A GOAWAY below our
    stream never gets here: they send the request again by themselves.
    """
    for cause in (exc, exc.__cause__):
        event: Any = cause.args[0] if cause is not None and cause.args else None
        if getattr(event, "last_stream_id", None) == 0:
            return True
        is_reset = type(event).__name__ == "StreamReset"
        if is_reset and event.error_code == _REFUSED_STREAM:
            return True
    return False


def _is_of_h2(exc: Exception) -> bool:
    """Whether the state machine of HTTP/2 objected to something; the native transports blame us."""
    cause = exc.__cause__
    argument = cause.args[0] if cause is not None and cause.args else None
    return type(argument).__module__.startswith("h2.")


HTTPX = HTTPLibrary(httpx)

"""TLS as a client has it: whom to trust, what to show, and files that may be replaced meanwhile."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import certifi
from pydantic import BaseModel, SecretStr, model_validator

from shared.infrastructure.resilience import ConfigurationError

_log = logging.getLogger(__name__)

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

# Of each file its inode, size and time of change in ns; None if there is none.
Stamp = tuple[tuple[int, int, int] | None, ...]


class TLSConfig(BaseModel, frozen=True, extra="forbid"):
    """Whom a client trusts and what it shows of itself; all files are PEM.

    Certificate and host name of the service are always checked: nothing here switches that off.

    Attributes:
        ca_file: Authorities to trust, and no others; None (default) trusts the public ones, as
            httpx does: those of certifi, whatever the system has.
        cert_file: Certificate to show to services that ask for one, and the chain above it; None
            (default) shows none.
        key_file: Its private key; None (default) if that stands in `cert_file`.
        key_password: What the key is encrypted with; None (default) if it is not.
        minimum_version: Oldest version of TLS to speak: "1.2" (default) or "1.3".
        reload: Read files that have changed again, at the next handshake; True. Connections that
            are open go on with what they have. While a new file is missing or broken, what was
            read last stays in use, and the log has one warning.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    key_password: SecretStr | None = None
    minimum_version: Literal["1.2", "1.3"] = "1.2"
    reload: bool = True

    @model_validator(mode="after")
    def _a_key_has_a_certificate(self) -> Self:
        if self.cert_file is None and (self.key_file or self.key_password):
            raise ValueError("key_file and key_password need a cert_file: a key alone is no use")
        return self

    def context(self) -> ssl.SSLContext:
        """Return a new context; one for each transport, which sets the protocols it offers (ALPN).

        Raises:
            ConfigurationError: A file is missing or broken; the message says which, and why.
        """
        return ReloadingContext(self) if self.reload and self.files else _load(self)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files it names."""
        files = (self.ca_file, self.cert_file, self.key_file)
        return tuple(file for file in files if file is not None)


class ReloadingContext(ssl.SSLContext):
    """A context that stands for the latest one that its files make.

    Each handshake looks at the files, a few microseconds each; those that changed are read there
    and then, on the thread of the handshake. It may be used from several threads.

    Args:
        config: Names the files.

    Raises:
        ConfigurationError: A file is missing or broken, or somebody tries to change the context.
    """

    def __new__(cls, config: TLSConfig) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, config: TLSConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._protocols: list[str] = []
        self._stamp = _stamp(config.files)
        self._warned: Stamp = ()
        self._latest = _load(config)

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        return self._current().wrap_bio(*args, **options)

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        return self._current().wrap_socket(*args, **options)

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        with self._lock:
            self._protocols = list(alpn_protocols)
            self._latest.set_alpn_protocols(self._protocols)

    def _current(self) -> ssl.SSLContext:
        with self._lock:
            stamp = _stamp(self._config.files)
            if stamp != self._stamp:
                self._read(stamp)
            return self._latest

    def _read(self, stamp: Stamp) -> None:
        # Tried again with every handshake until it works: not all that is in the way, a missing
        # file descriptor say, shows on the file.
        try:
            latest = _load(self._config)
        except ConfigurationError as exc:
            if stamp != self._warned:
                self._warned = stamp
                _log.warning("changed TLS files are not used, the last good ones are: %s", exc)
            return
        if self._protocols:
            latest.set_alpn_protocols(self._protocols)
        self._latest, self._stamp = latest, stamp
        _log.info("changed TLS files are in use")

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_"):
            self._refuse()
        super().__setattr__(name, value)

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        # It would be without effect: what does the handshakes is another context.
        raise ConfigurationError("this context cannot be changed; make one from another TLSConfig")

    load_cert_chain: Any = _refuse
    load_default_certs: Any = _refuse
    load_verify_locations: Any = _refuse
    set_ciphers: Any = _refuse
    set_default_verify_paths: Any = _refuse


def _stamp(files: tuple[Path, ...]) -> Stamp:
    return tuple(_stamp_of(file) for file in files)


def _stamp_of(file: Path) -> tuple[int, int, int] | None:
    try:
        stat = os.stat(file)  # noqa: PTH116 - a tenth of the time
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _load(config: TLSConfig) -> ssl.SSLContext:
    if config.cert_file is not None:
        # First where it costs little: to read all public authorities takes some 20 ms.
        _load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), config, config.cert_file)
    context = _trusting(config.ca_file)
    context.minimum_version = _VERSIONS[config.minimum_version]
    if config.cert_file is not None:
        _load_pair(context, config, config.cert_file)
    return context


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    if ca_file is None:
        return ssl.create_default_context(cafile=certifi.where())
    _check_readable("ca_file", ca_file)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as exc:
        raise ConfigurationError(
            f"ca_file {ca_file} is not a list of certificates in PEM, or not a whole one; "
            "it must hold every authority to trust"
        ) from exc


def _load_pair(context: ssl.SSLContext, config: TLSConfig, cert_file: Path) -> None:
    _check_readable("cert_file", cert_file)
    key_file = config.key_file
    if key_file is not None:
        _check_readable("key_file", key_file)
    password = config.key_password
    try:
        # Never None: OpenSSL would ask the terminal for the password of an encrypted key.
        context.load_cert_chain(
            cert_file, key_file, password.get_secret_value() if password is not None else ""
        )
    except OSError as exc:
        raise ConfigurationError(_fault_of_pair(exc, cert_file, key_file)) from exc


def _fault_of_pair(exc: OSError, cert_file: Path, key_file: Path | None) -> str:
    if isinstance(exc, ssl.SSLError) and exc.reason == "KEY_VALUES_MISMATCH":
        return f"the key in {key_file or cert_file} is not that of the certificate in {cert_file}"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cert_file)
    except OSError:
        return (
            f"cert_file {cert_file} is not a certificate in PEM, or not a whole one; "
            "the client's own comes first, then the chain above it"
        )
    where = f"cert_file {cert_file} has no" if key_file is None else f"key_file {key_file} is no"
    return (
        f"{where} private key in PEM that can be read; "
        "if the key is encrypted, key_password must be its password"
    )


def _check_readable(name: str, file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as exc:
        raise ConfigurationError(
            f"{name} {file} cannot be read: {exc.strerror}; give the path of a file in PEM"
        ) from exc

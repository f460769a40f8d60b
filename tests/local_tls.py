"""One authority for the TLS servers of the tests, and contexts for both sides of them."""

import ssl
from functools import cache

import trustme


@cache
def authority() -> trustme.CA:
    return trustme.CA()


@cache
def server_tls(*protocols: str) -> ssl.SSLContext:
    """Return the context of a server on 127.0.0.1 that speaks `protocols`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(list(protocols))
    return context


def client_tls() -> ssl.SSLContext:
    """Return a context that trusts our servers."""
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context

import ssl

import pytest

from shared.infrastructure.http.tls_failure import tls_reason, tls_reason_of, tls_words
from tests.tls_server import Authority, handshake, serving


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def failure_of(client: ssl.SSLContext, server: ssl.SSLContext) -> ssl.SSLError:
    with pytest.raises(ssl.SSLError) as caught:
        handshake(client, server)
    return caught.value


def named(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] words")
    error.reason = reason
    return error


def behind(cause: BaseException) -> Exception:
    try:
        try:
            raise cause
        except BaseException as exc:
            raise ConnectionError from exc
    except ConnectionError as exc:
        return exc


def reason_for(client: ssl.SSLContext, server: ssl.SSLContext) -> str | None:
    return tls_reason_of(behind(failure_of(client, server)))


@pytest.mark.parametrize(
    ("name", "days", "words"),
    [
        ("127.0.0.1", -1, "TLS: certificate has expired"),
        ("127.0.0.2", 2, "TLS: IP address mismatch, certificate is not valid for '127.0.0.1'"),
        ("a.test", 2, "TLS: IP address mismatch, certificate is not valid for '127.0.0.1'"),
    ],
)
def test_a_certificate_that_does_not_do_is_named(
    authority: Authority, name: str, days: int, words: str
) -> None:
    server = serving(authority.issue(name, days=days))
    assert reason_for(authority.client(), server) == words


def test_an_unknown_authority_is_named(authority: Authority) -> None:
    words = "TLS: unknown authority: unable to get local issuer certificate"
    assert reason_for(Authority().client(), serving(authority.issue())) == words


@pytest.mark.parametrize(
    "code",
    [
        2,  # unable to get issuer certificate
        18,  # self-signed certificate
        19,  # self-signed certificate in certificate chain
        20,  # unable to get local issuer certificate
        21,  # unable to verify the first certificate
        27,  # certificate not trusted
    ],
)
def test_a_chain_that_ends_at_nobody_known_is_of_an_unknown_authority(code: int) -> None:
    error = ssl.SSLCertVerificationError(1, "words")
    error.verify_code, error.verify_message = code, "as OpenSSL says"
    assert tls_reason_of(behind(error)) == "TLS: unknown authority: as OpenSSL says"


def test_a_version_that_is_too_old_is_named(authority: Authority) -> None:
    server = serving(authority.issue())
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    client = authority.client()
    client.minimum_version = ssl.TLSVersion.TLSv1_3
    words = "TLS: no version of TLS in common (tlsv1 alert protocol version)"
    assert reason_for(client, server) == words


@pytest.mark.parametrize(
    ("version", "is_foreign", "words"),
    [
        (ssl.TLSVersion.TLSv1_2, False, "it requires a client certificate, or no cipher suits"),
        (ssl.TLSVersion.TLSv1_2, True, "does not know the authority of the client certificate"),
        (ssl.TLSVersion.TLSv1_3, False, "requires a client certificate"),
        (ssl.TLSVersion.TLSv1_3, True, "does not know the authority of the client certificate"),
    ],
)
def test_a_client_certificate_that_is_missing_or_refused_is_named(
    authority: Authority, version: ssl.TLSVersion, is_foreign: bool, words: str
) -> None:
    server = authority.asking(serving(authority.issue()))
    server.maximum_version = version
    client = authority.client(Authority().issue("client.test") if is_foreign else None)
    failure = failure_of(client, server)
    assert words in (tls_reason_of(behind(failure)) or "")
    # With TLS 1.3 it comes bare, out of the first read.
    if version is ssl.TLSVersion.TLSv1_3:
        assert words in (tls_reason_of(failure) or "")


@pytest.mark.parametrize(
    ("reason", "in_handshake", "later"),
    [
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", True, True),
        ("SSLV3_ALERT_CERTIFICATE_REVOKED", True, True),
        ("SSLV3_ALERT_BAD_CERTIFICATE", True, True),
        ("SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", True, True),
        ("SSLV3_ALERT_CERTIFICATE_UNKNOWN", True, True),
        ("TLSV1_ALERT_ACCESS_DENIED", True, True),
        ("tlsv13 alert certificate required", True, True),
        ("WRONG_VERSION_NUMBER", True, False),
        ("RECORD_LAYER_FAILURE", True, False),
        ("PACKET_LENGTH_TOO_LONG", True, False),
        ("HTTP_REQUEST", True, False),
        ("UNSUPPORTED_PROTOCOL", True, False),
        ("VERSION_TOO_LOW", True, False),
        ("TLSV1_ALERT_INSUFFICIENT_SECURITY", True, False),
        ("TLSV1_ALERT_NO_APPLICATION_PROTOCOL", True, False),
        ("UNSAFE_LEGACY_RENEGOTIATION_DISABLED", True, False),
        ("CA_MD_TOO_WEAK", True, False),
        ("TLSV1_UNRECOGNIZED_NAME", True, False),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", True, False),
        ("DH_KEY_TOO_SMALL", True, False),
        ("DECRYPTION_FAILED_OR_BAD_RECORD_MAC", False, False),
        ("UNEXPECTED_EOF_WHILE_READING", False, False),
        ("TLSV1_ALERT_INTERNAL_ERROR", False, False),
    ],
)
def test_once_the_handshake_is_over_only_the_refusal_of_a_certificate_says_nothing_was_taken(
    reason: str, in_handshake: bool, later: bool
) -> None:
    error = named(reason)
    assert (tls_reason(error, in_handshake=True) is not None) is in_handshake
    assert (tls_reason(error, in_handshake=False) is not None) is later
    assert (tls_reason_of(behind(error)) is not None) is in_handshake
    assert (tls_reason_of(error) is not None) is later


def test_an_error_without_a_name_has_no_reason() -> None:
    assert tls_reason_of(behind(ssl.SSLError(1, "words"))) is None
    assert tls_reason_of(behind(OSError(1, "words"))) is None
    assert tls_reason_of(ConnectionError()) is None
    refused = ssl.SSLCertVerificationError(1, "not by our book")
    assert tls_reason_of(behind(refused)) == "TLS: not by our book"
    assert tls_words(ssl.SSLError(1, "words")) == "words"


def test_what_an_error_hides_is_found_too() -> None:
    def closed() -> None:
        try:
            raise named("WRONG_VERSION_NUMBER")
        except ssl.SSLError:
            raise ConnectionError from None

    with pytest.raises(ConnectionError) as caught:
        closed()
    assert "speaks no TLS" in (tls_reason_of(behind(caught.value)) or "")


def test_the_failure_of_another_call_that_was_being_handled_is_not_taken_for_ones_own() -> None:
    def refused() -> None:
        raise ConnectionRefusedError

    def fall_back() -> None:
        try:
            raise named("WRONG_VERSION_NUMBER")
        except ssl.SSLError:
            refused()  # a call to another service, say

    with pytest.raises(ConnectionRefusedError) as caught:
        fall_back()
    assert isinstance(caught.value.__context__, ssl.SSLError)
    assert tls_reason_of(caught.value) is None


def test_errors_that_are_each_others_cause_are_looked_at_once() -> None:
    first, second = OSError(), OSError()
    first.__cause__, second.__cause__ = second, first
    assert tls_reason_of(first) is None


def test_the_words_of_openssl_are_kept() -> None:
    assert "(wrong version number)" in (tls_reason_of(behind(named("WRONG_VERSION_NUMBER"))) or "")

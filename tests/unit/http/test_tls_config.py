import logging
import os
import ssl
import subprocess
import sys
from pathlib import Path

import certifi
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from pydantic import ValidationError

from shared.infrastructure.http.tls import TLSConfig
from shared.infrastructure.resilience import ConfigurationError
from tests.tls_server import Authority, handshake, name_in, serving, write_pair

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def folder(authority: Authority, tmp_path: Path) -> Path:
    """A folder with a certificate for "old.test", its key, and the authority."""
    write_pair(tmp_path, authority.issue("old.test"))
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    return tmp_path


def config_of(folder: Path, **options: object) -> TLSConfig:
    names = {"ca_file": "ca.pem", "cert_file": "cert.pem", "key_file": "key.pem"}
    files = {key: folder / name for key, name in names.items()}
    return TLSConfig.model_validate({**files, **options})


def shown(client: ssl.SSLContext, authority: Authority) -> str:
    """Return the name that a client shows to a server which asks for it."""
    _, server = handshake(client, authority.asking(serving(authority.issue())))
    return name_in(server.getpeercert())


def encrypted(leaf: trustme.LeafCert, password: str) -> bytes:
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password.encode()),
    )


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_without_a_file_the_public_authorities_are_trusted(authority: Authority) -> None:
    context = TLSConfig().context()
    public = ssl.create_default_context(cafile=certifi.where())
    assert context.cert_store_stats() == public.cert_store_stats()
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(context, serving(authority.issue()))


def test_authorities_of_ones_own_are_trusted_and_no_others(
    authority: Authority, folder: Path
) -> None:
    context = TLSConfig(ca_file=folder / "ca.pem").context()
    handshake(context, serving(authority.issue()))
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(context, serving(Authority().issue()))


@pytest.mark.parametrize("reload", [True, False])
def test_certificate_and_name_are_always_checked(
    authority: Authority, folder: Path, reload: bool
) -> None:
    context = config_of(folder, reload=reload).context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        handshake(context, serving(authority.issue("127.0.0.2")))


@pytest.mark.parametrize(
    "options",
    [
        {"verify": False},
        {"check_hostname": False},
        {"minimum_version": "1.1"},
        {"minimum_version": ssl.TLSVersion.TLSv1},
        {"key_file": "key.pem"},
        {"key_password": "secret"},
    ],
)
def test_a_config_that_makes_no_sense_or_no_safety_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TLSConfig.model_validate(options)


def test_a_config_stays_as_it_is() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(TLSConfig(), "minimum_version", "1.3")  # noqa: B010 - no type checker lets it


@pytest.mark.parametrize(("minimum", "meets"), [("1.2", "TLSv1.2"), ("1.3", None)])
def test_the_oldest_version_can_be_raised(
    authority: Authority, folder: Path, minimum: str, meets: str | None
) -> None:
    server = serving(authority.issue())
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    context = config_of(folder, minimum_version=minimum).context()
    if meets is not None:
        assert handshake(context, server)[0].version() == meets
        return
    with pytest.raises(ssl.SSLError, match="protocol version"):
        handshake(context, server)


def test_the_client_shows_its_certificate_to_whoever_asks(
    authority: Authority, folder: Path
) -> None:
    assert shown(config_of(folder).context(), authority) == "old.test"
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    assert (
        shown(config_of(folder, cert_file=both, key_file=None).context(), authority) == "old.test"
    )


def test_an_encrypted_key_is_read_with_its_password(authority: Authority, tmp_path: Path) -> None:
    leaf = authority.issue("old.test")
    write_pair(tmp_path, leaf)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    (tmp_path / "key.pem").write_bytes(encrypted(leaf, "secret"))
    config = config_of(tmp_path, key_password="secret")
    assert shown(config.context(), authority) == "old.test"
    assert "secret" not in repr(config)
    for wrong in (None, "wrong"):
        with pytest.raises(ConfigurationError, match="key_password must be its password") as caught:
            config_of(tmp_path, key_password=wrong).context()
        assert "wrong" not in str(caught.value)


def test_a_missing_password_is_not_asked_of_the_terminal(
    authority: Authority, tmp_path: Path
) -> None:
    leaf = authority.issue()
    write_pair(tmp_path, leaf)
    (tmp_path / "key.pem").write_bytes(encrypted(leaf, "secret"))
    load = (
        "from shared.infrastructure.http.tls import TLSConfig\n"
        f"files = dict(cert_file={str(tmp_path / 'cert.pem')!r})\n"
        f"TLSConfig(key_file={str(tmp_path / 'key.pem')!r}, **files).context()"
    )
    on_a_terminal = f"import pty, sys; pty.spawn([sys.executable, '-c', {load!r}])"
    done = subprocess.run(
        [sys.executable, "-c", on_a_terminal],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "key_password must be its password" in done.stdout
    assert "pass phrase" not in done.stdout


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("ca.pem", None, "ca_file .*ca.pem cannot be read: No such file"),
        ("ca.pem", b"", "ca_file .*ca.pem is not a list of certificates"),
        ("ca.pem", b"\xff\x00", "ca_file .*ca.pem is not a list of certificates"),
        ("cert.pem", None, "cert_file .*cert.pem cannot be read: No such file"),
        ("cert.pem", b"", "cert_file .*cert.pem is not a certificate in PEM"),
        ("key.pem", None, "key_file .*key.pem cannot be read: No such file"),
        ("key.pem", b"", "key_file .*key.pem is no private key in PEM"),
    ],
)
def test_a_file_that_is_no_good_is_named_with_what_to_do(
    folder: Path, file: str, content: bytes | None, reason: str
) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(ConfigurationError, match=reason):
        config_of(folder).context()


@pytest.mark.parametrize("file", ["ca.pem", "cert.pem", "key.pem"])
def test_half_a_file_is_no_good(folder: Path, file: str) -> None:
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigurationError, match=file):
        config_of(folder).context()


def test_a_certificate_and_the_key_of_another_do_not_go_together(
    authority: Authority, folder: Path
) -> None:
    (folder / "key.pem").write_bytes(authority.issue("new.test").private_key_pem.bytes())
    with pytest.raises(ConfigurationError, match="is not that of the certificate in"):
        config_of(folder).context()
    with pytest.raises(ConfigurationError, match=r"cert_file .* has no private key"):
        config_of(folder, key_file=None).context()


def test_a_new_certificate_is_shown_at_the_next_handshake(
    authority: Authority, folder: Path
) -> None:
    context = config_of(folder).context()
    assert shown(context, authority) == "old.test"
    write_pair(folder, authority.issue("new.test"))
    assert shown(context, authority) == "new.test"


def test_a_new_authority_is_trusted_from_the_next_handshake_on(
    authority: Authority, folder: Path
) -> None:
    new = Authority()
    context = config_of(folder).context()
    (folder / "ca.pem").write_bytes(new.pem)
    handshake(context, serving(new.issue()))
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(context, serving(authority.issue()))


@pytest.mark.parametrize("change", ["another file", "another size", "another time"])
def test_each_sign_of_a_change_is_enough(authority: Authority, folder: Path, change: str) -> None:
    pem = folder / "both.pem"

    def put(name: str, *, size: int, time: int) -> None:
        content = authority.issue(name).private_key_and_cert_chain_pem.bytes()
        pem.write_bytes(content.ljust(size))
        os.utime(pem, ns=(time, time))

    put("old.test", size=9000, time=10**18)
    context = config_of(folder, cert_file=pem, key_file=None).context()
    assert shown(context, authority) == "old.test"
    if change == "another file":
        pem.rename(folder / "before.pem")
    time = 10**18 + (change == "another time")
    put("new.test", size=9000 + (change == "another size"), time=time)
    assert shown(context, authority) == "new.test"


def test_a_config_that_does_not_reload_keeps_what_it_has_read(
    authority: Authority, folder: Path
) -> None:
    context = config_of(folder, reload=False).context()
    write_pair(folder, authority.issue("new.test"))
    assert shown(context, authority) == "old.test"


def test_files_that_have_not_changed_are_not_read_again(
    authority: Authority, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    context = config_of(folder).context()
    for _ in range(3):
        shown(context, authority)
    assert caplog.messages == []
    write_pair(folder, authority.issue("new.test"))
    for _ in range(3):
        shown(context, authority)
    assert caplog.messages == ["changed TLS files are in use"]


@pytest.mark.parametrize("file", ["ca.pem", "cert.pem", "key.pem"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "foreign"])
def test_a_broken_new_file_keeps_the_last_good_one_in_use_and_warns_once(
    authority: Authority,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    file: str,
    damage: str,
) -> None:
    context = config_of(folder).context()
    good = (folder / file).read_bytes()
    broken = {"empty": b"", "half": good[: len(good) // 2], "foreign": b"-----BEGIN EGG-----"}
    (folder / file).unlink()
    if damage in broken:
        (folder / file).write_bytes(broken[damage])
    for _ in range(3):
        assert shown(context, authority) == "old.test"
    (message,) = warned(caplog)
    assert file in message
    (folder / file).write_bytes(good)
    write_pair(folder, authority.issue("new.test"))
    assert shown(context, authority) == "new.test"
    assert len(warned(caplog)) == 1


def test_a_pair_that_is_replaced_one_file_after_the_other_is_used_once_it_is_whole(
    authority: Authority, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = config_of(folder).context()
    new = authority.issue("new.test")
    (folder / "cert.pem").write_bytes(new.cert_chain_pems[0].bytes())
    assert shown(context, authority) == "old.test"
    (folder / "key.pem").write_bytes(new.private_key_pem.bytes())
    assert shown(context, authority) == "new.test"
    assert len(warned(caplog)) == 1


def test_a_second_damage_is_warned_of_again(
    authority: Authority, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = config_of(folder).context()
    for damage in (b"", b"?"):
        (folder / "key.pem").write_bytes(damage)
        assert shown(context, authority) == "old.test"
    assert len(warned(caplog)) == 2


def test_what_kept_a_file_from_being_read_need_not_show_on_the_file(
    authority: Authority, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = config_of(folder).context()
    write_pair(folder, authority.issue("new.test"))

    def too_many_open_files(*_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", too_many_open_files)
        assert shown(context, authority) == "old.test"
    assert shown(context, authority) == "new.test"


def test_the_protocols_offered_outlive_a_reload(authority: Authority, folder: Path) -> None:
    context = config_of(folder).context()
    server = serving(authority.issue())
    context.set_alpn_protocols(["http/1.1"])
    assert handshake(context, server)[0].selected_alpn_protocol() == "http/1.1"
    write_pair(folder, authority.issue("new.test"))
    assert handshake(context, server)[0].selected_alpn_protocol() == "http/1.1"
    context.set_alpn_protocols(["h2", "http/1.1"])
    assert handshake(context, server)[0].selected_alpn_protocol() == "h2"


def test_a_reloading_context_takes_no_changes_that_would_be_without_effect(folder: Path) -> None:
    context = config_of(folder).context()
    changes = [
        lambda: setattr(context, "check_hostname", False),
        lambda: setattr(context, "verify_mode", ssl.CERT_NONE),
        lambda: setattr(context, "minimum_version", ssl.TLSVersion.TLSv1),
        lambda: setattr(context, "options", 0),
        lambda: context.load_cert_chain(folder / "cert.pem", folder / "key.pem"),
        lambda: context.load_verify_locations(folder / "ca.pem"),
        context.load_default_certs,
        context.set_default_verify_paths,
        lambda: context.set_ciphers("ALL"),
    ]
    for change in changes:
        with pytest.raises(ConfigurationError, match="make one from another TLSConfig"):
            change()

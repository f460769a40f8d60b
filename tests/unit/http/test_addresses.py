import pytest

from shared.infrastructure.http.addresses import (
    AddressRefusedError,
    allow_networks,
    deny_networks,
    public_addresses_only,
)
from shared.infrastructure.http.dial import AddressCheck
from shared.infrastructure.http.semantics import HTTP
from shared.infrastructure.resilience import CallRefusedError, ConfigurationError, Verdict


def passes(check: AddressCheck, ip: str) -> bool:
    try:
        check(ip)
    except AddressRefusedError:
        return False
    return True


@pytest.mark.parametrize(
    "ip",
    [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "192.169.0.0",
        "169.253.255.255",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2a00:1450:4001:830::200e",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
    ],
)
def test_an_address_that_all_the_internet_reaches_passes(ip: str) -> None:
    public_addresses_only(ip)


@pytest.mark.parametrize(
    ("ip", "reason"),
    [
        ("0.0.0.0", "unspecified"),  # noqa: S104
        ("0.1.2.3", "unspecified"),
        ("10.0.0.1", "10.0.0.0/8 is private"),
        ("100.64.0.1", "of a carrier's NAT"),
        ("100.100.100.200", "of a carrier's NAT"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("168.63.129.16", "of the platform services of Azure"),
        ("169.254.169.254", "link-local, where clouds have their metadata"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.0.0.192", "reserved"),
        ("192.0.2.1", "for documentation"),
        ("192.168.1.1", "private"),
        ("198.18.0.1", "for benchmarks"),
        ("198.51.100.1", "for documentation"),
        ("203.0.113.1", "for documentation"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.250", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("fc00::1", "private"),
        ("fd00:ec2::254", "private"),
        ("fe80::1", "link-local"),
        ("fec0::1", "not globally reachable"),
        ("ff02::1", "multicast"),
        ("100::1", "not globally reachable"),
        ("5f00::1", "not globally reachable"),
        ("2001::1", "reserved"),
        ("2001:db8::1", "for documentation"),
        ("3fff::1", "for documentation"),
    ],
)
def test_any_other_address_is_refused_with_what_it_is(ip: str, reason: str) -> None:
    with pytest.raises(AddressRefusedError, match=f"{reason}$") as caught:
        public_addresses_only(ip)
    assert caught.value.address == ip
    assert ip in str(caught.value)


@pytest.mark.parametrize(
    "ip",
    [
        "::ffff:127.0.0.1",
        "::ffff:a9fe:a9fe",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::8.8.8.8",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001:0:7f00:1::",
    ],
)
def test_an_address_in_disguise_is_refused(ip: str) -> None:
    assert not passes(public_addresses_only, ip)


@pytest.mark.parametrize(
    "ip",
    ["", "a.test", "127.1", "0x7f000001", "2130706433", "1.1.1.1:80", "fe80::1%eth0", "2606::1%1"],
)
@pytest.mark.parametrize(
    "check", [public_addresses_only, allow_networks("0.0.0.0/0", "::/0"), deny_networks()]
)
def test_what_is_no_plain_address_is_refused(check: AddressCheck, ip: str) -> None:
    assert not passes(check, ip)


def test_networks_can_be_allowed_alone() -> None:
    check = allow_networks("10.1.0.0/16", "fd12::/64")
    for ip in ("10.1.0.1", "::ffff:10.1.0.1", "fd12::7"):
        assert passes(check, ip)
    for ip in ("10.2.0.1", "8.8.8.8", "fd13::7", "64:ff9b::10.1.0.1", "2002:a01:1::"):
        assert not passes(check, ip)
    with pytest.raises(AddressRefusedError, match=r"only 10\.1\.0\.0/16, fd12::/64 is"):
        check("8.8.8.8")
    assert not passes(allow_networks(), "8.8.8.8")


def test_networks_can_be_allowed_beside_the_public_ones() -> None:
    check = allow_networks("10.1.0.0/16", otherwise=public_addresses_only)
    assert passes(check, "10.1.0.1")
    assert passes(check, "8.8.8.8")
    assert not passes(check, "10.2.0.1")


def test_public_networks_can_be_denied() -> None:
    check = deny_networks("8.8.8.0/24")
    assert passes(check, "8.8.4.4")
    assert not passes(check, "10.0.0.1")
    anything_else = deny_networks("8.8.8.0/24", otherwise=allow_networks("0.0.0.0/0", "::/0"))
    assert passes(anything_else, "10.0.0.1")
    for ip in ("8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::"):
        assert not passes(check, ip)
        assert not passes(anything_else, ip)


def test_the_outer_check_has_the_first_word() -> None:
    inner = allow_networks("10.1.0.0/16", otherwise=public_addresses_only)
    check = deny_networks("10.1.9.0/24", "8.8.8.8", otherwise=inner)
    assert [ip for ip in ("10.1.0.1", "10.1.9.1", "8.8.8.8", "8.8.4.4") if passes(check, ip)] == [
        "10.1.0.1",
        "8.8.4.4",
    ]


@pytest.mark.parametrize("network", ["", "10.1.0.0/33", "10.1.0.1/16", "a.test"])
def test_a_network_that_is_none_is_a_mistake_of_whoever_wrote_it(network: str) -> None:
    for make in (allow_networks, deny_networks):
        with pytest.raises(ConfigurationError, match="written like"):
            make(network)


def test_a_refusal_is_ours_and_counts_for_nothing() -> None:
    refusal = AddressRefusedError("10.0.0.1", "it is private")
    assert isinstance(refusal, CallRefusedError)
    assert HTTP.judge(refusal) is Verdict.VOID
    assert refusal.to_dict()["code"] == "address_refused"

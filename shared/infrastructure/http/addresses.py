"""Which addresses a client may connect to: a guard against requests forged by others (SSRF).

Whoever lets users choose a URL lends them its place in the network: they could reach what only it
can reach, such as the metadata service of a cloud, which hands out credentials. Names prove
nothing, since everybody decides what his own name resolves to. So an `AddressCheck` looks at the
address itself, the very one that is connected to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from shared.infrastructure.http.dial import AddressCheck
from shared.infrastructure.resilience import CallRefusedError, ConfigurationError

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

# The registries of special-purpose addresses (RFC 6890) as of 2026, as far as not globally
# reachable, and what else nobody outside should be sent to. Not `ipaddress.is_global`, whose answer
# depends on the version of Python.
_SPECIAL: dict[IPNetwork, str] = {
    ip_network(network): kind
    for network, kind in {
        "0.0.0.0/8": "unspecified",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "of a carrier's NAT",
        "127.0.0.0/8": "loopback",
        "168.63.129.16/32": "of the platform services of Azure",
        "169.254.0.0/16": "link-local, where clouds have their metadata",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "reserved",
        "192.0.2.0/24": "for documentation",
        "192.88.99.0/24": "reserved",
        "192.168.0.0/16": "private",
        "198.18.0.0/15": "for benchmarks",
        "198.51.100.0/24": "for documentation",
        "203.0.113.0/24": "for documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",
        "::/128": "unspecified",
        "::1/128": "loopback",
        "2001::/23": "reserved",
        "2001:db8::/32": "for documentation",
        "2002::/16": "of a tunnel (6to4)",
        "3fff::/20": "for documentation",
        "fc00::/7": "private",
        "fe80::/10": "link-local",
        "ff00::/8": "multicast",
    }.items()
}
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


class AddressRefusedError(CallRefusedError):
    """The host has an address that we may not connect to.

    Nothing was sent; the call is not repeated and counts for nothing. Another host of a pool may
    still serve it.

    Attributes:
        address: The address refused.
    """

    code = "address_refused"

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"no connection to {address}: {reason}")
        self.address = address


def public_addresses_only(ip: str) -> None:
    """Let an address pass if everybody on the internet can reach it.

    An IPv4 address in IPv6 clothes (mapped, or translated by NAT64) is judged as what it is.

    Raises:
        AddressRefusedError: It is private, loopback, link-local, shared, multicast, reserved, bound
            to an interface, of a tunnel, or not an address at all.
    """
    for address in _meant_by(ip):
        for network, kind in _SPECIAL.items():
            if address in network:
                raise AddressRefusedError(ip, f"its network {network} is {kind}")
        if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
            raise AddressRefusedError(ip, "it is not globally reachable")


def allow_networks(*networks: str, otherwise: AddressCheck | None = None) -> AddressCheck:
    """Return a check that lets these networks pass.

    Args:
        networks: Such as "10.1.0.0/16", or a single address.
        otherwise: Judges all other addresses; None (default) refuses them. To allow networks
            beside the public ones: `public_addresses_only`.

    Raises:
        ConfigurationError: That is no network.
    """
    allowed = _parsed(networks)

    def check(ip: str) -> None:
        if _is_in(allowed, [_address(ip)]):
            return
        if otherwise is None:
            raise AddressRefusedError(ip, f"only {', '.join(networks) or 'nothing'} is allowed")
        otherwise(ip)

    return check


def deny_networks(*networks: str, otherwise: AddressCheck = public_addresses_only) -> AddressCheck:
    """Return a check that refuses these networks.

    Args:
        networks: Such as "198.51.100.0/24", or a single address.
        otherwise: Judges all other addresses; `public_addresses_only`.

    Raises:
        ConfigurationError: That is no network.
    """
    denied = _parsed(networks)

    def check(ip: str) -> None:
        if _is_in(denied, _meant_by(ip)):
            raise AddressRefusedError(ip, "its network is denied")
        otherwise(ip)

    return check


def _parsed(networks: Iterable[str]) -> list[IPNetwork]:
    try:
        return [ip_network(network) for network in networks]
    except ValueError as exc:
        raise ConfigurationError(f"{exc}; a network is written like 10.1.0.0/16") from exc


def _is_in(networks: Iterable[IPNetwork], addresses: Iterable[IPAddress]) -> bool:
    return any(address in network for address in addresses for network in networks)


def _address(ip: str) -> IPAddress:
    try:
        address = ip_address(ip)
    except ValueError:
        raise AddressRefusedError(ip, "it is not an IP address") from None
    if isinstance(address, IPv4Address):
        return address
    if address.scope_id is not None:
        raise AddressRefusedError(ip, "it is bound to an interface")
    # To the kernel, a mapped one is the IPv4 address itself.
    return address.ipv4_mapped or address


def _meant_by(ip: str) -> Iterator[IPAddress]:
    """Yield the addresses that packets to `ip` may get to."""
    address = _address(ip)
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            yield IPv4Address(int(address) & 0xFFFFFFFF)
            return
        if address.sixtofour is not None:
            yield address.sixtofour
    yield address

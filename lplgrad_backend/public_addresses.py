"""Which addresses of strangers may be read: how a URL is taken apart, and which IP addresses are public."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from lplgrad_backend.errors import ImageForbidden

DEFAULT_PORTS = {"http": 80, "https": 443}
UNQUOTED = "!$%&'()*+,/:;=?@[]~"

# Nowhere to read images from, though the standard library calls them global.
NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure: what a virtual machine asks about itself
        "192.0.0.0/24",  # Oracle: 192.0.0.192 is a metadata service; protocols have the rest
        "192.88.99.0/24",  # 6to4 relays, given up
        "fec0::/10",  # site-local, given up
        "3fff::/20",  # for documentation
        "5f00::/16",  # segments within a network
        "64:ff9b:1::/48",  # translated to IPv4 by rules of the local network
    )
)
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Target:
    """Where one request goes: host in ASCII, path with query and percent-encoded."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def target_of(url: str, name: str) -> Target:
    """Take a URL apart, once, for all that is done with it.

    Raises:
        ImageForbidden: not http or https, no host, a user name in it, or malformed; speaks of the image as `name`.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if parts.scheme not in DEFAULT_PORTS:
            raise ImageForbidden(name, f"addresses that begin with {parts.scheme[:20]!r} are not read.")
        if "@" in parts.netloc:  # browsers show no such image either
            raise ImageForbidden(
                name, "an address with a user name in it is not read. Sign it, or use a cloud storage."
            )
        if ":" not in host:
            host = host.encode("idna").decode("ascii")
        if not host or not host.isprintable() or " " in host:
            raise ImageForbidden(name, "its address names no host.")
        path = quote(parts.path or "/", UNQUOTED) + ("?" + quote(parts.query, UNQUOTED) if parts.query else "")
    except ValueError as error:
        raise ImageForbidden(name, "its address is malformed.") from error
    return Target(parts.scheme, host, DEFAULT_PORTS[parts.scheme] if port is None else port, path)


def addresses_of(host: str, port: int) -> list[str]:
    """All addresses of a host, the system's choice first.

    Raises:
        OSError: there is no such host, or nobody to ask.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet at large: not loopback, private, link-local, shared, multicast or
    reserved, no cloud's metadata service, and no such IPv4 address inside an IPv6 one."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inside = _inside(found)
        if inside is not None:
            return is_public(str(inside))
    if any(found.version == network.version and found in network for network in NOT_PUBLIC):
        return False
    return found.is_global and not found.is_multicast and not found.is_reserved


def _inside(found: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to."""
    if found in NAT64:
        return ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    return found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)

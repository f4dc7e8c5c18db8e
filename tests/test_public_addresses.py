"""Which addresses are the internet at large, against the registries and against the standard library."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lplgrad_backend.errors import ImageForbidden
from lplgrad_backend.public_addresses import addresses_of, is_public, target_of

# IANA's special-purpose registries as far as they are not reachable by all, multicast, and what is reserved.
CLOSED_4 = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4",
]  # fmt: skip
CLOSED_6 = [
    "::/128", "::1/128", "64:ff9b:1::/48", "100::/64", "2001:db8::/32", "3fff::/20", "5f00::/16", "fc00::/7",
    "fe80::/10", "fec0::/10", "ff00::/8",
]  # fmt: skip

METADATA = (
    "169.254.169.254",  # most clouds
    "169.254.170.2",  # AWS, containers
    "fd00:ec2::254",  # AWS
    "168.63.129.16",  # Azure
    "100.100.100.200",  # Alibaba
    "192.0.0.192",  # Oracle
)

PLAIN = (
    st.ip_addresses(v=4)
    | st.sampled_from([*CLOSED_4, "11.0.0.0/8", "172.32.0.0/12"]).flatmap(lambda net: st.ip_addresses(network=net))
)  # fmt: skip


def around(ipv4: IPv4Address) -> list[IPv6Address]:
    """The IPv6 addresses that lead to an IPv4 one: mapped, NAT64, 6to4 and Teredo."""
    number = int(ipv4)
    return [
        IPv6Address(0xFFFF << 32 | number),
        IPv6Address(int(IPv6Address("64:ff9b::")) | number),
        IPv6Address(0x2002 << 112 | number << 80),
        IPv6Address(0x20010000 << 96 | 0x41424344 << 64 | (number ^ 0xFFFFFFFF)),
    ]


@given(PLAIN)
@example(IPv4Address("192.0.0.192"))
def test_ipv4_is_public_outside_the_registries(ipv4: IPv4Address) -> None:
    closed = any(ipv4 in ip_network(net) for net in CLOSED_4) or str(ipv4) == "168.63.129.16"
    assert is_public(str(ipv4)) == (not closed)


@given(PLAIN)
@example(IPv4Address("127.0.0.1"))
@example(IPv4Address("169.254.169.254"))
@example(IPv4Address("8.8.8.8"))
def test_an_ipv4_address_inside_an_ipv6_one_counts(ipv4: IPv4Address) -> None:
    assert {is_public(str(ipv6)) for ipv6 in around(ipv4)} == {is_public(str(ipv4))}
    assert not is_public(str(IPv6Address(int(ipv4))))  # ::a.b.c.d, given up


@given(st.sampled_from(CLOSED_6).flatmap(lambda net: st.ip_addresses(network=net)), st.sampled_from(["", "%eth0"]))
def test_no_ipv6_address_of_the_registries_is_public(ipv6: IPv6Address, scope: str) -> None:
    assert not is_public(f"{ipv6}{scope}")


@given(st.ip_addresses())
def test_nothing_is_public_that_the_standard_library_calls_local(address: IPv4Address | IPv6Address) -> None:
    inside = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    assume(address not in ipaddress.ip_network("64:ff9b::/96"))
    local = (
        not inside.is_global or inside.is_private or inside.is_loopback or inside.is_link_local
        or inside.is_multicast or inside.is_reserved or inside.is_unspecified
    )  # fmt: skip
    assert not (local and is_public(str(address)))


@pytest.mark.parametrize("address", METADATA)
def test_no_metadata_service_is_public(address: str) -> None:
    assert not is_public(address)
    assert address.count(":") or not any(is_public(str(ipv6)) for ipv6 in around(IPv4Address(address)))


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001::1"])
def test_public_ones_are(address: str) -> None:
    assert is_public(address)


@given(
    st.text(max_size=20) | st.sampled_from(["localhost", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "8.8.8.8 "])
)
def test_what_is_no_address_is_not_public(text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        assert not is_public(text)


class TestTargets:
    @pytest.mark.parametrize(
        ("url", "authority", "port", "path"),
        [
            ("http://a.test", "a.test", 80, "/"),
            ("HTTPS://A.test/x.png?y=1#z", "a.test", 443, "/x.png?y=1"),
            ("http://a.test:80/é b", "a.test", 80, "/%C3%A9%20b"),
            ("https://a.test:8443/%20?q=a%2Fb", "a.test:8443", 8443, "/%20?q=a%2Fb"),
            ("http://bücher.test/", "xn--bcher-kva.test", 80, "/"),
            ("http://[2001:db8::1]:81/", "[2001:db8::1]:81", 81, "/"),
            ("http://[::1]/", "[::1]", 80, "/"),
            ("http://a.test?x", "a.test", 80, "/?x"),
        ],
    )
    def test_a_url_is_taken_apart(self, url: str, authority: str, port: int, path: str) -> None:
        target = target_of(url, url)
        assert (target.authority, target.port, target.path) == (authority, port, path)

    @pytest.mark.parametrize(
        "url",
        [
            "file:///etc/passwd", "ftp://a.test/x", "gopher://a.test/", "data:image/png;base64,AA==", "javascript:1",
            "/etc/passwd", "a.png", "", "http://", "http:///x", "http://:80/x", "http://a.test:99999/", "http://a:b/",
            "http://[::1/", "http://[zz]/", "http://a b/", "http://a\x00b/", "http://user@a.test/", "http://u:p@a.test/",
            "http://@a.test/", "http://a..b/", "http://" + "a" * 64 + ".test/", "http://a.test/\ud800",
        ],
    )  # fmt: skip
    def test_others_are_refused(self, url: str) -> None:
        with pytest.raises(ImageForbidden):
            target_of(url, "x.png")

    @given(
        st.text() | st.builds("{}://{}:{}/{}".format, st.sampled_from(["http", "https"]), *[st.text(max_size=9)] * 3)
    )
    def test_nothing_written_into_a_task_becomes_a_second_header(self, url: str) -> None:
        try:
            target = target_of(url, "x.png")
        except ImageForbidden:
            return
        line = f"GET {target.path} HTTP/1.1 Host: {target.authority}"
        assert line.isascii()
        assert len(line.split(" ")) == 5
        assert line.isprintable()
        assert target.path.startswith("/")

    def test_no_message_shows_a_password(self) -> None:
        url = "http://user:secret@a.test/x?key=secret"
        with pytest.raises(ImageForbidden, match="user name") as caught:
            target_of(url, url)
        assert "secret" not in str(caught.value)


def test_addresses_of_this_machine_and_of_nobody() -> None:
    assert addresses_of("127.0.0.1", 80) == ["127.0.0.1"]
    assert addresses_of("2130706433", 80) == ["127.0.0.1"]  # other ways to write it end as what is checked
    with pytest.raises(OSError):
        addresses_of("fe80::1%nowhere", 80)  # refused without asking anybody

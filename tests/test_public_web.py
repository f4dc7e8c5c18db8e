"""Reading strangers' addresses: where connections go, what is refused, and servers that misbehave."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from internet import CERTIFICATE, OTHER, PUBLIC, Internet, answer, moved

from lplgrad_backend.errors import ImageError, ImageForbidden, ImageUnavailable, ImageUnreadable
from lplgrad_backend.public_web import ATTEMPTS, REDIRECTS, SILENCES, PublicWeb

URL = "http://images.test/a.png"
LOCAL = [
    "127.0.0.1",
    "10.0.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "::1",
    "fe80::1",
    "fd00:ec2::254",
    "::ffff:127.0.0.1",
]


@pytest.fixture
def internet() -> Iterator[Internet]:
    with Internet().serving() as internet:
        internet.pages["/a.png"] = [answer(b"image")]
        yield internet


@pytest.fixture
def web(internet: Internet) -> Iterator[PublicWeb]:
    with internet.web() as web:
        yield web


def read(web: PublicWeb, url: str = URL, limit_bytes: int = 1000) -> bytes:
    return web.read(url, limit_bytes, url)


def refused(web: PublicWeb, kind: type[ImageError], url: str = URL) -> str:
    """What the error says."""
    with pytest.raises(kind) as caught:
        read(web, url)
    assert type(caught.value) is kind
    return str(caught.value)


class TestWhereItConnects:
    def test_an_image_is_read(self, internet: Internet, web: PublicWeb) -> None:
        internet.pages["/%C3%A9?x=1"] = [answer(b"other")]
        assert read(web) == b"image"
        assert read(web, "http://images.test:8080/é?x=1") == b"other"
        assert "\r\nHost: images.test\r\n" in internet.asked[0]
        assert "\r\nHost: images.test:8080\r\n" in internet.asked[1]

    def test_no_credential_or_cookie_is_sent(self, internet: Internet, web: PublicWeb) -> None:
        internet.pages["/b"] = [answer(status=302, Location="/a.png", Set_Cookie="a=b", WWW_Authenticate="Basic")]
        assert read(web, "http://images.test/b") == b"image"
        for asked in internet.asked:
            names = {line.partition(":")[0].lower() for line in asked.split("\r\n")[1:] if line}
            assert names == {"host", "user-agent", "accept", "accept-encoding"}

    def test_the_proxies_of_the_environment_are_not_used(
        self, internet: Internet, web: PublicWeb, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        assert read(web) == b"image"

    @pytest.mark.parametrize("address", LOCAL)
    def test_addresses_of_the_local_network_are_refused(self, internet: Internet, web: PublicWeb, address: str) -> None:
        internet.names["inside.test"] = [[address]]
        internet.names["half.test"] = [[PUBLIC, address]]  # one of them is enough
        literal = f"[{address}]" if ":" in address else address
        for host in ("inside.test", "half.test", literal):
            said = refused(web, ImageForbidden, f"http://{host}/a.png")
            assert "not public" in said
            assert "LPLGRAD_ALLOW_PRIVATE_IMAGES" in said
        assert internet.connected == []

    @pytest.mark.parametrize("address", LOCAL)
    def test_they_are_read_where_that_is_allowed(self, internet: Internet, address: str) -> None:
        internet.names["inside.test"] = [[address]]
        with internet.web(allow_private=True) as web:
            assert read(web, "http://inside.test/a.png") == b"image"
        assert internet.connected == [address]

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://images.test/a.png", "http://u:p@images.test/a.png"])
    def test_other_addresses_are_refused_even_there(self, internet: Internet, url: str) -> None:
        with internet.web(allow_private=True) as web:
            refused(web, ImageForbidden, url)
        assert internet.looked_up == []

    @given(address=st.ip_addresses().filter(lambda address: not address.is_global))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
    def test_no_local_address_is_ever_connected_to(self, internet: Internet, web: PublicWeb, address: object) -> None:
        internet.names["inside.test"] = [[str(address)]]
        refused(web, ImageForbidden, "http://inside.test/a.png")
        assert internet.connected == []

    def test_the_checked_address_is_the_one_connected_to(self, internet: Internet, web: PublicWeb) -> None:
        internet.names["rebinding.test"] = [[PUBLIC], ["127.0.0.1"]]
        assert read(web, "http://rebinding.test/a.png") == b"image"
        assert (internet.looked_up, internet.connected) == (["rebinding.test"], [PUBLIC])

    def test_each_new_connection_is_checked(self, internet: Internet, web: PublicWeb) -> None:
        internet.names["rebinding.test"] = [[PUBLIC], ["127.0.0.1"]]
        internet.pages["/b"] = [moved("/a.png")]
        refused(web, ImageForbidden, "http://rebinding.test/b")
        assert internet.connected == [PUBLIC]

    def test_a_retry_is_checked(self, internet: Internet, web: PublicWeb) -> None:
        internet.names["rebinding.test"] = [[PUBLIC], ["169.254.169.254"]]
        internet.pages["/b"] = [answer(status=503)]
        refused(web, ImageForbidden, "http://rebinding.test/b")
        assert internet.connected == [PUBLIC]

    def test_the_next_address_is_tried(self, internet: Internet, web: PublicWeb) -> None:
        internet.names["images.test"] = [[PUBLIC, OTHER]]
        internet.refusing = {PUBLIC}
        assert read(web) == b"image"
        assert internet.connected == [PUBLIC, OTHER]

    def test_a_connection_is_used_again_for_the_same_host_only(self, internet: Internet, web: PublicWeb) -> None:
        assert [read(web) for _ in range(3)] == [b"image"] * 3
        assert internet.connected == [PUBLIC]
        assert read(web, "http://other.test/a.png") == b"image"
        assert read(web, "http://images.test:81/a.png") == b"image"
        assert internet.connected == [PUBLIC, OTHER, PUBLIC]

    def test_one_that_the_server_closes_is_not_kept(self, internet: Internet, web: PublicWeb) -> None:
        internet.pages["/a.png"] = [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nimage"]
        assert [read(web), read(web)] == [b"image"] * 2
        assert (internet.connected, internet.waits) == ([PUBLIC, PUBLIC], [])

    def test_many_threads(self, internet: Internet, web: PublicWeb) -> None:
        found: list[bytes] = []
        threads = [threading.Thread(target=lambda: found.extend(read(web) for _ in range(10))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [b"image"] * 80
        assert len(internet.connected) <= 8


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize("location", ["/a.png", "a.png", "//other.test/a.png", "http://other.test/a.png#x"])
    def test_they_are_followed(self, internet: Internet, web: PublicWeb, status: int, location: str) -> None:
        internet.pages["/b"] = [moved(location, status)]
        assert read(web, "http://images.test/b") == b"image"
        assert internet.connected[-1] == (OTHER if "other" in location else PUBLIC)

    @pytest.mark.parametrize(
        "location",
        [
            "http://127.0.0.1/a.png", "http://[::ffff:169.254.169.254]/a.png", "//inside.test/a.png", "file:///etc/passwd",
            "ftp://other.test/a.png", "http://user:secret@other.test/a.png", "http://other.test:99999/",
        ],
    )  # fmt: skip
    def test_they_are_checked_like_the_first_address(self, internet: Internet, web: PublicWeb, location: str) -> None:
        internet.names["inside.test"] = [["10.0.0.1"]]
        internet.pages["/b"] = [moved(location)]
        assert "secret" not in refused(web, ImageForbidden, "http://images.test/b")
        assert internet.connected == [PUBLIC]

    def test_there_are_not_many(self, internet: Internet, web: PublicWeb) -> None:
        for number in range(REDIRECTS + 1):
            internet.pages[f"/{number}"] = [moved(f"/{number - 1}" if number else "/a.png")]
        assert read(web, f"http://images.test/{REDIRECTS - 1}") == b"image"
        assert "redirects more than" in refused(web, ImageUnavailable, f"http://images.test/{REDIRECTS}")

    def test_a_circle_ends(self, internet: Internet, web: PublicWeb) -> None:
        internet.pages["/b"] = [moved("/b")]
        refused(web, ImageUnavailable, "http://images.test/b")
        assert len(internet.asked) == REDIRECTS + 1

    def test_a_malformed_one(self, internet: Internet, web: PublicWeb) -> None:
        internet.pages["/b"] = [moved("http://[::1/")]
        assert "malformed" in refused(web, ImageUnavailable, "http://images.test/b")


class TestServersThatMisbehave:
    @pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 404, 410])
    def test_a_refusal_is_final(self, internet: Internet, web: PublicWeb, status: int) -> None:
        internet.pages["/a.png"] = [answer(status=status)]
        assert f"status {status}" in refused(web, ImageUnavailable)
        assert len(internet.asked) == 1

    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_what_may_pass_is_tried_again(self, internet: Internet, web: PublicWeb, status: int) -> None:
        internet.pages["/a.png"] = [answer(status=status)] * 2 + [answer(b"image")]
        assert read(web) == b"image"
        assert internet.waits == [0.25, 0.5]
        internet.pages["/a.png"] = [answer(status=status)]
        assert f"status {status}" in refused(web, ImageUnavailable)

    @pytest.mark.parametrize(
        "cut",
        [
            b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nConte", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf", b"SSH-2.0-server\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhalf\r\n", b"HTTP/1.1 " + b"x" * 70_000,
        ],
    )  # fmt: skip
    def test_half_an_answer_is_no_image(self, internet: Internet, web: PublicWeb, cut: bytes) -> None:
        internet.pages["/a.png"] = [cut, answer(b"image")]
        assert read(web) == b"image"
        internet.pages["/a.png"] = [cut]
        refused(web, ImageUnavailable)
        assert len(internet.asked) == 2 + ATTEMPTS

    def test_a_connection_closed_meanwhile_is_replaced(self, internet: Internet, web: PublicWeb) -> None:
        internet.pages["/a.png"] = [answer(b"image"), lambda connection: connection.close(), answer(b"image")]
        assert [read(web), read(web)] == [b"image"] * 2

    @pytest.mark.parametrize(
        "start", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n"]
    )
    def test_one_that_drips_costs_the_deadline(self, internet: Internet, start: bytes) -> None:
        internet.pages["/a.png"] = [internet.drip(start)]
        with internet.web(seconds=0.15) as web:
            began = time.monotonic()
            assert "in time" in refused(web, ImageUnavailable)
        assert 0.1 < time.monotonic() - began < 3

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_one_that_hangs_costs_the_deadline(self, internet: Internet, scheme: str) -> None:
        internet.pages["/a.png"] = [internet.hang]
        with internet.web(seconds=0.15) as web, socket.create_server(("127.0.0.1", 0)) as silent:
            if scheme == "https":
                internet.port = silent.getsockname()[1]  # accepts, and says nothing of TLS
            assert "in time" in refused(web, ImageUnavailable, f"{scheme}://images.test/a.png")

    @pytest.mark.parametrize("framed", ["length", "chunks", "end"])
    def test_more_than_the_limit_is_not_read(self, internet: Internet, web: PublicWeb, framed: str) -> None:
        start, body = b"HTTP/1.1 200 OK\r\n", b"x" * 10
        ways = {
            "length": answer(body),
            "chunks": start + b"Transfer-Encoding: chunked\r\n\r\na\r\n" + body + b"\r\n0\r\n\r\n",
            "end": start + b"\r\n" + body,
        }
        internet.pages["/a.png"] = [ways[framed]]
        assert web.read(URL, 10, URL) == body
        with pytest.raises(ImageUnreadable, match="more than 9 bytes"):
            web.read(URL, 9, URL)

    def test_an_endless_one_ends_at_the_limit(self, internet: Internet, web: PublicWeb) -> None:
        internet.pages["/a.png"] = [internet.drip(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2**17)]
        assert "more than 1000 bytes" in refused(web, ImageUnreadable)
        huge = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n"
        internet.pages["/a.png"] = [internet.drip(huge)]  # nothing of it is waited for
        assert "more than 1000 bytes" in refused(web, ImageUnreadable)

    def test_a_packed_one_is_not_unpacked(self, internet: Internet, web: PublicWeb) -> None:
        internet.pages["/a.png"] = [answer(gzip.compress(b"0" * 10**6), Content_Encoding="gzip")]
        assert "packed as 'gzip'" in refused(web, ImageUnavailable)

    def test_unknown_hosts_and_refused_connections(self, internet: Internet, web: PublicWeb) -> None:
        assert "nobody.test is not known" in refused(web, ImageUnavailable, "http://nobody.test/")
        internet.names["empty.test"] = [[]]
        assert "empty.test has no address" in refused(web, ImageUnavailable, "http://empty.test/")
        internet.refusing = {PUBLIC}
        assert "refuses the connection" in refused(web, ImageUnavailable)

    def test_a_host_that_fails_and_fails_is_left_alone(self, internet: Internet, web: PublicWeb) -> None:
        internet.refusing = {PUBLIC}
        for _ in range(SILENCES):
            refused(web, ImageUnavailable)
        asked = len(internet.connected)
        assert "left alone" in refused(web, ImageUnavailable)
        assert len(internet.connected) == asked
        assert read(web, "http://other.test/a.png") == b"image"

    def test_a_success_forgives(self, internet: Internet, web: PublicWeb) -> None:
        for _ in range(SILENCES):
            internet.refusing = {PUBLIC}
            refused(web, ImageUnavailable)
            internet.refusing = set()
            assert read(web) == b"image"
            web.close()

    @pytest.mark.parametrize("status", [200, 302, 403, 503])
    def test_no_message_shows_a_signature(self, internet: Internet, web: PublicWeb, status: int) -> None:
        path = "/a.png?X-Amz-Signature=secret"
        internet.pages[path] = [answer(b"x" * 1001, status, Location="http://10.0.0.1/?key=secret")]
        with pytest.raises(ImageError) as caught:
            read(web, "http://images.test" + path)
        assert internet.asked
        assert "secret" not in "".join(traceback.format_exception(caught.value))


class TestTls:
    URL = "https://images.test/a.png"

    @pytest.fixture
    def trusted(self, internet: Internet) -> ssl.SSLContext:
        internet.certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        internet.certificate.load_cert_chain(CERTIFICATE)
        return ssl.create_default_context(cafile=str(CERTIFICATE))

    def test_the_name_is_checked_and_not_the_address(self, internet: Internet, trusted: ssl.SSLContext) -> None:
        with internet.web(trusted=trusted) as web:
            assert [read(web, self.URL), read(web, self.URL)] == [b"image"] * 2
            assert internet.connected == [PUBLIC]
            assert "not trusted" in refused(web, ImageUnavailable, "https://other.test/a.png")

    def test_a_stranger_s_certificate_is_not_trusted_nor_asked_for_twice(
        self, internet: Internet, trusted: ssl.SSLContext
    ) -> None:
        with internet.web(trusted=None) as web:
            assert "not trusted" in refused(web, ImageUnavailable, self.URL)
        assert (internet.connected, internet.asked, internet.waits) == ([PUBLIC], [], [])

    def test_a_server_without_it(self, internet: Internet, web: PublicWeb) -> None:
        assert "TLS failed" in refused(web, ImageUnavailable, self.URL)

    def test_half_an_answer(self, internet: Internet, trusted: ssl.SSLContext) -> None:
        internet.pages["/a.png"] = [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"]
        with internet.web(trusted=trusted) as web:
            refused(web, ImageUnavailable, self.URL)

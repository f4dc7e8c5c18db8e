"""Reads http and https addresses that strangers wrote into tasks, without being led into the network it stands in.

A host's addresses are looked up once and checked, and the connection goes to one of those very addresses, so that a name
which means something else a moment later changes nothing; TLS is asked for, and checked against, the name. Redirects are
followed by hand and checked like the first address. One deadline holds for the whole answer, a header that trickles
included (only looking up a name takes as long as the system lets it).

Proxies of the environment are not used: a proxy looks names up itself, where nothing is checked. No credential and no
cookie is ever sent.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import cast
from urllib.parse import urljoin

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from lplgrad_backend.errors import ImageForbidden, ImageUnavailable, ImageUnreadable
from lplgrad_backend.public_addresses import Target, addresses_of, is_public, target_of

REDIRECTS = 5
MOVED = (301, 302, 303, 307, 308)
PASSING = (429, 500, 502, 503, 504)
ATTEMPTS = 3
CONNECT_SECONDS = 5.0
IDLE_CONNECTIONS = 16
SILENCES, SILENT_SECONDS = 8, 60.0  # a host that failed so often in a row is left alone for so long
CHUNK = 2**16
HEADERS = (
    "User-Agent: lplgrad-backend\r\n"
    "Accept: image/jpeg,image/png,image/webp,image/*;q=0.5\r\n"
    "Accept-Encoding: identity\r\n"
    "\r\n"
)

Resolve = Callable[[str, int], Sequence[str]]
Connect = Callable[[tuple[str, int], float], socket.socket]
Host = tuple[str, str, int]


class PublicWeb:
    """Reads public addresses. Safe for several threads.

    Args:
        allow_private: read addresses of the local network, too.
        seconds: for one image, from the first look-up to the last byte.
        resolve: host, port -> IP addresses; raises OSError.
        connect: (IP address, port), seconds -> connected socket; raises OSError.
        trusted: certificates; those of the system and those that `requests` trusts unless given.
        pause: how to wait between attempts.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        seconds: float = 30.0,
        resolve: Resolve = addresses_of,
        connect: Connect = socket.create_connection,
        trusted: ssl.SSLContext | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._allow_private, self._seconds = allow_private, seconds
        self._resolve, self._connect, self._pause = resolve, connect, pause
        self._trusted = trusted or _trusted_certificates()
        self._idle: list[tuple[Host, _Connection]] = []
        self._silent: dict[str, tuple[int, float]] = {}  # host -> failures in a row, when the last one was
        self._lock = threading.Lock()

    def read(self, url: str, limit_bytes: int, name: str) -> bytes:
        """The bytes at `url`; errors speak of the image as `name`.

        Raises:
            ImageForbidden: the address, or one that it redirects to, must not be read.
            ImageUnavailable: no answer in time, or a refusal.
            ImageUnreadable: more than `limit_bytes`.
        """
        host = target_of(url, name).host
        failures, last = self._silent.get(host, (0, 0.0))
        if failures >= SILENCES and time.monotonic() < last + SILENT_SECONDS:
            raise ImageUnavailable(name, f"the host {host} failed {failures} times in a row and is left alone for now.")
        until = time.monotonic() + self._seconds
        for attempt in range(ATTEMPTS):
            try:
                content = self._follow(url, limit_bytes, name, until)
                self._silent.pop(host, None)
                return content
            except (OSError, http.client.HTTPException) as error:
                self.close()  # what was kept for later may have been closed by the other side
                wait = 0.25 * 2**attempt
                final = isinstance(error, ssl.SSLError) or time.monotonic() + wait > until
                if final or attempt + 1 == ATTEMPTS:
                    self._silent[host] = failures + 1, time.monotonic()
                    raise ImageUnavailable(name, _reason(error)) from error
                self._pause(wait)
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Close the connections that were kept for later."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def _follow(self, url: str, limit_bytes: int, name: str, until: float) -> bytes:
        """The bytes at the end of the redirects."""
        for _ in range(REDIRECTS + 1):
            target = target_of(url, name)
            connection, keep = self._connected(target, name, until), False
            try:
                answer = connection.get(target)
                location = answer.headers.get("Location")
                if answer.status not in MOVED or not location:
                    content = _body(answer, limit_bytes, name)
                    keep = not answer.will_close
                    return content
                url = urljoin(url, location)
            except ValueError as error:
                raise ImageUnavailable(name, "it redirects to a malformed address.") from error
            finally:
                self._put_back(target, connection, keep)
        raise ImageUnavailable(name, f"it redirects more than {REDIRECTS} times.")

    def _connected(self, target: Target, name: str, until: float) -> _Connection:
        """A connection to an address that was checked: used before, or new."""
        host = (target.scheme, target.host, target.port)
        with self._lock:
            for at, (connected_to, connection) in enumerate(self._idle):
                if connected_to == host:
                    del self._idle[at]
                    connection.until = until
                    return connection
        failure = OSError()
        for address in self._checked_addresses(target, name):
            try:
                return self._new_connection(target, address, until)
            except ssl.SSLError:
                raise
            except OSError as error:
                failure = error
        raise failure

    def _checked_addresses(self, target: Target, name: str) -> Sequence[str]:
        try:
            addresses = self._resolve(target.host, target.port)
        except (OSError, ValueError) as error:
            raise OSError(f"the host {target.host} is not known") from error
        if not addresses:
            raise OSError(f"the host {target.host} has no address")
        forbidden = [address for address in addresses if not is_public(address)]
        if forbidden and not self._allow_private:
            where = f"its host {target.host} has the address {forbidden[0]}, which is not public"
            raise ImageForbidden(name, f"{where}. LPLGRAD_ALLOW_PRIVATE_IMAGES=true lets it be read.")
        return addresses

    def _new_connection(self, target: Target, address: str, until: float) -> _Connection:
        plain = self._connect((address, target.port), min(CONNECT_SECONDS, _left(until)))
        if target.scheme == "http":
            return _Connection(plain, until)
        try:
            plain.settimeout(_left(until))  # holds for the handshake as a whole
            return _Connection(self._trusted.wrap_socket(plain, server_hostname=target.host), until)
        except OSError:
            plain.close()
            raise

    def _put_back(self, target: Target, connection: _Connection, keep: bool) -> None:
        with self._lock:
            if keep and len(self._idle) < IDLE_CONNECTIONS:
                self._idle.append(((target.scheme, target.host, target.port), connection))
                return
        connection.close()


class _Connection:
    """One connection, which stops at a deadline whatever it is doing. `until`: of time.monotonic()."""

    def __init__(self, connected: socket.socket, until: float) -> None:
        self._socket, self.until = connected, until

    def get(self, target: Target) -> http.client.HTTPResponse:
        """Ask, and read the answer's headers."""
        self._socket.settimeout(_left(self.until))
        self._socket.sendall(f"GET {target.path} HTTP/1.1\r\nHost: {target.authority}\r\n{HEADERS}".encode("ascii"))
        answer = http.client.HTTPResponse(cast(socket.socket, self), method="GET")
        answer.begin()
        return answer

    def makefile(self, mode: str) -> io.BufferedReader:
        """What http.client reads an answer from; closing that leaves the connection open."""
        return io.BufferedReader(_Incoming(self), CHUNK)

    def receive(self, buffer: bytearray | memoryview) -> int:
        """Some bytes as soon as there are any.

        Raises:
            TimeoutError: the deadline has passed.
        """
        self._socket.settimeout(_left(self.until))
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.close()


class _Incoming(io.RawIOBase):
    """A connection's incoming bytes."""

    def __init__(self, connection: _Connection) -> None:
        super().__init__()
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        return self._connection.receive(buffer)


def _body(answer: http.client.HTTPResponse, limit_bytes: int, name: str) -> bytes:
    """The whole body of an answer."""
    if answer.status in PASSING:
        raise OSError(f"its server answers with status {answer.status}")
    if answer.status != 200:
        raise ImageUnavailable(name, f"its server answers with status {answer.status}.")
    encoding = answer.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise ImageUnavailable(name, f"its server sends it packed as {encoding[:20]!r} without being asked to.")
    content = bytearray()
    while (answer.length or 0) <= limit_bytes and len(content) <= limit_bytes:
        piece = answer.read(CHUNK)
        content += piece
        if not piece:
            if answer.length or (answer.length is None and not content):  # also within the headers
                raise OSError("the connection was cut off")
            return bytes(content)
    raise ImageUnreadable(name, f"more than {limit_bytes} bytes.")


def _left(until: float) -> float:
    """Seconds until then.

    Raises:
        TimeoutError: none.
    """
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _trusted_certificates() -> ssl.SSLContext:
    """Those of the system, where a company's own may be, and those of `requests`, since slim containers have none."""
    context = ssl.create_default_context()
    context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    return context


def _reason(error: OSError | http.client.HTTPException) -> str:
    """Why no answer came, for a person."""
    if isinstance(error, TimeoutError):
        return "no whole answer in time."
    if isinstance(error, ssl.SSLError):
        return "the certificate of its server is not trusted, or TLS failed."
    if isinstance(error, ConnectionRefusedError):
        return "its server refuses the connection."
    if isinstance(error, http.client.HTTPException) or error.errno is not None:
        return "its server cannot be reached, or the connection was cut off."
    return f"{error}."

"""An internet of one server: any name, any public address, and what is asked for arrives at a socket of this machine."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any, TypeVar

from lplgrad_backend.public_web import PublicWeb

CERTIFICATE = Path(__file__).parent / "standins/images.test.pem"  # of images.test, signed by itself, with its key
PUBLIC, OTHER = "93.184.216.34", "2606:2800:220:1::1"

T = TypeVar("T")
Answer = bytes | Callable[[socket.socket], object]


def answer(body: bytes = b"", status: int = 200, **headers: object) -> bytes:
    """An HTTP answer whose connection may be used again; `_` in a header's name stands for a hyphen."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in ({"Content_Length": len(body)} | headers).items()]
    return "\r\n".join([f"HTTP/1.1 {status} -", *lines, "", ""]).encode() + body


def moved(location: str, status: int = 303) -> bytes:
    return answer(b"", status, Location=location)


class Internet:
    """Names, addresses and pages.

    Attributes:
        names: host -> its addresses, one list for each look-up, the last for all that follow.
        pages: path with query -> what is sent; each answer in turn, the last again and again.
        looked_up, connected, asked: hosts, addresses and whole requests, as they came.
        refusing: addresses that refuse connections.
        waits: pauses between attempts, which take no time.
    """

    def __init__(self) -> None:
        self.names: dict[str, list[list[str]]] = {"images.test": [[PUBLIC]], "other.test": [[OTHER]]}
        self.pages: dict[str, list[Answer]] = {}
        self.looked_up: list[str] = []
        self.connected: list[str] = []
        self.asked: list[str] = []
        self.refusing: set[str] = set()
        self.waits: list[float] = []
        self.closing = threading.Event()
        self.port = 0
        self.certificate: ssl.SSLContext | None = None

    def resolve(self, host: str, port: int) -> Sequence[str]:
        self.looked_up.append(host)
        with suppress(ValueError):
            return [str(ip_address(host))]
        if host not in self.names:
            raise socket.gaierror(-2, "Name or service not known")
        return _next(self.names[host])

    def connect(self, address: tuple[str, int], seconds: float) -> socket.socket:
        self.connected.append(address[0])
        ip_address(address[0])  # a name would be looked up again
        if address[0] in self.refusing:
            raise ConnectionRefusedError(111, "Connection refused")
        return socket.create_connection(("127.0.0.1", self.port), seconds)

    @contextmanager
    def web(self, **arguments: Any) -> Iterator[PublicWeb]:
        """A reader whose look-ups and connections come here, and which trusts no certificate unless told."""
        seams = {"resolve": self.resolve, "connect": self.connect, "pause": self.waits.append}
        nothing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        web = PublicWeb(**({"seconds": 5.0, "trusted": nothing} | seams | arguments))
        try:
            yield web
        finally:
            web.close()

    @contextmanager
    def serving(self) -> Iterator[Internet]:
        handler = type("Handler", (_Handler,), {"internet": self})
        with _Server(("127.0.0.1", 0), handler) as server:
            self.port = server.server_address[1]
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self.closing.set()
                server.shutdown()
                thread.join()

    def hang(self, connection: socket.socket) -> None:
        """Answer nothing until the test ends."""
        self.closing.wait(20)

    def drip(self, start: bytes) -> Answer:
        """Begin, and then one byte every few milliseconds."""

        def drip(connection: socket.socket) -> None:
            connection.sendall(start)
            while not self.closing.wait(0.005):
                connection.sendall(b"x")

        return drip

    def serve(self, connection: socket.socket) -> None:
        """Answer one request after the other."""
        while request := _request(connection):
            self.asked.append(request)
            page = _next(self.pages.get(request.split()[1], [answer(status=404)]))
            if callable(page):
                page(connection)
                return
            connection.sendall(page)
            if b"Content-Length" not in page:
                return


class _Server(ThreadingTCPServer):
    daemon_threads = True


class _Handler(BaseRequestHandler):
    internet: Internet

    def handle(self) -> None:
        with suppress(OSError):
            if self.internet.certificate is None:
                self.internet.serve(self.request)
                return
            with self.internet.certificate.wrap_socket(self.request, server_side=True) as connection:
                self.internet.serve(connection)


def _next(answers: list[T]) -> T:
    return answers.pop(0) if len(answers) > 1 else answers[0]


def _request(connection: socket.socket) -> str:
    """One request without a body; empty when there is none any more, "- -" when it is something else."""
    content = b""
    while not content.endswith(b"\r\n\r\n"):
        piece = connection.recv(4096)
        if not piece:
            return ""
        content += piece
        if not content.startswith(b"G"):
            return "- -"
    return content.decode()

"""Child processes that leave nothing behind, and waiting for what they are started for."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import requests

from lplgrad_backend.demo import lifeline
from lplgrad_backend.errors import LPLGradError

Found = TypeVar("Found")

INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")


class DemoError(LPLGradError):
    """A part of the demo did not start or did not get where it should; the message says which and where its log is."""


def free_port() -> int:
    """A TCP port on loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Whether nobody listens on this port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def wait_for(condition: Callable[[], Found | None], what: str, *, seconds: float, every: float = 0.2) -> Found:
    """Asks until the condition gives something true, and returns that.

    Raises:
        DemoError: after `seconds`, naming `what` was waited for.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise DemoError(f"Waited {seconds:.0f} s in vain for {what}.")
        time.sleep(every)
    return found


class ChildProcess:
    """A Python module run as a program, in a process group of its own, that ends with this process at the latest.

    Its environment is what is given and the few variables in `INHERITED`, so that settings meant for one program of
    the demo never reach another. Standard output and error are appended to `log`.
    """

    def __init__(
        self, python: Path, module: str, arguments: Sequence[str], *, environment: Mapping[str, str], log: Path
    ) -> None:
        self.name, self.log = module, log
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(python), "-P", lifeline.__file__, module, *arguments],
                stdin=subprocess.PIPE, stdout=output, stderr=output,
                env=inherited | dict(environment), start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def wait_until(self, ready: Callable[[], bool], what: str, *, seconds: float) -> None:
        """Waits for a condition that the program brings about.

        Raises:
            DemoError: the program ended, or the time passed; with the last lines of its log.
        """

        def ended_or_ready() -> bool:
            return self._process.poll() is not None or ready()

        try:
            wait_for(ended_or_ready, what, seconds=seconds)
        except DemoError as error:
            raise DemoError(f"{error} {self.last_words()}") from None
        if self._process.returncode is not None:
            raise DemoError(f"{self.name} ended with status {self._process.returncode}. {self.last_words()}")

    def last_words(self, lines: int = 12) -> str:
        """Where the log is, and its end."""
        tail = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join([f"The end of {self.log}:", *tail])

    def stop(self, grace: float = 20.0) -> int:
        """Asks the program to end, and after `grace` seconds ends it and its children; the exit status."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        status = self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        return status


class LocalServer:
    """A web server on loopback as a child process; it answers `/health` once it is made.

    Attributes:
        url: its address, without a slash at the end.
        process: what it runs as.

    Raises:
        DemoError: it did not answer within `seconds`, or ended; with the last lines of its log.
    """

    def __init__(self, url: str, process: ChildProcess, seconds: float) -> None:
        self.url, self.process = url, process
        try:
            process.wait_until(self._is_up, f"{process.name} on {url}", seconds=seconds)
        except BaseException:
            process.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> int:
        """Asks it to end and waits for that; the exit status."""
        return self.process.stop()

    def _is_up(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=5).ok
        except requests.RequestException:
            return False

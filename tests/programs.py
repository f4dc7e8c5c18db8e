"""Programs that a test starts and listens to. All that they start writes to the same pipe, whose end is the end of all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType


class Program:
    """A Python program with a pipe to its standard input, whose standard error is read line by line.

    It leads a process group of its own, started in `folder` (where this process is, unless told otherwise). `prefix`:
    a command that becomes the one it is given, such as `ip netns exec NAME`.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        folder: Path | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [*prefix, sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environ},
            cwd=folder,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stderr is not None
        self._input, self._said = self._process.stdin, self._process.stderr

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, text: str) -> str:
        """Read on to the next line with this text."""
        for line in self._said:
            self.lines.append(line.rstrip("\n"))
            if text in line:
                return line
        raise AssertionError(f"{text!r} was never said, but:\n" + "\n".join(self.lines))

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def let_go(self) -> None:
        """Close the pipe to its standard input."""
        self._input.close()

    def end(self) -> int:
        """Read to the end, which comes when it and all that it started have ended; its exit status."""
        self.lines += self._said.read().splitlines()
        return self._process.wait()

    def send_to_all(self, number: int) -> None:
        """A signal to its whole process group, as Ctrl-C in a terminal sends it."""
        os.killpg(self.pid, number)

    def children(self) -> list[int]:
        """Process numbers of the children it has now."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # gone meanwhile
                continue
            if int(fields[1]) == self.pid:
                found.append(int(stat.parent.name))
        return found

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:  # fmt: skip  # noqa: E501
        if self._process.returncode is None:  # not yet waited for: the number is still its own
            for number in self.children():
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            self.send_to_all(signal.SIGKILL)
        self._process.wait()
        self._said.close()
        self._input.close()

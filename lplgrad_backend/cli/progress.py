"""Progress of a round in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from lplgrad_backend.locks import Locks
from lplgrad_backend.status import Phase, ProjectStatus, StatusFolder


class ShownStatus(StatusFolder):
    """A status folder that says what is written to it: a line per phase, and in a terminal how far it is."""

    def __init__(self, folder: Path, console: Console, locks: Locks | None = None) -> None:
        super().__init__(folder, locks)
        self._console = console
        self._phase = Phase.IDLE

    def write(self, status: ProjectStatus) -> None:
        super().write(status)
        if status.busy and status.phase is not self._phase:
            self._console.print(f"{status.phase.value} …", markup=False)
        elif status.busy and status.total and self._console.is_terminal:
            self._console.print(f"{progress(status)} ", end="\r", markup=False)
        self._phase = status.phase


def progress(status: ProjectStatus) -> str:
    """What a project is being done, such as "training, 3 of 20"."""
    return f"{status.phase.value}, {status.done} of {status.total}" if status.total else status.phase.value

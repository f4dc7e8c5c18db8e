"""What the worker is doing with each project, as small files that web and command line read.

`MODEL_DIR/<project>/status.json` is written by the worker alone. Marks are written by anyone and cleared by the worker:
a mark says "look again" and survives a crash, so a request is never lost between being asked for and being served.
"""

from __future__ import annotations

import contextlib
import uuid
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from lplgrad_backend.files import write_whole, written
from lplgrad_backend.locks import FileLocks, Hold, Locks

UNREADABLE_KEPT = 200


class Phase(StrEnum):
    """Where a round is."""

    IDLE = "idle"
    READING = "reading annotations"
    LOADING = "loading images"
    TRAINING = "training"
    SCORING = "scoring"
    PUBLISHING = "publishing"


class Mark(StrEnum):
    """What somebody asked the worker to look at."""

    ANNOTATIONS = "annotations"  # annotations changed in a way that Label Studio's counters do not show
    TASKS = "tasks"  # there may be unlabelled tasks without a prediction
    ROUND = "round"  # a person asked for a round


class ColdStart(BaseModel):
    """An order that was published before there was a version.

    Attributes:
        version: that its predictions carry, such as start-1.
        newest_task: highest task id that it saw.
        basis: by what images were compared, such as "colours and edges".
    """

    model_config = ConfigDict(frozen=True)

    version: str
    newest_task: int
    basis: str


class ProjectStatus(BaseModel):
    """What is known of a project at this moment. Times are aware UTC."""

    model_config = ConfigDict(frozen=True)

    project: int
    title: str = ""
    labels: dict[str, int] = {}  # labelled images per class, at the last full reading
    phase: Phase = Phase.IDLE
    phase_started: datetime | None = None
    done: int = 0  # epochs while training, images while loading and scoring
    total: int = 0
    round_started: datetime | None = None
    round_seconds: float | None = None  # of the last finished round
    rounds: int = 0
    due: str = "not looked at yet"  # when the next round is due, in words
    changes: int = 0  # annotations changed since the newest version, at the last full reading
    annotations_seen: int | None = None  # Label Studio's own counter at that reading
    read_at: datetime | None = None
    published: str | None = None  # version that Label Studio was last pointed at
    cold_start: ColdStart | None = None  # the order before the first version
    last_error: str | None = None
    last_error_at: datetime | None = None
    may_pass: bool = False  # the last error may be gone at the next try, which comes soon
    to_do_by_hand: str | None = None  # what LPLGRAD_MANAGE_PROJECT=false leaves to a person
    not_published: str | None = None  # why another version than the newest is served
    warnings: list[str] = []
    unreadable: dict[int, str] = {}  # task id -> why its image cannot be used; the first UNREADABLE_KEPT
    unreadable_count: int = 0
    errors: dict[str, int] = {}  # kind of error -> looks that ended in one, ever

    @property
    def busy(self) -> bool:
        """Whether a round runs."""
        return self.phase is not Phase.IDLE


class StatusFolder:
    """The status, marks and lock of every project below one folder. `locks`: files in it unless given."""

    def __init__(self, folder: Path, locks: Locks | None = None) -> None:
        self.folder = folder
        self._locks = locks or FileLocks(folder)

    def read(self, project: int) -> ProjectStatus:
        """The project's status; a fresh one if there is none or it cannot be read."""
        try:
            return ProjectStatus.model_validate_json(self._file(project, "status.json").read_bytes())
        except (OSError, ValidationError):
            return ProjectStatus(project=project)

    def write(self, status: ProjectStatus) -> None:
        """Replace the project's status. Only for the holder of its lock.

        Raises:
            StoreError: the disk refuses.
        """
        self._write(status.project, "status.json", status.model_dump_json(indent=1))

    def control(self, project: int) -> str | None:
        """Name of the control that `extra_params` asks for, or None."""
        try:
            return self._file(project, "control").read_text() or None
        except OSError:
            return None

    def hear(self, project: int) -> None:
        """Note that Label Studio's webhook came, so that the doctor can tell whether one comes.

        Raises:
            StoreError: the disk refuses.
        """
        self._write(project, "heard", uuid.uuid4().hex)

    def heard(self, project: int) -> str:
        """Another text after every `hear`."""
        try:
            return self._file(project, "heard").read_text()
        except OSError:
            return ""

    def remember(self, project: int, control: str | None) -> bool:
        """Make the project known, and which control it asks for. Returns whether that was new.

        Raises:
            StoreError: the disk refuses.
        """
        if self._file(project, "control").exists() and self.control(project) == control:
            return False
        self._write(project, "control", control or "")
        return True

    def set_mark(self, project: int, mark: Mark) -> None:
        """Ask the worker to look at something.

        Raises:
            StoreError: the disk refuses.
        """
        self._write(project, f"mark.{mark.value}", uuid.uuid4().hex)

    def marks(self, project: int) -> dict[Mark, str]:
        """The marks that are set, each with a token that `clear_marks` wants back."""
        found = {}
        for mark in Mark:
            with contextlib.suppress(OSError):
                found[mark] = self._file(project, f"mark.{mark.value}").read_text()
        return found

    def clear_marks(self, project: int, seen: dict[Mark, str]) -> None:
        """Clear marks that were served; one set anew since it was seen stays."""
        for mark, token in seen.items():
            if self.marks(project).get(mark) == token:
                self._file(project, f"mark.{mark.value}").unlink(missing_ok=True)

    def lock(self, project: int) -> AbstractContextManager[Hold | None]:
        """Take the project for this process alone, or None when another has it."""
        return self._locks.hold(project)

    def at_work(self, project: int) -> bool:
        """Whether a process holds the project's lock; a status that says busy without one was left by a killed process."""
        return self._locks.held(project)

    def _file(self, project: int, name: str) -> Path:
        return self.folder / str(int(project)) / name

    def _write(self, project: int, name: str, content: str) -> None:
        file = self._file(project, name)
        with written(f"{name} of project {project}", self.folder):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, content.encode(), durable=False)  # a lost hint or status costs a look, not data


def now() -> datetime:
    """The time, aware, in UTC."""
    return datetime.now(UTC)

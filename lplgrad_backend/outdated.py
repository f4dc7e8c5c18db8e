"""Removing the predictions of old versions from Label Studio, which takes it seconds, while nobody waits for that.

Who orders a queue only notes what may go, as a file per version in the project's folder; the files outlive a restart. What
is noted is removed afterwards, by a thread of the worker, without the project's lock: no version that is still on disk, so
that none can be published again meanwhile, and not the one that the project is pointed at.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lplgrad_backend.errors import LPLGradError, StoreError
from lplgrad_backend.files import write_whole
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.logs import about
from lplgrad_backend.rounds import Stop
from lplgrad_backend.store import Store

log = logging.getLogger(__name__)
NOTE = "outdated."
NAME = re.compile(r"v[1-9]\d{0,8}|start-[1-9]\d{0,8}|untrained")  # what this program calls predictions
AGAIN_SECONDS = 60.0


class Outdated:
    """What is to be removed, of all projects."""

    def __init__(self, store: Store, label_studio: LabelStudio | None) -> None:
        self._store, self._label_studio = store, label_studio

    def note(self, project: int, versions: Iterable[str]) -> None:
        """Predictions of these versions may go. Only for the holder of the project's lock.

        Raises:
            StoreError: the disk refuses.
        """
        folder = self._store.project_folder(project)
        try:
            for version in versions:
                write_whole(folder / f"{NOTE}{version}", b"")  # lost, nobody would know of them any more
        except OSError as error:
            raise StoreError(f"What is outdated cannot be noted in project {project}'s folder: {error}") from error

    def noted(self, project: int) -> list[str]:
        """Versions whose predictions are still to be removed."""
        files = self._store.project_folder(project).glob(f"{NOTE}*")
        return sorted(name for name in (file.name.removeprefix(NOTE) for file in files) if NAME.fullmatch(name))

    def remove(self, project: int, stop: Stop) -> None:
        """Remove what is noted, one version after the other, until `stop`. What fails stays noted; nothing is raised."""
        for version in self.noted(project):
            if stop.is_set():
                return
            try:
                self._remove(project, version)
            except LPLGradError as error:
                log.warning("project %d: predictions of %s are not removed yet: %s", project, version, error)

    def _remove(self, project: int, version: str) -> None:
        if self._label_studio is None or version in self._store.versions(project):
            return
        if self._label_studio.project(project).get("model_version") != version:
            self._label_studio.delete_model_version(project, version)
            log.info("project %d: predictions of %s removed", project, version)
        (self._store.project_folder(project) / f"{NOTE}{version}").unlink(missing_ok=True)


class Remover:
    """A thread that removes what is noted: at once at its start, whenever it is called, and again where that failed."""

    def __init__(self, outdated: Outdated, store: Store, stop: Stop) -> None:
        self._outdated, self._store, self._stop = outdated, store, stop
        self._called = threading.Event()
        self._called.set()

    def call(self, project: int) -> None:
        """There may be something to remove. Returns at once."""
        self._called.set()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within the block. A removal that Label Studio does not answer is not waited for."""
        thread = threading.Thread(target=self._work, name="removes outdated versions", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._called.set()

    def _work(self) -> None:
        while not self._stop.is_set():
            self._called.clear()
            for project in self._store.projects():
                try:
                    with about(project=project, job=None, version=None):
                        self._outdated.remove(project, self._stop)
                except Exception:
                    log.exception("project %d: removing outdated versions ended unexpectedly", project)
            self._called.wait(AGAIN_SECONDS)

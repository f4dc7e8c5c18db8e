"""The worker process: one per machine on a file queue, any number on a shared one. Imports no torch; rounds are children."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO

from lplgrad_backend.assistance import assist
from lplgrad_backend.errors import LPLGradError, StoreError
from lplgrad_backend.files import keep_private
from lplgrad_backend.jobs import Jobs, open_queue, work
from lplgrad_backend.learner import Heavy, Learner
from lplgrad_backend.locks import file_lock, is_locked, open_locks
from lplgrad_backend.logs import start_logging
from lplgrad_backend.outdated import Outdated, Remover
from lplgrad_backend.rounds import leave_with_parent, run_round
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.sources import open_label_studio
from lplgrad_backend.status import Mark, StatusFolder
from lplgrad_backend.store import Store

log = logging.getLogger(__name__)
PATIENCE_SECONDS = 1.0
NICENESS = 5
BEAT_SECONDS = 10.0
LEAVE_SECONDS = 15.0  # longer than a round's child is given to end
REPEAT_SECONDS, LONGEST_REPEAT_SECONDS = 5.0, 80.0
SETTINGS_BY_PIPE = "-"  # the argument with which settings come as a line of JSON, secrets included
LOCK = "worker.lock"


def run_worker(settings: Settings, lifeline: IO[bytes] | None = None, heavy: Heavy | None = None) -> None:
    """Work until SIGTERM, SIGINT or the end of `lifeline`. On a file queue, wait first until no other worker holds the
    folder.

    Args:
        heavy: does a round's heavy part; `run_round` unless given.

    Raises:
        StoreError: MODEL_DIR cannot be written.
    """
    keep_private()
    stop = threading.Event()
    _stop_on_signal(stop)
    if lifeline is not None:
        leave_with_parent(lifeline, stop.set)
    os.nice(NICENESS)
    with _leaving_in_time(stop):
        _work_when_alone(settings, stop, heavy)


@contextmanager
def _leaving_in_time(stop: threading.Event) -> Iterator[None]:
    """Whoever hangs in a request that Label Studio does not answer leaves all the same, and locks nobody out."""
    ended = threading.Event()

    def watch() -> None:
        stop.wait()
        if not ended.wait(LEAVE_SECONDS):
            os._exit(1)

    threading.Thread(target=watch, name="leaving", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _work_when_alone(settings: Settings, stop: threading.Event, heavy: Heavy | None) -> None:
    waiting = False
    while not stop.is_set():
        with file_lock(settings.model_dir / LOCK) as ours:
            if ours or settings.queue_url is not None:
                _work(settings, stop, heavy)
                return
        if not waiting:
            log.info("another worker is at %s; waiting for its end", settings.model_dir)
        waiting = True
        stop.wait(PATIENCE_SECONDS)


def _work(settings: Settings, stop: threading.Event, heavy: Heavy | None) -> None:
    store, statuses = Store(settings.model_dir), StatusFolder(settings.model_dir, open_locks(settings))

    def invite(name: str, count: int) -> None:
        jobs.invite(name, count)

    heavy = heavy or partial(run_round, invite=invite)
    label_studio = open_label_studio(settings)
    remover = Remover(Outdated(store, label_studio), store, stop)
    learner = Learner(settings, store, statuses, label_studio, stop, heavy, remover.call)
    failed: dict[int, int] = {}  # project -> looks in a row that ended with what may pass

    def answer(project: int) -> bool | float:
        """Look at a project: whether that could be done, or in how many seconds another try may do better."""
        looked = learner.reconcile(project)
        times = failed.pop(project, 0)
        if not looked or not statuses.read(project).may_pass:
            return looked
        failed[project] = times + 1
        return min(LONGEST_REPEAT_SECONDS, REPEAT_SECONDS * 2.0**times)

    jobs: Jobs = Jobs(
        open_queue(settings.queue_url, settings.model_dir),
        answer,
        assist=lambda name: assist(name, settings, stop, heavy),
    )

    def known_projects() -> list[int]:
        """All projects that were ever connected, marked to have their queue looked at too."""
        for project in store.projects():
            statuses.set_mark(project, Mark.TASKS)
        return store.projects()

    log.info("worker ready, %d project(s) known", len(store.projects()))
    beating = _heartbeat(settings.model_dir) if settings.queue_url is not None else nullcontext()
    with beating, remover.at_work():
        work(jobs, known_projects, settings.sweep_seconds, stop)
        with suppress(StoreError):  # the others' sweep finds them
            jobs.hand_back()
    log.info("worker ends")


def heartbeat_file(folder: Path) -> Path:
    """Touched while a worker on a shared queue works at this folder, also during a round: of several such workers only
    one holds the lock, and this file is seen from all machines that share the folder."""
    return folder / "worker.alive"


def worker_is_at_work(settings: Settings) -> bool:
    """A worker holds the folder's lock, or (of several on a shared queue) has shown itself a moment ago."""
    if is_locked(settings.model_dir / LOCK):
        return True
    if settings.queue_url is None:
        return False
    try:
        return time.time() - heartbeat_file(settings.model_dir).stat().st_mtime < 4 * BEAT_SECONDS
    except OSError:
        return False


@contextmanager
def _heartbeat(folder: Path) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        while True:
            try:
                heartbeat_file(folder).touch()
            except OSError as error:
                log.warning("MODEL_DIR cannot be written: %s", error)
            if ended.wait(BEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _stop_on_signal(stop: threading.Event) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def main() -> None:
    """`python -m lplgrad_backend.worker`: a worker that leaves when its standard input closes."""
    try:
        by_pipe = sys.argv[1:] == [SETTINGS_BY_PIPE]
        settings = (
            read_settings(json.loads(sys.stdin.buffer.readline()), None) if by_pipe else read_settings(os.environ)
        )
        start_logging(settings)
        run_worker(settings, sys.stdin.buffer)
    except LPLGradError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

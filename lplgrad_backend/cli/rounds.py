"""`train`, `score` and `status`: from the command line what the worker does by itself."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from lplgrad_backend.cli.interruption import INTERRUPTED, stop_on_interrupt
from lplgrad_backend.cli.options import Project, needed_label_studio, open_console
from lplgrad_backend.cli.progress import ShownStatus, progress
from lplgrad_backend.errors import LPLGradError, ProjectBusy, VersionNotFound
from lplgrad_backend.files import keep_private
from lplgrad_backend.first_queue import said_of
from lplgrad_backend.learner import Learner
from lplgrad_backend.locks import open_locks
from lplgrad_backend.logs import start_logging
from lplgrad_backend.served import served, why_not_newest
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.status import Mark, ProjectStatus, StatusFolder
from lplgrad_backend.store import Store

SomeProject = Annotated[
    int | None, typer.Option("--project", help="Number of the Label Studio project; all known ones without.", min=1)
]


def train(project: Project) -> None:
    """Train a round now, however few labels are new, and publish it."""
    settings = read_settings(os.environ)
    needed_label_studio(settings)
    look(settings, project, Mark.ROUND)


def score(project: Project) -> None:
    """Score the tasks that have no prediction of the version served, and publish it; trains nothing."""
    settings = read_settings(os.environ)
    needed_label_studio(settings)
    if served(Store(settings.model_dir), project) is None:
        raise VersionNotFound(f"Project {project} has no version yet: the first round makes it (train --project).")
    look(settings, project, Mark.TASKS)


def status(project: SomeProject = None) -> None:
    """Say what the worker is doing, which version is served, and when the next round is due."""
    settings = read_settings(os.environ)
    store, statuses = Store(settings.model_dir), StatusFolder(settings.model_dir, open_locks(settings))
    console = open_console()
    known = store.projects()
    if project is not None and project not in known:
        raise VersionNotFound(f"Project {project} is not known below {settings.model_dir}: it was never connected.")
    if not known:
        console.print(f"No project is known below {settings.model_dir}.", markup=False)
    for one in [project] if project is not None else known:
        for sentence in sentences(store, statuses, one):
            console.print(sentence, markup=False)


def look(settings: Settings, project: int, mark: Mark) -> None:
    """Look at a project for what `mark` asks, as the worker does, with progress; ends with status 130 when interrupted.

    Raises:
        ProjectBusy: a worker is at it.
        LPLGradError: what the look ended in.
    """
    keep_private()
    start_logging(settings)
    console = open_console()
    store, statuses = Store(settings.model_dir), ShownStatus(settings.model_dir, console, open_locks(settings))
    with statuses.lock(project) as ours:
        if not ours:
            raise busy(statuses, project)
        statuses.set_mark(project, mark)
    with stop_on_interrupt(console) as stop:
        learner = Learner(settings, store, statuses, needed_label_studio(settings), stop)
        try:
            looked = learner.reconcile(project, rounds=mark is Mark.ROUND)
        finally:
            interrupted = stop.is_set()
            if interrupted:  # who stops it does not want it later
                statuses.clear_marks(project, {mark: statuses.marks(project).get(mark, "")})
        if not looked and not interrupted:
            raise busy(statuses, project)
    after = statuses.read(project)
    if after.last_error is not None:
        raise LPLGradError(after.last_error)
    if interrupted:
        console.print("Stopped.", markup=False)
        raise typer.Exit(INTERRUPTED)
    for sentence in sentences(store, statuses, project):
        console.print(sentence, markup=False)


def busy(statuses: StatusFolder, project: int) -> ProjectBusy:
    """The error of a project that another process is at."""
    return ProjectBusy(
        f"A worker is at project {project} ({progress(statuses.read(project))}). Wait until it is done (status "
        "--project says), or end it."
    )


def sentences(store: Store, statuses: StatusFolder, project: int) -> list[str]:
    """What there is to say about a project."""
    found, newest, shown = statuses.read(project), store.newest(project), served(store, project)
    said = [f"Project {project}: {_doing(statuses, found)}; the next round is due in {found.due}."]
    if not found.due[:1].isdigit():
        said = [f"Project {project}: {_doing(statuses, found)}; next round: {found.due}."]
    if newest is None or shown is None:
        first = [f"  {said_of(found.cold_start)}"] if found.cold_start else []
        return [*said, "  No version yet.", *first, *_troubles(found)]
    said.append(f"  Served: {shown.version}, {sum(shown.labels.values())} labels.")
    reason = why_not_newest(newest, shown)
    return [*said, *([f"  {reason}"] if reason else []), *_troubles(found)]


def _doing(statuses: StatusFolder, found: ProjectStatus) -> str:
    """A status that says busy while nobody holds the lock was left by a process that was killed."""
    if not found.busy:
        return "nothing runs"
    at_work = statuses.at_work(found.project)
    return progress(found) if at_work else f"was interrupted while {progress(found)}, and begins anew"


def _troubles(found: ProjectStatus) -> list[str]:
    said = [f"  Last error: {found.last_error}"] if found.last_error else []
    said += [f"  To do by hand: {found.to_do_by_hand}"] if found.to_do_by_hand else []
    said += [f"  {found.unreadable_count} image(s) cannot be used."] if found.unreadable_count else []
    return said + [f"  {warning}" for warning in found.warnings]

"""`make demo`: the backend, a real Label Studio and a project of handwritten digits, connected; and an annotator.

Everything lives below one folder and is used again at the next start: Label Studio's database, the digits, the
versions. Removing the folder starts anew.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from lplgrad_backend.connection import connect
from lplgrad_backend.demo.annotator import Annotator
from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.demo.dataset import LABEL_CONFIG, Digits, write_digits
from lplgrad_backend.demo.person import Person
from lplgrad_backend.demo.process import DemoError
from lplgrad_backend.demo.server import LabelStudioServer
from lplgrad_backend.demo.session import Round, add_round, measure_accuracy, play, sentence, table
from lplgrad_backend.labeling import Labeling, parse_label_config
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.sources import open_images, open_label_studio
from lplgrad_backend.status import StatusFolder, now
from lplgrad_backend.store import VERSION_NAME, Store

POOL_TITLE, HELD_OUT_TITLE = "Digits", "Digits, held out"
TITLE = "LPLgrad"
SIDE = 16  # pixels: twice what they have; Label Studio's page enlarges them


@dataclass(frozen=True)
class Stage:
    """Everything running and connected.

    Attributes:
        settings: the backend's.
        project_id: of the digits to label.
        held_out: tasks to measure with, `{"id", "data"}` each.
    """

    settings: Settings
    server: LabelStudioServer
    backend: Backend
    person: Person
    digits: Digits
    project_id: int
    held_out: list[dict[str, Any]]
    labeling: Labeling
    started: datetime

    @property
    def annotator(self) -> Annotator:
        return Annotator(self.person, self.project_id, self.labeling, self.digits.truth)

    def version(self) -> str | None:
        """The version that orders the queue now, or None.

        Raises:
            DemoError: a look at the project failed since the start; with its reason.
        """
        status = StatusFolder(self.settings.model_dir).read(self.project_id)
        if status.last_error and status.last_error_at and status.last_error_at > self.started:
            raise DemoError(f"The round failed: {status.last_error}")
        version = str(self.person.call("GET", f"/api/projects/{self.project_id}/")["model_version"])
        return version if VERSION_NAME.fullmatch(version) else None

    def accuracy(self) -> float:
        """Share of the held-out digits that the version that orders the queue now names rightly."""
        store, version = Store(self.settings.model_dir), self.version() or ""
        labels = [self.annotator.true_label(task) for task in self.held_out]
        return measure_accuracy(
            store.manifest(self.project_id, version), store.weights_path(self.project_id, version),
            open_images(self.settings, open_label_studio(self.settings)), self.held_out, labels,
        )  # fmt: skip


def run(
    settings: Settings,
    *,
    python: Path,
    folder: Path,
    auto: int = 0,
    pool: int = 1000,
    held_out: int | None = None,
    port: int = 9090,
    label_studio_port: int = 8080,
    console: Console | None = None,
) -> None:
    """Builds the stage, lets the annotator label `auto` images, and stays until interrupted.

    Args:
        settings: of the backend; those that say where Label Studio and the versions are do not count here.
        python: interpreter of Label Studio's own virtual environment.
        folder: keeps everything.
        pool: digits to label, at most 1,797.
        held_out: digits to measure with; None takes all that the pool leaves.
        port: of the backend.
        label_studio_port: of Label Studio, or another one if it is taken.

    Raises:
        LPLGradError: something did not start, or a round failed.
    """
    console = console or Console()
    if not python.exists():
        raise DemoError(f"Label Studio is not installed: there is no {python}. `make demo` installs it.")
    console.print("Starting Label Studio; the first time takes half a minute …")
    digits = write_digits(folder / "digits", pool=pool, held_out=held_out, side=SIDE)
    with until_interrupted(), build_stage(settings, digits, python, folder, port, label_studio_port) as stage:
        account = stage.server.account
        console.print(f"Label Studio  {stage.server.url}/projects/{stage.project_id}/data", soft_wrap=True)
        console.print(f"Sign in as    {account.email}  {account.password}", soft_wrap=True, highlight=False)
        console.print(f"Backend       {stage.backend.url}", soft_wrap=True)
        if auto:
            watch(stage, auto, console)
        console.print("Label All Tasks serves the most informative digit first. Ctrl-C ends everything.")
        signal.pause()


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Ctrl-C or SIGTERM leave the block, in order; so do they when the shell that started this ignores Ctrl-C."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in signals]
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def watch(stage: Stage, labels: int, console: Console) -> list[Round]:
    """Lets the annotator work and shows every round as it goes, or only at its end where there is no terminal; the
    finished rounds."""
    rounds: list[Round] = []
    course = play(stage.annotator, labels, stage.settings.updates_per_round, stage.version, stage.accuracy)
    with Live(console=console, auto_refresh=False) as live:
        for latest in course:
            rounds = add_round(rounds, latest)
            live.update(table(rounds, len(stage.held_out)), refresh=True)
            if not console.is_terminal and latest.accuracy is not None:
                console.print(sentence(latest), soft_wrap=True)
    return [entry for entry in rounds if entry.accuracy is not None]


@contextmanager
def build_stage(
    settings: Settings, digits: Digits, python: Path, folder: Path, port: int, label_studio_port: int
) -> Iterator[Stage]:
    """Starts everything, makes the projects if they are not there, connects the backend; ends everything."""
    with ExitStack() as running:
        server = running.enter_context(LabelStudioServer(python, folder / "label-studio", port=label_studio_port))
        account = server.account
        person = running.enter_context(Person(server.url, account.email, account.password))
        project = project_of(person, POOL_TITLE, [digit.file for digit in digits.pool])
        held_out = project_of(person, HELD_OUT_TITLE, [digit.file for digit in digits.held_out])
        settings = read_settings({
            **settings.environ(),
            "LABEL_STUDIO_URL": server.url, "LABEL_STUDIO_API_KEY": account.token, "MODEL_DIR": str(folder / "models"),
        }, None)  # fmt: skip
        backend = running.enter_context(Backend(settings.environ(), folder / "backend.log", port=port))
        client = LabelStudio(server.url, account.token)
        connect(client, project, backend.url, title=TITLE, basic_auth=settings.basic_auth)
        measured = [{"id": task, "data": data} for task, data in client.unlabelled_tasks(held_out)]
        labeling = parse_label_config(LABEL_CONFIG)
        yield Stage(settings, server, backend, person, digits, project, measured, labeling, now())


def project_of(person: Person, title: str, files: list[Path]) -> int:
    """The project of that title, made with these files if it is not there."""
    for project in person.call("GET", "/api/projects/?page_size=1000")["results"]:
        if project["title"] == title:
            return int(project["id"])
    number = person.create_project(title, LABEL_CONFIG)
    person.upload(number, files)
    return number

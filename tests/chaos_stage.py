"""A backend as real processes beside a fake Label Studio over real HTTP: to be killed anywhere, and looked at afterwards.

Images and network are so small that a round takes seconds, most of them for starting Python.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import requests
from fake_label_studio import Asked, FakeLabelStudio
from learner_stage import CONFIG, choice
from PIL import Image

from lplgrad_backend.demo.process import DemoError, Found, free_port, wait_for
from lplgrad_backend.image_cache import ImageCache
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.status import ProjectStatus, StatusFolder
from lplgrad_backend.store import Store

ROOT = Path(__file__).parent.parent
UPDATES, KEEP, POOL = 4, 2, 24
PATIENCE = 100.0  # seconds for anything that is waited for, on a machine that is busy with other things
SMALL = {
    "LPLGRAD_BACKBONE": "shufflenet_v2_x0_5",
    "LPLGRAD_WEIGHTS": "none",
    "LPLGRAD_THREADS": "1",
    "LPLGRAD_STRICT": "true",
    "LPLGRAD_COLD_START": "false",
    "LPLGRAD_ALWAYS_PUBLISH": "true",  # or the newest version might rightly not be the one that orders the queue
    "LPLGRAD_KEEP_VERSIONS": str(KEEP),
    "START_TRAINING_EACH_N_UPDATES": str(UPDATES),
    "OMP_NUM_THREADS": "1",
}
# what Label Studio is at while it is asked this
STEPS = {
    r"GET /api/projects/\d+/export": "reading",
    r"POST /api/projects/\d+/import/predictions": "pushing",
    r"PATCH /api/projects/\d+": "pointing",
    r"DELETE /api/projects/\d+/model-versions": "deleting",
}
ROLES = {"lplgrad_backend.trainer": "trainer", "lplgrad_backend.worker": "worker", "serve": "web"}


class SlowLabelStudio(FakeLabelStudio):
    """Takes `pace` seconds before and after each step of a round, and half-way through an import; says what it is at."""

    def __init__(self, pace: float) -> None:
        super().__init__()
        self.pace, self.at = pace, list[str]()

    def answer(self, asked: Asked) -> tuple[int, Any, list[tuple[str, str]]]:
        line = f"{asked.method} {asked.path.rstrip('/')}"
        step = next((name for pattern, name in STEPS.items() if re.fullmatch(pattern, line)), None)
        if step is None:
            return super().answer(asked)
        self.at.append(step)
        try:
            self._closing.wait(self.pace)
            answered = super().answer(asked)
            self._closing.wait(self.pace)
            return answered
        finally:
            self.at.remove(step)

    def import_predictions(self, project: int, rows: list[dict[str, Any]]) -> int:
        """In two halves, with a pause between them; goes on when who asked is gone, as a real one does."""
        half = super().import_predictions(project, rows[: len(rows) // 2])
        self._closing.wait(self.pace)
        return half + super().import_predictions(project, rows[len(rows) // 2 :])


class ChaosStage:
    """One project, one backend. All that the backend starts has this stage's MODEL_DIR in its environment."""

    def __init__(self, folder: Path, fake: SlowLabelStudio, **environ: str) -> None:
        self.fake, self.models, self.temporary = fake, folder / "models", folder / "tmp"
        self.temporary.mkdir()
        self.port, self._log = free_port(), folder / "log"
        self.url = f"http://127.0.0.1:{self.port}"
        self.environ = {
            "MODEL_DIR": str(self.models),
            "TMPDIR": str(self.temporary),
            "LABEL_STUDIO_URL": fake.url,
            "LABEL_STUDIO_API_KEY": fake.legacy_token(),
            **SMALL,
            **environ,
        }
        self.settings: Settings = read_settings(self.environ, None)
        self.store, self.statuses = Store(self.models), StatusFolder(self.models)
        self.project = int(fake.add_project("Chaos", CONFIG)["id"])
        self.servers: list[subprocess.Popen[bytes]] = []
        self._random = np.random.default_rng(0)

    # Processes

    def serve(self, port: int | None = None, **environ: str) -> subprocess.Popen[bytes]:
        """Start the backend's one command, as a supervisor would."""
        empty = {str(field.alias): "" for field in Settings.model_fields.values()}
        arguments = ["-m", "lplgrad_backend", "serve", "--host", "127.0.0.1", "--port", str(port or self.port)]
        with self._log.open("ab") as log:
            server = subprocess.Popen(
                [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
                env={**os.environ, **empty, **self.environ, **environ}, start_new_session=True,
            )  # fmt: skip
        self.servers.append(server)
        return server

    def is_up(self, url: str | None = None) -> bool:
        """Whether the backend answers /health."""
        with suppress(requests.RequestException):
            return requests.get(f"{url or self.url}/health", timeout=1).ok
        return False

    def processes(self) -> dict[int, str]:
        """Process number -> "web", "worker" or "trainer", of all that lives with this MODEL_DIR."""
        found, marker = {}, f"MODEL_DIR={self.models}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if marker in (folder / "environ").read_bytes().split(b"\0"):
                    words = (folder / "cmdline").read_bytes().decode().split("\0")
                    found[int(folder.name)] = next((role for word, role in ROLES.items() if word in words), "unknown")
        return found

    def serves(self) -> bool:
        """Whether the server started last answers, through a child that no server before it left."""
        web = {number for number, role in self.processes().items() if role == "web"}
        ours = {number for number in web if parent_of(number) == self.servers[-1].pid}
        return bool(ours) and web == ours | {self.servers[-1].pid} and self.is_up()

    def victim(self, role: str) -> int | None:
        """Number of a process of this role: "server" is what `serve` started, "web" its child that answers."""
        if role == "server":
            return self.servers[-1].pid
        numbers = [number for number, its in self.processes().items() if its == role]
        return next((number for number in numbers if number != self.servers[-1].pid), None)

    def kill(self, role: str) -> bool:
        """Whether there was one to kill. A killed server is collected."""
        number = self.victim(role)
        if number is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
        if role == "server":
            self.servers[-1].wait()
        return True

    def end(self) -> None:
        """Ask the servers to end, and wait until nothing of them lives."""
        for server in self.servers:
            with suppress(ProcessLookupError):
                if server.returncode is None:
                    server.terminate()
            server.wait(PATIENCE)
        self.wait_until(lambda: not self.processes(), "the end of all processes")

    # People

    def connect(self) -> None:
        """Connect the backend, add the first tasks."""
        self.fake.add_ml_backend({"url": self.url, "project": self.project, "title": "LPLgrad"})
        self.add_tasks(POOL)

    def add_tasks(self, count: int) -> None:
        tasks = []
        for _ in range(count):
            number = len(self.fake.uploads)
            path = f"/data/upload/{self.project}/{'cat' if number % 2 else 'dog'}-{number}.png"
            self.fake.uploads[path] = picture(self._random, number % 2 * 100)
            tasks.append({"data": {"image": path}})
        self.fake.import_tasks(self.project, tasks)

    def label(self, count: int = UPDATES, user: str = "me@example.com") -> None:
        """Label the tasks that Label Studio serves, and add as many new ones first."""
        self.add_tasks(count)
        for _ in range(count):
            task = self.fake.next_task(self.project, user)
            label = "cat" if "cat" in task["data"]["image"] else "dog"
            self.fake.annotate(task["id"], {"result": choice(label)}, user)

    # What is the case

    @property
    def status(self) -> ProjectStatus:
        return self.statuses.read(self.project)

    def phase(self) -> str:
        """What is going on, from Label Studio's side, the disk's, or the status."""
        if self.fake.at:
            return self.fake.at[-1]
        folder = self.models / str(self.project)
        if any(folder.glob(".v*.tmp")) or any((self.models / "scratch").glob("*/outcome.json")):
            return "saving"
        return self.status.phase.name.lower()

    def unsettled(self) -> str | None:
        """What is missing until the last labels have their version and their queue; None when nothing is."""
        newest, row = self.store.newest(self.project), self.fake.project(self.project)
        if newest is None:
            return "no version"
        known = set(self.store.annotations(self.project, newest.version))
        missing = {str(number) for number in list(self.fake.annotations)} - known
        if missing:
            return f"{newest.version} lacks annotations {sorted(missing)}"
        if (row["model_version"], row["sampling"]) != (newest.version, "Uncertainty sampling"):
            return f"the project serves by {row['model_version']}, {row['sampling']}"
        lacking = self.unlabelled() - self.predictions(newest.version).keys()
        if lacking:
            return f"no predictions of tasks {sorted(lacking)}"
        if self.status.busy or self.statuses.marks(self.project):
            return f"{self.status.phase}, marks {list(self.statuses.marks(self.project))}"
        if len(self.store.versions(self.project)) > KEEP:
            return "old versions are there"
        if any((self.models / str(self.project)).glob("outdated.*")):
            return "predictions of old versions are there"
        return None if self.is_up() else "the backend does not answer"

    def settle(self) -> None:
        """Wait until nothing is missing, then look whether everything is as it should be."""
        self.wait_until(lambda: self.unsettled() is None, "a settled project", self.unsettled)
        self.wait_until(lambda: self.strangers() == [], "the end of processes", self.strangers)
        found = self.wrong()
        assert not found, "\n".join([*found, self.last_words()])

    def strangers(self) -> list[str]:
        """Processes that there should not be while nothing is due, or should and are not."""
        found = sorted(self.processes().values())
        return [] if found == ["web", "web", "worker"] else found

    def wrong(self) -> list[str]:
        """What must never be, one sentence each, while nothing is due."""
        found = self.store.check() + ImageCache(self.models / "images", 2**30).check()
        kept = self.store.versions(self.project)
        newest = kept[-1]
        rows = self.predictions(newest)
        twice = [task for task, its in rows.items() if len(its) > 1]
        found += [f"tasks {twice} have several predictions of {newest}"] if twice else []
        scores = self.store.scores(self.project, newest)
        said = dict(zip(scores.tasks.tolist(), scores.scores.tolist(), strict=True))
        off = [task for task, its in rows.items() if task in said and abs(its[0] - said[task]) > 1e-9]
        found += [f"tasks {off} have another score than {newest} gave them"] if off else []
        present = set(self.fake.model_versions(self.project)) - {"LPLgrad"}
        found += [f"Label Studio keeps {present}, the disk {kept}"] if present != set(kept) else []
        return found + [f"{path} was left behind" for path in self.left_behind()]

    def left_behind(self) -> list[str]:
        """Temporary files and folders below MODEL_DIR, and whatever is in the temporary folder."""
        names = [str(path.relative_to(self.models)) for path in self.models.rglob("*")]
        wrong = [name for name in names if name.endswith(".tmp") or name.startswith("scratch/")]
        theirs = ("wgunicorn-", "torchinductor_")  # gunicorn's heartbeat and torch's cache, of which there is one each
        return wrong + [path.name for path in self.temporary.iterdir() if not path.name.startswith(theirs)]

    def predictions(self, version: str) -> dict[int, list[float]]:
        """Task -> scores of its predictions of this version."""
        found: dict[int, list[float]] = {}
        for row in list(self.fake.predictions.values()):
            if row["model_version"] == version:
                found.setdefault(row["task"], []).append(row["score"])
        return found

    def unlabelled(self) -> set[int]:
        return set(self.fake.tasks) - self.fake.labelled()

    def wait_until(
        self, condition: Callable[[], Found | None], what: str, why: Callable[[], object] = lambda: "", every: float = 0.05
    ) -> Found:  # fmt: skip
        """What the condition gave, as soon as that is true."""
        try:
            return wait_for(condition, what, seconds=PATIENCE, every=every)
        except DemoError as error:
            raise AssertionError(f"{error} {why()}\n{self.status!r}\n{self.last_words()}") from error

    def last_words(self, lines: int = 40) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])


def parent_of(number: int) -> int:
    """Number of a process's parent; 0 when it is gone."""
    with suppress(OSError):
        return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def picture(random: np.random.Generator, brightness: int, side: int = 8) -> bytes:
    """A PNG of noise, dark or bright, so that a few epochs suffice."""
    file = io.BytesIO()
    noise = random.integers(0, 100, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise + np.uint8(brightness)).save(file, "PNG")
    return file.getvalue()


@contextmanager
def chaos_stage(folder: Path, pace: float = 0.0, **environ: str) -> Iterator[ChaosStage]:
    """A stage whose backend is up and connected. Whatever happens, nothing of it lives on."""
    fake = SlowLabelStudio(pace)
    with fake.serving():
        stage = ChaosStage(folder, fake, **environ)
        try:
            stage.serve()
            stage.wait_until(stage.is_up, "the backend")
            stage.connect()
            yield stage
            stage.end()
        finally:
            for number in stage.processes():
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            for server in stage.servers:
                server.wait()

"""A project of digits on a real Label Studio, ordered by a real backend, as the tests look at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lplgrad_backend.demo.annotator import Annotator
from lplgrad_backend.demo.dataset import LABEL_CONFIG, Digit, Digits
from lplgrad_backend.demo.person import Person
from lplgrad_backend.demo.process import DemoError, wait_for
from lplgrad_backend.labeling import parse_label_config
from lplgrad_backend.status import ProjectStatus, StatusFolder
from lplgrad_backend.store import VERSION_NAME, Manifest, Store

SECONDS_PER_ROUND = 240.0
PAGE = 200  # a thousand tasks with all their fields are more than Label Studio can ask SQLite for at once


@dataclass(frozen=True)
class DigitsProject:
    """What a test does with a project and sees of it.

    Attributes:
        models: MODEL_DIR of the backend.
        digits: where the truth is from.
    """

    number: int
    person: Person
    models: Path
    digits: Digits

    @classmethod
    def create(cls, person: Person, title: str, shown: Sequence[Digit], models: Path, digits: Digits) -> DigitsProject:
        number = person.create_project(title, LABEL_CONFIG)
        person.upload(number, [digit.file for digit in shown])
        return cls(number, person, models, digits)

    @property
    def annotator(self) -> Annotator:
        return Annotator(self.person, self.number, parse_label_config(LABEL_CONFIG), self.digits.truth)

    def connect_model(self, url: str, basic_auth: tuple[str, str] | None = None) -> int:
        """*Settings > Model > Connect Model > Validate and Save*; the ML backend's number."""
        body: dict[str, Any] = {"url": url, "project": self.number, "title": "LPLgrad", "extra_params": ""}
        if basic_auth is not None:
            user, password = basic_auth
            body |= {"auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": password}
        return int(self.person.call("POST", "/api/ml", json=body)["id"])

    def start_training(self) -> None:
        """*Settings > Model > Start Training*."""
        [row] = self.person.call("GET", f"/api/ml?project={self.number}")
        self.person.call("POST", f"/api/ml/{row['id']}/train")

    def label(self, count: int) -> list[int]:
        """Numbers of the tasks that were labelled, in the order in which they were served."""
        return list(self.annotator.label(count))

    def row(self) -> dict[str, Any]:
        return dict(self.person.call("GET", f"/api/projects/{self.number}/"))

    def tasks(self) -> list[dict[str, Any]]:
        """Every task with its annotations and predictions."""
        found: list[dict[str, Any]] = []
        while True:
            page = f"fields=all&page_size={PAGE}&page={len(found) // PAGE + 1}"
            listed = self.person.call("GET", f"/api/tasks?project={self.number}&{page}")
            found += listed["tasks"]
            if len(found) >= listed["total"]:
                return found

    def unlabelled(self) -> set[int]:
        return {task["id"] for task in self.tasks() if task["total_annotations"] == 0}

    def predictions(self, version: str) -> dict[int, dict[str, Any]]:
        """Task number -> its one prediction of this version."""
        found = {}
        for task in self.tasks():
            of_version = [entry for entry in task["predictions"] if entry["model_version"] == version]
            assert len(of_version) <= 1, f"task {task['id']} has {len(of_version)} predictions of {version}"
            if of_version:
                found[task["id"]] = of_version[0]
        return found

    def order(self, version: str) -> list[int]:
        """Unlabelled tasks by ascending score: the order in which they should be served."""
        unlabelled, predictions = self.unlabelled(), self.predictions(version)
        return sorted(unlabelled, key=lambda task: predictions[task]["score"])

    def status(self) -> ProjectStatus:
        return StatusFolder(self.models).read(self.number)

    def manifest(self, version: str) -> Manifest:
        return Store(self.models).manifest(self.number, version)

    def version(self) -> str | None:
        """The version by which Label Studio orders, or None."""
        version = str(self.row()["model_version"])
        return version if VERSION_NAME.fullmatch(version) else None

    def wait_for_version(self, version: str) -> None:
        """Until Label Studio orders by this version and the backend rests.

        Raises:
            DemoError: it took too long; with what the backend says about the project.
        """
        try:
            self.wait_until(lambda: self.version() == version, version)
            self.wait_until(lambda: not self.status().busy, "the end of the round")
        except DemoError as error:
            raise DemoError(f"{error} {self.status()!r}") from None

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        wait_for(condition, f"{what} of project {self.number}", seconds=SECONDS_PER_ROUND)

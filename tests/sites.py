"""A Label Studio as a test needs it: the fake one, or a real one, behind the same acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from fake_label_studio import LABEL_CONFIG, FakeLabelStudio

from lplgrad_backend.demo.person import Person
from lplgrad_backend.demo.server import LabelStudioServer
from lplgrad_backend.labelstudio import LabelStudio

LABEL = [{"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": ["A"]}}]


def row(task: int, score: float = 0.5, version: str = "v1", result: list[Any] = LABEL) -> dict[str, Any]:
    """A prediction to import."""
    return {"task": task, "result": result, "score": score, "model_version": version}


class Site(Protocol):
    """A Label Studio, fake or real, as a test needs it."""

    client: LabelStudio

    def project(self, tasks: int) -> int: ...
    def annotate(self, task: int) -> None: ...
    def skip(self, task: int) -> None: ...
    def delete_task(self, task: int) -> None: ...
    def upload(self, project: int, content: bytes, folder: Path) -> str: ...


class FakeSite:
    def __init__(self) -> None:
        self.fake = FakeLabelStudio()
        self.client = LabelStudio(self.fake.url, self.fake.legacy_token(), session=self.fake.session())

    def project(self, tasks: int) -> int:
        project = int(self.fake.add_project("Images", LABEL_CONFIG)["id"])
        self.fake.import_tasks(project, [{"data": {"image": f"{number}.png"}} for number in range(tasks)])
        return project

    def annotate(self, task: int) -> None:
        self.fake.annotate(task, {"result": LABEL}, "me@example.com")

    def skip(self, task: int) -> None:
        self.fake.annotate(task, {"result": [], "was_cancelled": True}, "me@example.com")

    def delete_task(self, task: int) -> None:
        self.fake.delete_task(task)

    def upload(self, project: int, content: bytes, folder: Path) -> str:
        self.fake.uploads[f"/data/upload/{project}/a.png"] = content
        return f"/data/upload/{project}/a.png"


class RealSite:
    def __init__(self, server: LabelStudioServer, person: Person) -> None:
        self.person = person
        self.client = LabelStudio(server.url, server.account.token)

    def project(self, tasks: int) -> int:
        project = self.person.create_project("Images", LABEL_CONFIG)
        self.person.import_tasks(project, [{"data": {"image": f"{number}.png"}} for number in range(tasks)])
        return project

    def annotate(self, task: int) -> None:
        self.person.annotate(task, LABEL)

    def skip(self, task: int) -> None:
        self.person.skip(task)

    def delete_task(self, task: int) -> None:
        self.person.call("DELETE", f"/api/tasks/{task}/")

    def upload(self, project: int, content: bytes, folder: Path) -> str:
        (folder / "a.png").write_bytes(content)
        self.person.upload(project, [folder / "a.png"])
        return str(list(self.client.unlabelled_tasks(project))[-1][1]["image"])

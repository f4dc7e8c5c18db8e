"""A project in a fake Label Studio and a learner that looks at it; the heavy part is a stand-in that scores by task."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from fake_label_studio import FakeLabelStudio
from versions import pool_scores

from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.learner import Learner
from lplgrad_backend.rounds import SCORES, WEIGHTS, Order, Outcome, Progress
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.status import Phase, ProjectStatus, StatusFolder
from lplgrad_backend.store import Store, write_scores

CONFIG = """<View><Image name="image" value="$image"/><Choices name="kind" toName="image">
<Choice value="cat"/><Choice value="dog"/></Choices></View>"""


class Stage:
    """A project of `tasks` images in a fake Label Studio, and a learner that looks at it."""

    def __init__(self, folder: Path, tasks: int = 30, **environ: str) -> None:
        self.fake = FakeLabelStudio(call=lambda *asked: (200, {"model_version": "untrained"}))
        self.project = int(self.fake.add_project("Pets", CONFIG)["id"])
        self.tasks = self.add_tasks(tasks)
        token = self.fake.legacy_token()
        self.client = LabelStudio(self.fake.url, token, session=self.fake.session(), pause=lambda seconds: None)
        known = {"MODEL_DIR": str(folder), "LPLGRAD_COLD_START": "false"}
        self.settings = read_settings({**known, **environ}, None)
        self.store, self.statuses = Store(folder), StatusFolder(folder)
        self.orders: list[Order] = []
        self.unreadable: dict[int, str] = {}
        self.held_out: Callable[[Order], dict[str, list[str]]] = lambda order: {}
        self.during: Callable[[], None] = lambda: None
        self.learner = Learner(self.settings, self.store, self.statuses, self.client, heavy=self.heavy)

    def add_tasks(self, count: int) -> list[int]:
        return self.fake.import_tasks(self.project, [{"data": {"image": f"/{n}.png"}} for n in range(count)])

    def heavy(
        self,
        order: Order,
        folder: Path,
        settings: Settings,
        report: Callable[[Progress], None],
        stop: threading.Event,
    ) -> Outcome:
        """Scores rise with the task's number."""
        self.orders.append(order)
        report(Progress(phase=Phase.TRAINING, done=1, total=2))
        self.during()
        pool = sorted((entry.task, entry.uri) for entry in order.pool if entry.task not in self.unreadable)
        scores = pool_scores(pool, [task / (task + 10) for task, _ in pool], classes=len(order.labeling.classes))
        write_scores(scores, folder / SCORES)
        safetensors.numpy.save_file({"w": np.zeros(1, np.float32)}, folder / WEIGHTS)
        asked = {entry.task for entry in order.pool} | {example.task_id for example in order.examples}
        unreadable = {task: why for task, why in self.unreadable.items() if task in asked}
        if order.cold:
            return Outcome(metrics={"scale": 1.0}, unreadable=unreadable, recipe_reason="colours and edges")
        return Outcome(metrics={"scale": 1.0}, held_out=self.held_out(order), unreadable=unreadable)

    def label(self, count: int, first: int = 0) -> None:
        for at, task in enumerate(self.tasks[first : first + count]):
            self.fake.annotate(task, {"result": choice("cat" if at % 2 else "dog")}, "me@example.com")

    def look(self) -> ProjectStatus:
        self.learner.reconcile(self.project)
        return self.statuses.read(self.project)

    def predictions(self, version: str) -> dict[int, dict[str, Any]]:
        rows = [row for row in self.fake.predictions.values() if row["model_version"] == version]
        assert len(rows) == len({row["task"] for row in rows}), "a task has two predictions of one version"
        return {row["task"]: row for row in rows}

    def unlabelled(self) -> set[int]:
        return {task for task, _ in self.client.unlabelled_tasks(self.project)}

    @property
    def row(self) -> dict[str, Any]:
        return self.client.project(self.project)


def choice(*labels: str) -> list[dict[str, Any]]:
    return [{"from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": list(labels)}}]

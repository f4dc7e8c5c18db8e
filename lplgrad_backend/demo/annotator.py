"""An annotator who knows the answers and works through Label Studio's own task stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from lplgrad_backend.demo.person import Person
from lplgrad_backend.labeling import Labeling

UPLOAD_PREFIX = 9  # Label Studio stores digit-0001.png as <8 hexadecimal digits>-digit-0001.png


class Annotator:
    """Labels one project's tasks in the order in which Label Studio serves them.

    Args:
        truth: label of every uploaded file's own name.
    """

    def __init__(self, person: Person, project_id: int, labeling: Labeling, truth: Mapping[str, str]) -> None:
        self.person, self.project_id = person, project_id
        self._labeling, self._truth = labeling, truth

    def true_label(self, task: Mapping[str, Any]) -> str:
        stored_name = PurePosixPath(task["data"][self._labeling.data_key]).name
        return self._truth[stored_name[UPLOAD_PREFIX:]]

    def result(self, *labels: str) -> list[dict[str, Any]]:
        """An annotation's result that chooses these labels."""
        region = {"from_name": self._labeling.from_name, "to_name": self._labeling.to_name, "type": "choices"}
        return [region | {"value": {"choices": list(labels)}}]

    def label_next(self) -> int | None:
        """Labels the task that Label Studio serves; its number, or None when nothing is left."""
        task = self.person.next_task(self.project_id)
        if task is None:
            return None
        self.person.annotate(task["id"], self.result(self.true_label(task)))
        return int(task["id"])

    def label(self, count: int) -> Iterator[int]:
        """Labels up to `count` tasks and yields the number of each as it is saved."""
        for _ in range(count):
            task_id = self.label_next()
            if task_id is None:
                return
            yield task_id

"""The tasks of a project that have no label: the pool that a round scores, and what lacks a prediction."""

from __future__ import annotations

import random

from lplgrad_backend.errors import ImageError
from lplgrad_backend.labeling import Labeling, image_uri
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.rounds import PoolTask


def unlabelled_tasks(
    label_studio: LabelStudio, project: int, labeling: Labeling, without_version: str | None
) -> list[tuple[int, str]]:
    """(task id, image address) of each; an empty address where the task has none.

    Args:
        without_version: only those that have no prediction of this version.

    Raises:
        LabelStudioError
    """
    found = []
    for task, data in label_studio.unlabelled_tasks(project, without_version=without_version):
        try:
            found.append((task, image_uri(labeling, {"id": task, "data": data})))
        except ImageError:
            found.append((task, ""))
    return found


def pool_of(tasks: list[tuple[int, str]], limit: int) -> list[PoolTask]:
    """All of these (task id, address), or a fresh random subset of too many (the paper's querying phase)."""
    chosen = tasks if len(tasks) <= limit else random.SystemRandom().sample(tasks, limit)
    return [PoolTask(task=task, uri=uri) for task, uri in chosen]

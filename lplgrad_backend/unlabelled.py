"""The tasks of a project that have no label: the pool that a round scores, and what lacks a prediction.

There may be a million. They are read page by page, and no more of them are kept than the settings' limits.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lplgrad_backend.errors import ImageError
from lplgrad_backend.labeling import Labeling, image_uri
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.publication import Lacking, head, sort_tasks
from lplgrad_backend.rounds import PoolTask
from lplgrad_backend.settings import Settings
from lplgrad_backend.store import Manifest, PoolScores


def unlabelled_tasks(
    label_studio: LabelStudio,
    project: int,
    labeling: Labeling,
    without_version: str | None,
    *,
    after: int = 0,
    among: Sequence[int] | None = None,
) -> Iterator[tuple[int, str]]:
    """(task id, image address) of each; an empty address where the task has none. For the arguments see
    `LabelStudio.unlabelled_tasks`.

    Raises:
        LabelStudioError
    """
    for task, data in label_studio.unlabelled_tasks(project, without_version, after=after, among=among):
        try:
            yield task, image_uri(labeling, {"id": task, "data": data})
        except ImageError:
            yield task, ""


@dataclass(frozen=True)
class Pool:
    """What a round scores, of how many tasks, and the highest task id among those."""

    tasks: list[PoolTask]
    total: int
    newest: int


def pool_of(tasks: Iterable[tuple[int, str]], limit: int) -> Pool:
    """All of these (task id, address), or a fresh random subset of too many (the paper's querying phase): each task is in it
    with the same probability, by replacing what was kept (reservoir sampling)."""
    choose = random.SystemRandom().randrange
    kept, total, newest = list[tuple[int, str]](), 0, 0
    for task in tasks:
        total, newest = total + 1, max(newest, task[0])
        if len(kept) < limit:
            kept.append(task)
        elif (place := choose(total)) < limit:
            kept[place] = task
    return Pool([PoolTask(task=task, uri=uri) for task, uri in kept], total, newest)


def lacking_tasks(
    label_studio: LabelStudio,
    project: int,
    labeling: Labeling,
    manifest: Manifest,
    scores: PoolScores,
    settings: Settings,
) -> Lacking:
    """What of a version is still to be published. Where its round scored a subset, only that and what came later is asked
    for, and not the whole pool.

    Raises:
        LabelStudioError
    """
    shown = head(scores, settings.publish_limit)
    parts: list[tuple[int, list[int] | None]] = [(0, None)]
    if manifest.metrics.get("pool", 0) > manifest.metrics.get("pool_scored", 0):
        asked = scores.tasks.tolist() if shown is None else list(shown)
        parts = [(0, [*asked, *([] if shown is not None else manifest.unreadable)]), (manifest.newest_task, None)]
    tasks = itertools.chain.from_iterable(
        unlabelled_tasks(label_studio, project, labeling, manifest.version, after=after, among=among)
        for after, among in parts
    )
    return sort_tasks(tasks, scores, shown, manifest, settings.pool_limit)

"""Making Label Studio serve tasks in a version's order: push its predictions, point the project at it, remove old ones.

Label Studio orders only predictions whose version equals `project.model_version`, lowest score first, and refuses a
version of which it has no prediction (label-studio-facts 5 and 6): so push, then point, then remove.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lplgrad_backend.labeling import Labeling, prediction
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.store import Manifest, PoolScores, for_classes, version_number

SAMPLING = "Uncertainty sampling"
UNTRAINED = "untrained"
START_NAME = re.compile(r"start-([1-9]\d{0,8})")  # an order made before there was a version
LAST_IN_LINE = 1.0  # the score of a task whose image cannot be read


@dataclass(frozen=True)
class Lacking:
    """Tasks that lack a prediction and get one, by what is known of them. There are never more than the limits allow."""

    scored: list[tuple[int, int]]  # task id, position in the version's scores
    unreadable: list[int]  # task ids
    unknown: list[tuple[int, str]]  # task id, image address; to be scored first


def head(scores: PoolScores, limit: int) -> set[int] | None:
    """Task ids of the first `limit` tasks of a version's queue; None where that is all of it."""
    if len(scores.tasks) <= limit:
        return None
    return set(scores.tasks[np.argsort(scores.scores, kind="stable")[:limit]].tolist())


def sort_tasks(
    tasks: Iterable[tuple[int, str]], scores: PoolScores, shown: set[int] | None, manifest: Manifest, limit: int
) -> Lacking:
    """Choose from tasks (id, image address) that lack a prediction, read one by one: those that the version scored in its
    round; those whose image could not be read then; and those that are worth scoring now.

    Args:
        shown: the head of the queue, to which the first kind is limited, and without the second; None for all.
        limit: LPLGRAD_POOL_LIMIT.
    """
    scored, unreadable = list[tuple[int, int]](), list[int]()

    def unknown() -> Iterator[tuple[int, str]]:
        for task, uri in tasks:
            position = scores.position(task, uri)
            if position is None and task not in manifest.unreadable:
                yield task, uri
            elif position is None:
                unreadable.extend([task] if shown is None else [])
            elif shown is None or task in shown:
                scored.append((task, position))

    chosen = worth_scoring(unknown(), manifest.newest_task, len(scores.tasks), limit)
    return Lacking(scored, unreadable, chosen)


def worth_scoring(
    unknown: Iterable[tuple[int, str]], newest_task: int, known: int, limit: int
) -> list[tuple[int, str]]:
    """Which tasks without a score get one now: all that are newer than the round, the others while the pool is in its limit.

    Args:
        unknown: (task id, image address), read one by one; no more are kept than the limit allows.
        newest_task: highest task id that the version's round saw.
        known: how many tasks have a score of the version.
        limit: LPLGRAD_POOL_LIMIT.
    """
    new, older, room = list[tuple[int, str]](), list[tuple[int, str]](), max(0, limit - known)
    for task in unknown:
        kind, most = (new, limit) if task[0] > newest_task else (older, room)
        if len(kind) < most:
            kind.append(task)
    return new + older[: max(0, room - len(new))]


def rows(
    labeling: Labeling, manifest: Manifest, scores: PoolScores, only: Iterable[tuple[int, int]], *, preannotate: bool
) -> list[dict[str, Any]]:
    """Prediction rows for Label Studio's import, lowest score first. `only`: (task id, position in `scores`)."""
    probabilities = for_classes(scores.probabilities, manifest.labeling.classes, labeling.classes)
    found = [
        {
            "task": task,
            **prediction(
                labeling,
                probabilities=probabilities[at].tolist() if preannotate else None,
                score=float(scores.scores[at]),
                version=manifest.version,
            ),
        }
        for task, at in only
    ]
    return sorted(found, key=lambda row: float(row["score"]))


def start_rows(labeling: Labeling, version: str, scores: PoolScores) -> list[dict[str, Any]]:
    """Rows of all scored tasks without a class, lowest score first."""
    pairs = sorted(zip(scores.scores.tolist(), scores.tasks.tolist(), strict=True))
    return [
        {"task": task, **prediction(labeling, probabilities=None, score=score, version=version)}
        for score, task in pairs
    ]


def unreadable_rows(labeling: Labeling, version: str, tasks: Iterable[int]) -> list[dict[str, Any]]:
    """Rows that put tasks last in line without a label."""
    empty = prediction(labeling, probabilities=None, score=LAST_IN_LINE, version=version)
    return [{"task": task, **empty} for task in tasks]


def outdated_versions(present: Mapping[str, int], ours: Sequence[str], current: str, keep: int) -> list[str]:
    """Which versions' predictions to remove from Label Studio.

    Args:
        present: version -> number of predictions, of Label Studio.
        ours: versions that this backend made, oldest first; what others pushed is not touched.
        current: the version or start just published; never removed.
        keep: how many of the newest stay, `current` included.
    """
    mine = sorted({*ours, current} if not is_start(current) else ours, key=version_number)
    old = mine[: max(0, len(mine) - keep)]
    starts = [name for name in present if is_start(name)]
    return [version for version in [UNTRAINED, *starts, *old] if version in present and version != current]


def is_start(version: str) -> bool:
    """Whether predictions of this version are an order made before there was one."""
    return START_NAME.fullmatch(version) is not None


def start_number(version: str) -> int:
    """12 for "start-12", 0 for what is no start."""
    match = START_NAME.fullmatch(version)
    return int(match.group(1)) if match else 0


def point_project(label_studio: LabelStudio, row: Mapping[str, Any], version: str) -> bool:
    """Make the project serve by `version`, unless it does. Returns whether something was changed.

    Raises:
        LabelStudioError
    """
    wanted = {"sampling": SAMPLING, "model_version": version}
    if all(row.get(key) == value for key, value in wanted.items()):
        return False
    label_studio.update_project(int(row["id"]), **wanted)
    return True


def by_hand(row: Mapping[str, Any], version: str) -> str | None:
    """What a person has to do when the project's settings are left alone, or None when nothing is missing."""
    if row.get("model_version") == version:
        return None
    return (
        f"Choose {version} under Settings > Annotation > Use predictions to prelabel tasks, then in the Data Manager "
        "Order by > Prediction score and Label Tasks As Displayed (LPLGRAD_MANAGE_PROJECT=true does this by itself)."
    )

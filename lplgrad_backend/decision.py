"""Whether a round is due: functions of what was read, nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from lplgrad_backend.labeling import Annotations, Labeling, count_changes
from lplgrad_backend.status import Mark, ProjectStatus
from lplgrad_backend.store import Manifest

FULL_READING_SECONDS = 3600.0
CLASSES_NEEDED = 2


@dataclass(frozen=True)
class Verdict:
    """Whether a round is due, and the reason or what is missing, in words."""

    due: bool
    reason: str


def verdict(
    labeling: Labeling,
    annotations: Annotations,
    newest: Manifest | None,
    before: Mapping[str, str],
    *,
    asked: bool,
    updates_per_round: int,
) -> Verdict:
    """Decide whether to train. Pure.

    Args:
        before: digests of the annotations that the newest version was trained on (empty without one).
        asked: somebody pressed Start Training.
        updates_per_round: START_TRAINING_EACH_N_UPDATES.
    """
    seen = len(labels_per_class(labeling, annotations))
    changes = count_changes(before, annotations.digests)
    if seen < CLASSES_NEEDED:
        return Verdict(False, f"labels of {CLASSES_NEEDED - seen} more class(es)")
    if asked:
        return Verdict(True, "asked for")
    if newest is not None and not newest.labeling.reads_like(labeling):
        return Verdict(True, "the label config changed")
    if changes >= updates_per_round:
        return Verdict(True, f"{changes} annotations changed")
    return Verdict(False, f"{updates_per_round - changes} more label(s)")


def needs_reading(
    status: ProjectStatus, counter: int | None, marks: Mapping[Mark, str], updates_per_round: int, age: float
) -> bool:
    """Whether the annotations themselves must be read to decide, or Label Studio's counter shows that it is too early.

    Args:
        counter: the project's `total_annotations_number` now.
        age: seconds since the last full reading; less than none after the clock was set back.
    """
    if status.annotations_seen is None or counter is None or not 0 <= age <= FULL_READING_SECONDS:
        return True
    if Mark.ANNOTATIONS in marks or Mark.ROUND in marks or status.last_error is not None:
        return True
    return status.changes + abs(counter - status.annotations_seen) >= updates_per_round


def labels_per_class(labeling: Labeling, annotations: Annotations) -> dict[str, int]:
    """Labelled images per class, classes without one left out; a soft target counts for each class it names."""
    counts = Counter(
        name
        for example in annotations.examples
        for name, share in zip(labeling.classes, example.target, strict=True)
        if share
    )
    return dict(counts)

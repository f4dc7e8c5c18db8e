"""What people chose of images that a queue showed because they were drawn at random, and of those that it chose.

The images drawn are a uniform sample of the pool, so the share that the version named right is an unbiased estimate of its
accuracy on the images that were unlabelled then; of the images that it chose no such thing can be said. For that a label
counts for the version whose queue was shown when it was given, and for no other: not for one whose network was trained
while the label came, nor for an older one that had drawn the image too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from lplgrad_backend.errors import StoreError
from lplgrad_backend.history import Group, History, VersionRecord, classes_of
from lplgrad_backend.labeling import Example, Labeling
from lplgrad_backend.store import PoolScores, Store

ENOUGH = 100  # images drawn at random; the newest versions that have so many make the estimate


def with_missed(history: History, version: str, tasks: Iterable[int]) -> History:
    """The history that knows which tasks of a version's pool were labelled before its queue was shown. Pure."""
    return _with_records(history, [
        record.model_copy(update={"missed": sorted(tasks)}) if record.version == version else record
        for record in history.versions
    ])  # fmt: skip


def with_shown(
    history: History, store: Store, project: int, labeling: Labeling, labelled: Sequence[Example], shown: str | None
) -> History:
    """The history with the labels that came since the last reading, counted for the version `shown`; and with what these and
    earlier ones say by now, as long as the version's scores are kept."""
    counted = {task for record in history.versions for group in (record.drawn, record.chosen) for task in group.tasks}
    by_task = {example.task_id: example for example in labelled}
    records = []
    for record in history.versions:
        new = [task for task in by_task if task not in counted and task not in record.missed]
        try:
            scores = store.scores(project, record.version)
            known = store.manifest(project, record.version).labeling == labeling
        except StoreError:
            known = False
        records.append(
            _counted(record, scores, labeling, by_task, new if record.version == shown else []) if known else record
        )
    return _with_records(history, records)


def _with_records(history: History, records: list[VersionRecord]) -> History:
    return history.model_copy(update={"versions": records})


def _counted(
    record: VersionRecord,
    scores: PoolScores,
    labeling: Labeling,
    labelled: dict[int, Example],
    new: Collection[int],
) -> VersionRecord:
    places = {task: scores.position(task, labelled[task].uri) for task in new}
    drawn = [task for task, at in places.items() if at is not None and scores.random[at]]
    chosen = [task for task, at in places.items() if at is not None and not scores.random[at]]
    groups = {
        "drawn": _judged([*record.drawn.tasks, *drawn], scores, labeling, labelled),
        "chosen": _judged([*record.chosen.tasks, *chosen], scores, labeling, labelled),
    }
    return record.model_copy(update=groups)


def _judged(tasks: Sequence[int], scores: PoolScores, labeling: Labeling, labelled: dict[int, Example]) -> Group:
    """These tasks by what people say of them by now; one whose label was taken back waits for another."""
    agreed, classes = 0, Counter[str]()
    kept = [task for task in tasks if task in labelled]
    for task in kept:
        at = scores.position(task, labelled[task].uri)
        people = classes_of(labelled[task].target, labeling)
        classes.update(labeling.classes[one] for one in people)
        agreed += at is not None and classes_of(scores.probabilities[at], labeling) == people
    return Group(tasks=kept, agreed=agreed, classes=dict(classes))


def newest_with_enough(records: Sequence[VersionRecord], enough: int = ENOUGH) -> list[VersionRecord]:
    """The newest versions that have `enough` drawn images together, or all that have any; oldest first."""
    found: list[VersionRecord] = []
    for record in reversed(records):
        if sum(len(one.drawn.tasks) for one in found) >= enough:
            break
        found += [record] if record.drawn.tasks else []
    return found[::-1]

"""What a project keeps of its versions after their files are gone: `MODEL_DIR/<project>/history.json`.

How often a version was right is told by what people chose *after* it had looked: a task that stood unlabelled in a
version's pool and has a label now was predicted before anyone labelled it. These counts grow with every reading of the
annotations as long as the version's scores are kept, and stay as they are from then on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from lplgrad_backend.errors import StoreError
from lplgrad_backend.files import write_whole, written
from lplgrad_backend.labeling import Example, Labeling
from lplgrad_backend.store import Manifest, PoolScores, Store

HISTORY = "history.json"
VERSIONS_KEPT = 1000
QUERIES_KEPT = 60  # a round's first tasks; the status page shows twelve that have no label yet
EARLIER_KEPT = 5
SUSPECTS_KEPT = 50


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # what a newer release adds is no obstacle


class Choice(_Kept):
    """How often people chose one label where a version had predicted another (or the same)."""

    predicted: str
    chosen: str
    count: int


class Group(_Kept):
    """Tasks that were labelled while a version's queue was shown.

    Attributes:
        agreed: how many got the label that the version had predicted.
        classes: how often people chose each class.
    """

    tasks: list[int] = []
    agreed: int = 0
    classes: dict[str, int] = {}


class VersionRecord(_Kept):
    """One version, for good.

    Attributes:
        labels: labelled images per class that it was trained on.
        images: labelled images that it was trained on.
        compared: tasks that it predicted before people labelled them, as far as they are labelled by now.
        agreed: how many of these got the predicted label (for several classes per image: exactly the predicted ones).
        choices: the same, by predicted and chosen class; empty for several classes per image.
        drawn, chosen: of the tasks that its queue showed, those drawn at random and the others.
        missed: tasks of its pool that were labelled before its queue was shown.
    """

    version: str
    created: datetime
    labels: dict[str, int]
    images: int
    metrics: dict[str, float] = {}
    compared: int = 0
    agreed: int = 0
    choices: list[Choice] = []
    drawn: Group = Group()
    chosen: Group = Group()
    missed: list[int] = []


class Query(_Kept):
    """An unlabelled task near the front of the queue. `uri` is its image's address."""

    task: int
    uri: str


class Suspect(_Kept):
    """A labelled image whose label looks wrong.

    Attributes:
        label: what people chose, most of them.
        predicted: what the model would choose.
        loss: in nats; `expected` is what the auxiliary model lets expect.
        excess: their difference, in robust standard deviations over all labelled images.
    """

    task: int
    uri: str
    label: str
    predicted: str
    loss: float
    expected: float
    excess: float


class History(_Kept):
    """Everything kept of one project. Versions are in the order in which they were made."""

    versions: list[VersionRecord] = []
    queries: list[Query] = []  # of the newest version, the most informative first, without those labelled since
    earlier: dict[str, list[Query]] = {}  # the same of the versions before it, for an older one may be served
    suspects: list[Suspect] = []  # of the newest version, the most suspect first
    side: int = 0  # pixels of the images as the newest version sees them

    @property
    def newest(self) -> VersionRecord | None:
        """The version made last."""
        return self.versions[-1] if self.versions else None

    def queue(self, version: str) -> list[Query]:
        """A version's first tasks that have no label yet; empty for one that was removed long ago."""
        newest = self.newest is not None and self.newest.version == version
        return self.queries if newest else self.earlier.get(version, [])

    @property
    def addresses(self) -> dict[int, str]:
        """Task -> image address, of all tasks that are kept here."""
        queued = {one.task: one.uri for queue in (self.queries, *self.earlier.values()) for one in queue}
        return queued | {one.task: one.uri for one in self.suspects}


def read_history(store: Store, project: int) -> History:
    """What is kept of a project; nothing where there is no file, or one that cannot be read."""
    try:
        return History.model_validate_json((store.project_folder(project) / HISTORY).read_bytes())
    except (OSError, ValidationError):
        return History()


def write_history(store: Store, project: int, history: History) -> None:
    """Replace what is kept. Only for the holder of the project's lock.

    Raises:
        StoreError: the disk refuses.
    """
    with written(f"{HISTORY} of project {project}", store.folder):
        write_whole(store.project_folder(project) / HISTORY, history.model_dump_json(indent=1).encode())


def with_version(
    history: History,
    manifest: Manifest,
    scores: PoolScores,
    addresses: Mapping[int, str],
    suspects: Sequence[Suspect] = (),
    side: int = 0,
) -> History:
    """The history with one more version. Pure.

    Args:
        addresses: image address of each task of the pool, as far as it is known; others are not shown.
        side: pixels of the images as the version sees them.
    """
    first = np.argsort(scores.scores, kind="stable")[:QUERIES_KEPT]
    record = VersionRecord(
        version=manifest.version,
        created=manifest.created,
        labels=manifest.labels,
        images=round(manifest.metrics.get("images", 0)) or sum(manifest.labels.values()),
        metrics=manifest.metrics,
    )
    others = [known for known in history.versions if known.version != record.version]
    before = history.newest
    earlier = {**history.earlier, before.version: history.queries} if before else {}
    return history.model_copy(
        update={
            "versions": [*others, record][-VERSIONS_KEPT:],
            "queries": [
                Query(task=task, uri=addresses[task]) for task in scores.tasks[first].tolist() if task in addresses
            ],
            "earlier": dict(list(earlier.items())[-EARLIER_KEPT:]),
            "suspects": list(suspects)[:SUSPECTS_KEPT],
            "side": side,
        }
    )


def with_choices(
    history: History, store: Store, project: int, labeling: Labeling, labelled: Sequence[Example]
) -> History:
    """The history with what people have chosen by now, of every version whose files are still there."""
    records = [_compared(record, store, project, labeling, labelled) for record in history.versions]
    done = {example.task_id for example in labelled}

    def left(queue: Iterable[Query]) -> list[Query]:
        return [query for query in queue if query.task not in done]

    earlier = {version: left(queue) for version, queue in history.earlier.items()}
    return history.model_copy(update={"versions": records, "queries": left(history.queries), "earlier": earlier})


def _compared(
    record: VersionRecord, store: Store, project: int, labeling: Labeling, labelled: Iterable[Example]
) -> VersionRecord:
    try:
        manifest = store.manifest(project, record.version)
        scores = store.scores(project, record.version)
    except StoreError:
        return record
    if manifest.labeling != labeling:  # its classes are not what people choose from any more
        return record
    pairs = choices(scores, labeling, labelled)
    if labeling.multiple:
        named = []
    else:
        named = [
            Choice(predicted=labeling.classes[min(said)], chosen=labeling.classes[min(chosen)], count=count)
            for (said, chosen), count in sorted(Counter(pairs).items(), key=lambda entry: tuple(map(sorted, entry[0])))
        ]
    agreed = sum(said == chosen for said, chosen in pairs)
    return record.model_copy(update={"compared": len(pairs), "agreed": agreed, "choices": named})


def choices(
    scores: PoolScores, labeling: Labeling, labelled: Iterable[Example]
) -> list[tuple[frozenset[int], frozenset[int]]]:
    """(predicted, chosen) classes, as positions, of every task that was in the pool and has a label now. Of several
    people's labels the most frequent class counts, a tie for the first in the label config."""
    found = []
    for example in labelled:
        at = scores.position(example.task_id, example.uri)
        if at is not None:
            found.append((classes_of(scores.probabilities[at], labeling), classes_of(example.target, labeling)))
    return found


def classes_of(shares: Sequence[float] | NDArray[np.floating[Any]], labeling: Labeling) -> frozenset[int]:
    """Positions of the classes that these shares [C] name: the largest, or where several may hold all from one half."""
    if labeling.multiple:
        return frozenset(np.flatnonzero(np.asarray(shares) >= 0.5).tolist())
    return frozenset([int(np.argmax(shares))])

"""What the status page shows, read from the disk alone: it answers while Label Studio is away, and costs it nothing."""

from __future__ import annotations

import math
from datetime import datetime

import numpy as np

from lplgrad_backend.dashboard.statistics import histogram, remaining_seconds, two_likeliest, wilson
from lplgrad_backend.dashboard.version_facts import ActiveAgainstRandom, Fact, Making, against_random_of, making_of
from lplgrad_backend.errors import StoreError
from lplgrad_backend.first_queue import said_of
from lplgrad_backend.history import History, VersionRecord, read_history
from lplgrad_backend.served import served, why_not_newest
from lplgrad_backend.service import Service
from lplgrad_backend.status import ProjectStatus, now
from lplgrad_backend.store import Manifest, PoolScores
from lplgrad_backend.worker import worker_is_at_work

UNCERTAIN_SHOWN = 12
REASONS_SHOWN = 10


class Point(Fact):
    """One version of the learning curve. `low` and `high` bound the agreement, 95 % (Wilson)."""

    version: str
    created: datetime
    images: int
    compared: int
    agreed: int
    agreement: float | None
    low: float
    high: float


class Confusion(Fact):
    """How often people chose class `columns` where the version had predicted class `rows`, among `classes`."""

    version: str
    classes: list[str]
    counts: list[list[int]]


class Uncertain(Fact):
    """An image near the front of the queue.

    Attributes:
        score: as published.
        percentile: share of the scored images that are less uncertain, 0 to 100.
        gradient_norm: its own, whatever its place in the queue comes from.
        predicted_loss: what the loss-prediction module expects, on its own scale; None where that was not kept.
        drawn: whether it has its place by chance.
    """

    task: int
    link: str | None
    predicted: str
    probability: float
    runner_up: str
    runner_up_probability: float
    score: float
    percentile: float
    gradient_norm: float
    predicted_loss: float | None
    drawn: bool


class Doubtful(Fact):
    """A labelled image whose label looks wrong. Losses in nats."""

    task: int
    link: str | None
    label: str
    predicted: str
    loss: float
    expected: float


class Progress(Fact):
    """The running round. `share` of its phase in [0, 1], None where that is not known."""

    phase: str
    done: int
    total: int
    share: float | None
    seconds_left: float | None


class ProjectFacts(Fact):
    """Everything about one project."""

    project: int
    title: str
    link: str | None
    version: str | None
    version_created: datetime | None
    published: str | None
    served: str | None
    not_published: str | None
    worker_at_work: bool
    cold_start: str | None
    labels: dict[str, int]
    labels_read_at: datetime | None
    rounds: int
    round: Progress | None
    interrupted: bool
    due: str
    last_error: str | None
    last_error_at: datetime | None
    to_do_by_hand: str | None
    warnings: list[str]
    unreadable_count: int
    unreadable: dict[int, str]
    making: Making | None
    active_against_random: ActiveAgainstRandom
    curve: list[Point]
    confusion: Confusion | None
    histogram: list[int]
    uncertain: list[Uncertain]
    suspects: list[Doubtful]

    @property
    def name(self) -> str:
        """Its title, or its number until the worker has read that."""
        return self.title or f"Project {self.project}"


class Facts:
    """Reads facts of the projects that the service knows."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def worker_is_at_work(self) -> bool:
        """Whether anything trains and publishes here; the web server alone does neither."""
        return worker_is_at_work(self._service.settings)

    def known(self, project: int) -> bool:
        """Whether there is such a project."""
        return project in self._service.store.projects()

    def all(self) -> list[ProjectFacts]:
        """Of every project, by number."""
        return [self.of(project) for project in self._service.store.projects()]

    def of(self, project: int) -> ProjectFacts:
        """Of one project. What is damaged on disk is shown as not there."""
        status, history = self._service.statuses.read(project), read_history(self._service.store, project)
        manifest, shown = self._service.store.newest(project), served(self._service.store, project)
        scores, at_work = self._scores(shown), self._service.statuses.at_work(project)
        labels = {name: status.labels.get(name, 0) for name in manifest.labeling.classes} if manifest else {}
        return ProjectFacts(
            project=project,
            title=status.title,
            link=self._link(project),
            version=manifest.version if manifest else None,
            version_created=manifest.created if manifest else None,
            published=status.published,
            served=shown.version if shown else None,
            not_published=why_not_newest(manifest, shown) if manifest and shown else None,
            worker_at_work=self.worker_is_at_work(),
            cold_start=said_of(status.cold_start) if status.cold_start else None,
            labels=labels | status.labels,
            labels_read_at=status.read_at,
            rounds=status.rounds,
            round=_progress(status) if at_work else None,
            interrupted=status.busy and not at_work,
            due=_plural(status.due),
            last_error=status.last_error,
            last_error_at=status.last_error_at,
            to_do_by_hand=status.to_do_by_hand,
            warnings=status.warnings,
            unreadable_count=status.unreadable_count,
            unreadable=dict(list(status.unreadable.items())[:REASONS_SHOWN]),
            making=making_of(shown) if shown else None,
            active_against_random=against_random_of(history),
            curve=[_point(record) for record in history.versions],
            confusion=_confusion(history, manifest),
            histogram=histogram(scores.scores) if scores is not None and len(scores.tasks) else [],
            uncertain=self._uncertain(project, history, shown, scores),
            suspects=[
                Doubtful(link=self._link(project, one.task), **one.model_dump(include=SUSPECT_FIELDS))
                for one in history.suspects
            ],
        )

    def _scores(self, manifest: Manifest | None) -> PoolScores | None:
        try:
            return self._service.store.scores(manifest.project, manifest.version) if manifest else None
        except StoreError:
            return None

    def _uncertain(
        self, project: int, history: History, manifest: Manifest | None, scores: PoolScores | None
    ) -> list[Uncertain]:
        if manifest is None or scores is None:
            return []
        found: list[Uncertain] = []
        for query in history.queue(manifest.version):
            at = scores.position(query.task, query.uri)
            if at is not None and len(found) < UNCERTAIN_SHOWN:
                likeliest = two_likeliest(scores.probabilities[at], manifest.labeling.classes)
                (predicted, probability), (runner_up, second) = likeliest
                found.append(
                    Uncertain(
                        task=query.task,
                        link=self._link(project, query.task),
                        predicted=predicted,
                        probability=probability,
                        runner_up=runner_up,
                        runner_up_probability=second,
                        score=float(scores.scores[at]),
                        percentile=100.0 * float(np.mean(scores.scores > scores.scores[at])),
                        gradient_norm=float(scores.norms[at]),
                        predicted_loss=_finite(float(scores.predicted_losses[at])),
                        drawn=bool(scores.random[at]),
                    )
                )
        return found

    def _link(self, project: int, task: int | None = None) -> str | None:
        address = self._service.settings.public_url or self._service.settings.label_studio_url
        if address is None:
            return None
        page = f"{str(address).rstrip('/')}/projects/{project}/data"
        return page if task is None else f"{page}?task={task}"


SUSPECT_FIELDS = {"task", "label", "predicted", "loss", "expected"}


def _progress(status: ProjectStatus) -> Progress | None:
    if not status.busy:
        return None
    return Progress(
        phase=status.phase.value,
        done=status.done,
        total=status.total,
        share=min(1.0, status.done / status.total) if status.total else None,
        seconds_left=remaining_seconds(status, now()),
    )


def _point(record: VersionRecord) -> Point:
    low, high = wilson(record.agreed, record.compared)
    return Point(
        version=record.version,
        created=record.created,
        images=record.images,
        compared=record.compared,
        agreed=record.agreed,
        agreement=record.agreed / record.compared if record.compared else None,
        low=low,
        high=high,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _confusion(history: History, manifest: Manifest | None) -> Confusion | None:
    """Of the newest version of which people have labelled something since."""
    record = next((one for one in reversed(history.versions) if one.choices), None)
    if record is None:
        return None
    seen = [name for one in record.choices for name in (one.predicted, one.chosen)]
    classes = list(dict.fromkeys([*(manifest.labeling.classes if manifest else ()), *seen]))
    counts = [[0] * len(classes) for _ in classes]
    for one in record.choices:
        counts[classes.index(one.predicted)][classes.index(one.chosen)] += one.count
    return Confusion(version=record.version, classes=classes, counts=counts)


def _plural(due: str) -> str:
    """Such as "4 more labels" for "4 more label(s)"."""
    one = due.startswith("1 ") or " 1 " in due
    for word, many in (("label(s)", "labels"), ("class(es)", "classes")):
        due = due.replace(word, word.partition("(")[0] if one else many)
    return due

"""One look at a project: is a round due? Train, score, save, publish.

Label Studio is the truth and events are hints. `Learner.reconcile` reads what is there, decides purely (`verdict`), and
acts. It may be interrupted anywhere and called again at any time: a version is saved whole or not at all, and
publishing adds what is missing.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lplgrad_backend import publication
from lplgrad_backend.chronicle import Chronicle
from lplgrad_backend.comparison import compare, split
from lplgrad_backend.decision import labels_per_class, needs_reading, verdict
from lplgrad_backend.draft import draft_of
from lplgrad_backend.errors import HoldLost, LPLGradError, NotLearnable, may_pass
from lplgrad_backend.files import remove_leftovers
from lplgrad_backend.first_queue import FirstQueue, is_wanted
from lplgrad_backend.labeling import (
    Annotations,
    Labeling,
    count_changes,
    parse_label_config,
    read_annotations,
)
from lplgrad_backend.labelstudio import LOST_ANSWER, LabelStudio
from lplgrad_backend.locks import Hold, Stopping
from lplgrad_backend.logs import about, current, note
from lplgrad_backend.notice import Notice
from lplgrad_backend.outdated import Outdated
from lplgrad_backend.rounds import SCORES, WEIGHTS, Order, Outcome, PoolTask, Progress, RoundStopped, Stop, run_round
from lplgrad_backend.scratch import scratch
from lplgrad_backend.served import served, why_not_newest
from lplgrad_backend.settings import Settings
from lplgrad_backend.status import UNREADABLE_KEPT, ColdStart, Mark, Phase, StatusFolder, now
from lplgrad_backend.store import Manifest, PoolScores, Store, next_version, read_scores
from lplgrad_backend.unlabelled import Pool, lacking_tasks, pool_of, unlabelled_tasks

log = logging.getLogger(__name__)
Heavy = Callable[[Order, Path, Settings, Callable[[Progress], None], Stop], Outcome]


class Learner:
    """Keeps the projects' versions and queues in line with their annotations. One `reconcile` at a time per project.

    Args:
        afterwards: is called with the project when a look has ended; it removes the predictions of outdated versions there
            and then unless given.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        statuses: StatusFolder,
        label_studio: LabelStudio | None,
        stop: threading.Event | None = None,
        heavy: Heavy = run_round,
        afterwards: Callable[[int], None] | None = None,
    ) -> None:
        self.settings, self.store, self.statuses, self.label_studio = settings, store, statuses, label_studio
        self.stop, self.heavy = stop or threading.Event(), heavy
        self.outdated, self._afterwards = Outdated(store, label_studio), afterwards

    def reconcile(self, project: int, *, rounds: bool = True) -> bool:
        """Look at a project and do what is due. Errors become the project's last error; none is raised.

        Does nothing when another process is at it, and gives up in the middle when it is told to stop or another may be at
        it by now: then somebody has to look again later.

        Args:
            rounds: whether to train if a round is due, or only to publish what there is.

        Returns:
            False if somebody has to look again later.
        """
        with about(project=project, job=current().job or uuid.uuid4().hex[:12], version=None):
            looked = self._reconcile(project, rounds)
            if self._afterwards is None:
                self.outdated.remove(project, self.stop)
            else:
                self._afterwards(project)
            return looked

    def _reconcile(self, project: int, rounds: bool) -> bool:
        if self.label_studio is None:
            log.warning("project %d: LABEL_STUDIO_URL or LABEL_STUDIO_API_KEY is missing: no training", project)
            return True
        try:
            with self.statuses.lock(project) as hold:
                if hold is None:
                    return False
                self._tidy(project)
                return self._look(_Look(self, self.label_studio, project, hold), rounds)
        except HoldLost as error:
            log.warning("project %d: %s", project, error)
            return False
        except LPLGradError as error:
            log.error("project %d: %s", project, error)
            return False

    def _tidy(self, project: int) -> None:
        """Remove what was left behind by writers that were killed, and note what they could not."""
        self.store.tidy(project)
        Chronicle(self.store, project).catch_up()
        for name in ("images", "pretrained"):
            remove_leftovers(self.settings.model_dir / name)

    def _look(self, look: _Look, rounds: bool) -> bool:
        try:
            look.run(rounds)
        except RoundStopped:
            look.update(phase=Phase.IDLE)
            return False
        except KeyboardInterrupt:
            look.update(phase=Phase.IDLE)
            raise
        except NotLearnable as error:
            log.info("project %d: %s", look.project, error)
            look.failed(error, str(error), due=str(error))
            look.clear_marks()
        except HoldLost:
            if not look.hold.lost:
                look.update(phase=Phase.IDLE)
            raise
        except LPLGradError as error:
            log.warning("project %d: %s", look.project, error)
            look.failed(error, str(error), may_pass=may_pass(error))
        except Exception as error:
            log.exception("project %d: unexpected", look.project)
            look.failed(error, "An unexpected error; the log has it.")
        return True


class _Look:
    """One call of `reconcile`: the project as it stands now, and the steps."""

    def __init__(self, learner: Learner, label_studio: LabelStudio, project: int, hold: Hold) -> None:
        self.settings, self.store, self.statuses = learner.settings, learner.store, learner.statuses
        self.heavy, self.label_studio, self.project = learner.heavy, label_studio, project
        self.hold, self.stop = hold, Stopping(learner.stop, hold)
        self.notice = Notice(label_studio, project, learner.settings)
        self.outdated = learner.outdated
        self.chronicle = Chronicle(self.store, project)
        self.status = self.statuses.read(project)
        self.marks = self.statuses.marks(project)

    def run(self, rounds: bool) -> None:
        if self.status.phase is Phase.PUBLISHING:  # its process was killed: Label Studio may still be at its last push
            self.stop.wait(LOST_ANSWER)
        row = self.label_studio.project(self.project)
        labeling = parse_label_config(str(row.get("label_config") or ""), self.statuses.control(self.project))
        self.update(title=str(row.get("title") or ""))
        newest = self.store.newest(self.project)
        note(version=newest.version if newest else None)
        trained = self._round_if_due(row, labeling, newest) if rounds else None
        if trained is not None:
            row = self.label_studio.project(self.project)  # a round takes a minute, in which people change settings
            labeling = parse_label_config(str(row.get("label_config") or ""), self.statuses.control(self.project))
        newest, shown = trained or newest, served(self.store, self.project)
        if newest is not None and shown is not None:
            note(version=shown.version)
            self.update(not_published=why_not_newest(newest, shown))
            self._publish(row, labeling, shown, fresh=trained is not None)
        elif is_wanted(self.settings):
            self._begin(row, labeling)
        if trained is not None:
            self.notice.show(self.chronicle.read(), training=False)
        self.update(phase=Phase.IDLE, last_error=None, last_error_at=None, may_pass=False)
        self.clear_marks()

    def update(self, **changes: Any) -> None:
        if self.hold.lost:
            self.hold.confirm()  # raises: the status is another's to write by now
        if changes.get("phase", self.status.phase) is not self.status.phase:
            changes["phase_started"] = now()
        self.status = self.status.model_copy(update=changes)
        self.statuses.write(self.status)

    def failed(self, error: Exception, said: str, **changes: Any) -> None:
        """The look ends with an error, which is counted by its kind."""
        kind = type(error).__name__
        errors = {**self.status.errors, kind: self.status.errors.get(kind, 0) + 1}
        self.update(phase=Phase.IDLE, last_error=said, last_error_at=now(), errors=errors, **changes)

    def _go_on(self) -> None:
        """A step is about to begin that need not."""
        if self.stop.is_set():
            raise RoundStopped
        self.hold.confirm()

    def clear_marks(self) -> None:
        self.statuses.clear_marks(self.project, self.marks)

    # Deciding

    def _round_if_due(self, row: Mapping[str, Any], labeling: Labeling, newest: Manifest | None) -> Manifest | None:
        counter = row.get("total_annotations_number")
        age = (now() - self.status.read_at).total_seconds() if self.status.read_at else float("inf")
        changed_config = newest is not None and not newest.labeling.reads_like(labeling)
        if not changed_config and not needs_reading(
            self.status, counter, self.marks, self.settings.updates_per_round, age
        ):
            self._count_down(int(counter or 0))
            return None
        self._go_on()
        self.update(phase=Phase.READING)
        annotations = read_annotations(labeling, self.label_studio.annotated_tasks(self.project))
        before = self.store.annotations(self.project, newest.version) if newest else {}
        asked = Mark.ROUND in self.marks
        decision = verdict(
            labeling, annotations, newest, before, asked=asked, updates_per_round=self.settings.updates_per_round
        )
        changes = count_changes(before, annotations.digests)
        labels = labels_per_class(labeling, annotations)
        self.update(due=decision.reason, changes=changes, annotations_seen=counter, read_at=now(), labels=labels)
        self.chronicle.labels_read(labeling, annotations.examples, self.status.published)
        if decision.due:
            return self._round(labeling, annotations)
        if asked:
            raise NotLearnable(f"A round was asked for, but it needs {decision.reason} first.")
        return None

    def _count_down(self, counter: int) -> None:
        since = abs(counter - (self.status.annotations_seen or 0))
        left = self.settings.updates_per_round - self.status.changes - since
        if "more label(s)" in self.status.due:
            self.update(due=f"{left} more label(s)")

    # Training

    def _round(self, labeling: Labeling, annotations: Annotations) -> Manifest:
        started = time.monotonic()
        self.update(phase=Phase.LOADING, round_started=now(), done=0, total=0)
        pool = self._pool(labeling)
        self._go_on()
        training, held_out = split(labeling, annotations.examples, labels_per_class(labeling, annotations))
        order = Order(project=self.project, labeling=labeling, examples=training, held_out=held_out, pool=pool.tasks)
        self.notice.show(self.chronicle.read(), training=True)
        log.info("project %d: round on %d examples, pool of %d", self.project, len(order.examples), len(pool.tasks))
        with self._scratch() as folder:
            outcome = self.heavy(order, folder, self.settings, self._progress, self.stop)
            self.hold.confirm()
            manifest = self._save(order, annotations, outcome, folder, pool)
        note(version=manifest.version)
        self._note_unreadable(outcome.unreadable)
        seconds = time.monotonic() - started
        self.update(
            warnings=outcome.warnings,
            rounds=self.status.rounds + 1,
            round_seconds=seconds,
            changes=0,
            due=f"{self.settings.updates_per_round} more label(s)",
        )
        log.info("project %d: %s trained and scored in %.1f s", self.project, manifest.version, seconds)
        return manifest

    def _scratch(self) -> AbstractContextManager[Path]:
        return scratch(self.store.scratch_folder, self.project)

    def _pool(self, labeling: Labeling) -> Pool:
        tasks = unlabelled_tasks(self.label_studio, self.project, labeling, None)
        return pool_of(tasks, self.settings.pool_limit)

    def _progress(self, progress: Progress) -> None:
        self.update(phase=progress.phase, done=progress.done, total=progress.total)
        self.notice.follow(progress.phase, progress.done, progress.total)

    def _save(self, order: Order, annotations: Annotations, outcome: Outcome, folder: Path, pool: Pool) -> Manifest:
        scores = read_scores(folder / SCORES)
        labels = labels_per_class(order.labeling, annotations)
        held_back, version = self._held_back(order, outcome), self._next_version()
        draft = draft_of(order, outcome, version, self.settings.seed, labels, pool.total, pool.newest, held_back)
        manifest = self.store.save(draft, folder / WEIGHTS, annotations.digests, scores)
        addresses = {entry.task: entry.uri for entry in order.pool}
        side = int(outcome.architecture.get("side", 0))
        self.chronicle.version_made(manifest, scores, addresses, outcome.suspects, side)
        return manifest

    def _held_back(self, order: Order, outcome: Outcome) -> str:
        """Why this round is not to be published; empty if it is."""
        published = served(self.store, self.project)
        if self.settings.always_publish or published is None or published.labeling != order.labeling:
            return ""
        found = compare(order.labeling, order.held_out, published.held_out, outcome.held_out)
        return found.sentence(published.version) if found.clearly_worse else ""

    def _next_version(self) -> str:
        """One more than any version here or in Label Studio, so that a lost MODEL_DIR never reuses a name."""
        return next_version([*self.store.versions(self.project), *self.label_studio.model_versions(self.project)])

    # Before the first version

    def _begin(self, row: Mapping[str, Any], labeling: Labeling) -> None:
        """Order the queue without a network, and anew when tasks have come."""
        limits = self.settings.pool_limit, self.settings.publish_limit
        first = FirstQueue(self.label_studio, self.project, *limits, self._push_rows)
        if not first.is_free(row):
            return
        known = first.kept(self.status.cold_start)
        if known is None or Mark.TASKS in self.marks:
            version = known.version if known else None
            lacking = unlabelled_tasks(self.label_studio, self.project, labeling, version)
            if first.is_due(known, lacking):
                known = self._order_first(first, labeling)
        if known is not None:
            self._point(row, known.version)
            self.outdated.note(self.project, first.others(known))

    def _order_first(self, first: FirstQueue, labeling: Labeling) -> ColdStart:
        self._go_on()
        self.update(phase=Phase.LOADING, done=0, total=0)
        pool = self._pool(labeling)
        outcome, scores = self._scored(first.order(labeling, pool.tasks))
        self.update(phase=Phase.PUBLISHING, done=0, total=0, warnings=outcome.warnings)
        self._note_unreadable(outcome.unreadable)
        known = first.publish(labeling, outcome, scores, pool.newest)
        self.update(cold_start=known)
        return known

    # Publishing

    def _publish(self, row: Mapping[str, Any], labeling: Labeling, manifest: Manifest, *, fresh: bool) -> None:
        if fresh or Mark.TASKS in self.marks or self.status.published != manifest.version:
            self.update(phase=Phase.PUBLISHING, done=0, total=0)
            self._push(labeling, manifest, fresh=fresh)
        self._point(row, manifest.version)
        if self.status.cold_start is not None:
            self.update(cold_start=None)
        if fresh or len(self.store.versions(self.project)) > self.settings.keep_versions:
            self._give_up_outdated(row, manifest)

    def _point(self, row: Mapping[str, Any], version: str) -> None:
        self.hold.confirm()
        if self.settings.manage_project:
            if publication.point_project(self.label_studio, row, version):
                log.info("project %d: Label Studio now serves by %s", self.project, version)
            self.update(published=version, to_do_by_hand=None)
        else:
            self.update(published=version, to_do_by_hand=publication.by_hand(row, version))

    def _push(self, labeling: Labeling, manifest: Manifest, *, fresh: bool) -> None:
        scores = self.store.scores(self.project, manifest.version)
        lacking = lacking_tasks(self.label_studio, self.project, labeling, manifest, scores, self.settings)
        if fresh:
            self.chronicle.queue_shown(manifest, [task for task, _ in lacking.scored])
        self._push_rows(self._rows(labeling, manifest, scores, lacking.scored))
        self._push_rows(publication.unreadable_rows(labeling, manifest.version, lacking.unreadable))
        if lacking.unknown:
            self._score_and_push(labeling, manifest, lacking.unknown)

    def _score_and_push(self, labeling: Labeling, manifest: Manifest, tasks: list[tuple[int, str]]) -> None:
        pool = [PoolTask(task=task, uri=uri) for task, uri in tasks]
        order = Order(project=self.project, labeling=manifest.labeling, pool=pool, version=manifest.version)
        outcome, found = self._scored(order)
        new_rows = self._rows(labeling, manifest, found, [(int(task), at) for at, task in enumerate(found.tasks)])
        self._push_rows(new_rows + publication.unreadable_rows(labeling, manifest.version, outcome.unreadable))
        self._note_unreadable({**self.status.unreadable, **outcome.unreadable})

    def _scored(self, order: Order) -> tuple[Outcome, PoolScores]:
        """The scores of a child that saves no network."""
        with self._scratch() as folder:
            outcome = self.heavy(order, folder, self.settings, self._progress, self.stop)
            return outcome, read_scores(folder / SCORES)

    def _rows(
        self, labeling: Labeling, manifest: Manifest, scores: PoolScores, only: list[tuple[int, int]]
    ) -> list[dict[str, Any]]:
        return publication.rows(labeling, manifest, scores, only, preannotate=self.settings.preannotate)

    def _push_rows(self, new_rows: list[dict[str, Any]]) -> None:
        self._go_on()
        if new_rows:
            self.label_studio.push_predictions(self.project, new_rows)

    def _note_unreadable(self, unreadable: Mapping[int, str]) -> None:
        first = dict(list(unreadable.items())[:UNREADABLE_KEPT])
        self.update(unreadable=first, unreadable_count=len(unreadable))

    def _give_up_outdated(self, row: Mapping[str, Any], manifest: Manifest) -> None:
        """Old versions go from the disk; that their predictions may go is noted before, for later."""
        ours = self.store.versions(self.project)
        keep = self.settings.keep_versions
        present = self.label_studio.model_versions(self.project)
        outdated = publication.outdated_versions(present, ours, manifest.version, keep)
        self.hold.confirm()
        pointed_at = None if self.settings.manage_project else row.get("model_version")
        self.outdated.note(self.project, [version for version in outdated if version != pointed_at])
        for version in ours[: max(0, len(ours) - keep)]:
            if version != manifest.version:
                self.store.delete(self.project, version)

"""The queue before there is a version: typical images first, published as predictions that show no class.

Such an order is called start-1, and start-2 when it is made anew for tasks that came since; it has no network and nothing
on disk but a line in the status. It goes when the first version is published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lplgrad_backend import publication
from lplgrad_backend.labeling import Labeling, read_annotations
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.publication import UNTRAINED, is_start, start_number
from lplgrad_backend.rounds import Order, Outcome, PoolTask
from lplgrad_backend.settings import Settings
from lplgrad_backend.status import ColdStart
from lplgrad_backend.store import PoolScores


def is_wanted(settings: Settings) -> bool:
    """Whether the settings leave the first labels to typicality."""
    return settings.cold_start and settings.preset != "paper" and settings.strategy != "random"


def said_of(known: ColdStart) -> str:
    """What orders the queue, for a person."""
    return f"Until the first version typical images come first, compared by {known.basis} ({known.version})."


class FirstQueue:
    """The predictions of one project that has no version, as Label Studio has them at this moment.

    Args:
        limit: LPLGRAD_POOL_LIMIT.
        shown: LPLGRAD_PUBLISH_LIMIT.
        push: sends prediction rows.

    Raises:
        LabelStudioError: here and from whatever asks it.
    """

    def __init__(
        self,
        label_studio: LabelStudio,
        project: int,
        limit: int,
        shown: int,
        push: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self._label_studio, self._project, self._limit, self._shown, self._push = (
            label_studio,
            project,
            limit,
            shown,
            push,
        )
        self._present = label_studio.model_versions(project)

    def is_free(self, row: Mapping[str, Any]) -> bool:
        """Whether nothing else orders the project: neither predictions of others, nor a version that was lost here."""
        shown = str(row.get("model_version") or "")
        return not self._present.get(shown) or shown == UNTRAINED or is_start(shown)

    def kept(self, known: ColdStart | None) -> ColdStart | None:
        """The order that was published last, unless its predictions were removed."""
        return known if known is not None and self._present.get(known.version) else None

    def is_due(self, known: ColdStart | None, lacking: Iterable[tuple[int, str]]) -> bool:
        """Whether an order is to be made. `lacking`: (task id, address) of unlabelled tasks that `known` has not."""
        newest, count = (known.newest_task, self._present.get(known.version, 0)) if known else (0, 0)
        return bool(publication.worth_scoring(lacking, newest, count, min(self._limit, self._shown)))

    def order(self, labeling: Labeling, pool: list[PoolTask]) -> Order:
        """What the child is to do."""
        labelled = read_annotations(labeling, self._label_studio.annotated_tasks(self._project)).examples
        return Order(project=self._project, labeling=labeling, examples=list(labelled), pool=pool, cold=True)

    def publish(self, labeling: Labeling, outcome: Outcome, scores: PoolScores, newest_task: int) -> ColdStart:
        """Push a new order under a new name."""
        number = 1 + max((start_number(name) for name in self._present), default=0)
        known = ColdStart(version=f"start-{number}", newest_task=newest_task, basis=outcome.recipe_reason)
        all_rows = publication.start_rows(labeling, known.version, scores)
        all_rows += publication.unreadable_rows(labeling, known.version, outcome.unreadable)
        self._push(all_rows[: self._shown])
        return known

    def others(self, known: ColdStart) -> list[str]:
        """What was published before `known`, to which the project points by now."""
        return publication.outdated_versions(self._present, [], known.version, 1)

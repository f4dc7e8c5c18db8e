"""Facts of how a version was made, and of what its random share says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from lplgrad_backend.dashboard.statistics import wilson
from lplgrad_backend.history import Group, History
from lplgrad_backend.random_share import newest_with_enough
from lplgrad_backend.store import Manifest


class Fact(BaseModel):
    """Something that the status page shows."""

    model_config = ConfigDict(frozen=True)


class Making(Fact):
    """How the version that people are served was made.

    Attributes:
        recipe: which one, and why.
        ordered_by: the strategy.
        health: what was wrong with the order asked for; None: nothing.
        correlation, duplicates: see `OrderHealth`.
        temperature, temperature_from: of the confidences shown.
    """

    recipe: str
    ordered_by: str
    health: str | None
    correlation: float | None
    duplicates: float | None
    temperature: float
    temperature_from: str


class Share(Fact):
    """Labelled images, and how many of them the version had named right beforehand, with 95 % bounds (Wilson).

    Attributes:
        classes: how often people chose each class.
    """

    labels: int
    agreed: int
    share: float | None
    low: float
    high: float
    classes: dict[str, int]


class ActiveAgainstRandom(Fact):
    """Images that queues chose, and images drawn at random for them.

    Attributes:
        versions: the first and the last version that `accuracy` is of.
        accuracy: on images drawn at random, of the newest versions: unbiased for the images unlabelled at that time.
        drawn, chosen: of all versions.
    """

    versions: tuple[str, str] | None
    accuracy: Share
    drawn: Share
    chosen: Share


def making_of(shown: Manifest) -> Making:
    """Of the version that people are served."""
    health = shown.health
    return Making(
        recipe=shown.recipe_reason,
        ordered_by=shown.ordered_by,
        health=health.sentence or None if health else None,
        correlation=health.correlation if health else None,
        duplicates=health.duplicates if health else None,
        temperature=shown.temperature,
        temperature_from=shown.temperature_from,
    )


def against_random_of(history: History) -> ActiveAgainstRandom:
    """Of all versions, and the accuracy of the newest."""
    newest = newest_with_enough(history.versions)
    return ActiveAgainstRandom(
        versions=(newest[0].version, newest[-1].version) if newest else None,
        accuracy=_share([record.drawn for record in newest]),
        drawn=_share([record.drawn for record in history.versions]),
        chosen=_share([record.chosen for record in history.versions]),
    )


def _share(groups: Sequence[Group]) -> Share:
    labels, agreed = sum(len(group.tasks) for group in groups), sum(group.agreed for group in groups)
    low, high = wilson(agreed, labels)
    classes: Counter[str] = Counter()
    for group in groups:
        classes.update(group.classes)
    return Share(
        labels=labels,
        agreed=agreed,
        share=agreed / labels if labels else None,
        low=low,
        high=high,
        classes=dict(classes),
    )

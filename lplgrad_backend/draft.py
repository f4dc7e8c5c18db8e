"""What the manifest of a new version says, from what was asked of its round and what that found. Pure but for the clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lplgrad_backend.comparison import share_right
from lplgrad_backend.rounds import Order, Outcome
from lplgrad_backend.status import now

FOUND = (
    "architecture", "recipe", "recipe_reason", "ordered_by", "health", "temperature", "temperature_from", "held_out",
    "warnings", "unreadable",
)  # fmt: skip


def draft_of(
    order: Order,
    outcome: Outcome,
    version: str,
    seed: int,
    labels: Mapping[str, int],
    total: int,
    newest_task: int,
    held_back: str,
) -> dict[str, Any]:
    """For `Store.save`.

    Args:
        labels: labelled images per class.
        total: how many unlabelled tasks there were, of which the round scored its pool.
        newest_task: highest task id that the round saw.
        held_back: why the version is not to be published; empty if it is.
    """
    return {
        "project": order.project,
        "version": version,
        "created": now(),
        "labeling": order.labeling,
        **{name: getattr(outcome, name) for name in FOUND},
        "seed": seed,
        "labels": labels,
        "scale": outcome.metrics["scale"],
        "newest_task": newest_task,
        "metrics": {**outcome.metrics, **_accuracy(order, outcome), "pool": total, "pool_scored": len(order.pool)},
        "held_back": held_back,
    }


def _accuracy(order: Order, outcome: Outcome) -> dict[str, float]:
    share = share_right(order.labeling, order.held_out, outcome.held_out)
    return {} if share is None else {"held_out_accuracy": share, "held_out_images": len(outcome.held_out)}

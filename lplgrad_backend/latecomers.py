"""Images that came after a round, in its queue: each where its gradient norm puts it among the norms, but behind its
look-alikes, and none with the score of another.

The queue is published and stays; so a latecomer gets a score between those of two of its images. What it looks like is
compared with the queue's first images and with the other latecomers of the same batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lplgrad_backend.lplgrad.spreading import directions, spread
from lplgrad_backend.scoring import Measured, Standing, among
from lplgrad_backend.store import PoolScores

TRIFLE = 1e-9
Numbers = NDArray[np.float64]


def insert(tasks: Sequence[int], measured: Sequence[Measured], known: PoolScores, scale: float) -> Standing:
    """Where N latecomers stand.

    Args:
        tasks: their numbers, which keep apart the scores of latecomers that come one batch after the other.
        measured: one that was measured without features is like nothing.
        known: of the version's round.
        scale: the version's.
    """
    alone = among(measured, known, scale)
    if not len(known.scores) or not len(measured):
        return alone
    place = np.argsort(np.concatenate([known.scores, alone.scores]), kind="stable")
    queue = place
    if all(one.answers for one in measured):
        queue = place[spread(_seen(measured, known)[place], place < len(known.scores)).numpy()]
    late = queue >= len(known.scores)
    along = np.where(late, np.nan, known.scores[np.minimum(queue, len(known.scores) - 1)])
    scores = _between(along, alone.scores, tasks, queue)
    return Standing(alone.worth, scores[len(known.scores) :], scale)


def _seen(measured: Sequence[Measured], known: PoolScores) -> Tensor:
    """Directions of the round's images and of the latecomers; zeros where no features are kept."""
    looks, late = torch.from_numpy(known.looks).float(), [one.answers.features for one in measured if one.answers]
    seen = torch.zeros(len(known.scores) + len(measured), late[0].shape[1])
    if len(looks):
        centre = looks.mean(0)
        seen[torch.from_numpy(known.head)] = directions(looks, centre)
        seen[len(known.scores) :] = directions(torch.cat(late).float(), centre)
    return seen


def _between(along: Numbers, alone: Numbers, tasks: Sequence[int], queue: NDArray[np.int64]) -> Numbers:
    """Scores of all, in the round's order and then the latecomers'; `along` [N] rises but for latecomers, which are NaN.

    A latecomer gets the score of its norm, `alone`, where that lies between its neighbours, a trifle less by its task's
    number, and else a share of the way between them. Where two neighbours leave no number between them, those that should
    stand there wait for the next two.
    """
    known = int((~np.isnan(along)).sum())
    shares = np.array([(task * 2654435761 % 2**32 + 0.5) / 2**32 for task in tasks])  # Knuth's multiplicative hash
    scores = np.empty(len(along))
    waiting: list[int] = []
    below = 0.0
    for one, above in zip([*queue.tolist(), -1], [*along.tolist(), 1.0], strict=True):
        if np.isnan(above):
            waiting.append(one)
            continue
        if waiting:
            late = np.array(waiting) - known
            found = alone[late] * (1 - TRIFLE * shares[late])
            if not _rises(below, found, above):
                found = below + (above - below) * (np.arange(len(late)) + shares[late]) / len(late)
            if _rises(below, found, above) or one < 0:
                scores[waiting], waiting = np.minimum(found, np.nextafter(1.0, 0.0)), []
        if one >= 0:
            scores[one], below = above, above
    return scores


def _rises(below: float, found: Numbers, above: float) -> bool:
    return bool((np.diff([below, *found, above]) > 0).all())

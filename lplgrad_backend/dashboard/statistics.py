"""Numbers of the status page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from lplgrad_backend.status import ProjectStatus

Z95 = 1.959964  # standard normal quantile of a two-sided 95 % interval
BINS = 20


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson, 1927); (0, 1) when nothing was tried."""
    if trials == 0:
        return 0.0, 1.0
    share, square = successes / trials, z * z
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = z / (1 + square / trials) * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def remaining_seconds(status: ProjectStatus, at: datetime) -> float | None:
    """How long the running round will take: by the last one, or by the phase's own speed where that is more."""
    if not status.busy:
        return None
    guesses = []
    if status.round_seconds and status.round_started:
        guesses.append(status.round_seconds - (at - status.round_started).total_seconds())
    if status.phase_started and 0 < status.done <= status.total:
        spent = (at - status.phase_started).total_seconds()
        guesses.append(spent * (status.total - status.done) / status.done)
    return max(0.0, *guesses) if guesses else None


def histogram(scores: NDArray[np.float64]) -> list[int]:
    """How many scores are in each of `BINS` equal parts of [0, 1]."""
    return [int(count) for count in np.histogram(scores, bins=BINS, range=(0.0, 1.0))[0]]


def two_likeliest(probabilities: NDArray[np.float32], classes: Sequence[str]) -> list[tuple[str, float]]:
    """The likeliest class and the runner-up, each with its probability."""
    order = np.argsort(-probabilities, kind="stable")[:2]
    return [(classes[int(at)], float(probabilities[at])) for at in order]

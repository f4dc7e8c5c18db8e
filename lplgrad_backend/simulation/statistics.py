"""What many runs say together: differences in pairs on the same seeds, with intervals.

The area under the learning curve (AULC) of a run is its mean accuracy over rounds. Differences of two strategies are taken
seed by seed; intervals are 95 % percentile bootstraps over seeds; p comes from flipping the signs of the differences at
random, and is corrected for the number of strategies compared (Holm, 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lplgrad_backend.simulation.replay import Run

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0
FEWEST = 4  # seeds below which an interval says nothing
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A strategy against another on the same seeds.

    Attributes:
        difference: of AULC, in shares of 1.
        wins: seeds on which it was better; half of those on which both were equal count as such.
        seeds: n.
        p: that differences as large come from chance, of both signs; corrected where several were compared.
    """

    difference: Interval
    wins: float
    seeds: int
    p: float


@dataclass(frozen=True)
class Curves:
    """A strategy's runs: labels [R], and for each seed [S, R] accuracy and balanced accuracy."""

    seeds: tuple[int, ...]
    labels: NDArray[np.int64]
    accuracy: Numbers
    balanced: Numbers

    def of(self, balanced: bool) -> Numbers:
        """[S, R] of the one or the other."""
        return self.balanced if balanced else self.accuracy


def curves(runs: Sequence[Run]) -> dict[str, Curves]:
    """Runs by strategy, on the seeds that all strategies have and the rounds that all runs have.

    Raises:
        ValueError: no seed is common to all.
    """
    by_name: dict[str, dict[int, Run]] = {}
    for run in runs:
        by_name.setdefault(run.strategy, {})[run.seed] = run
    common = sorted(set.intersection(*(set(of_seed) for of_seed in by_name.values()))) if by_name else []
    if not common:
        raise ValueError("No seed was run with every strategy.")
    rounds = min(len(of_seed[seed].rounds) for of_seed in by_name.values() for seed in common)
    return {name: _curves([of_seed[seed] for seed in common], rounds) for name, of_seed in by_name.items()}


def _curves(runs: Sequence[Run], rounds: int) -> Curves:
    parts = [run.rounds[:rounds] for run in runs]
    counted = [[one.labels for one in part] for part in parts]
    return Curves(
        seeds=tuple(run.seed for run in runs),
        labels=np.array([round(sum(column) / len(parts)) for column in zip(*counted, strict=True)], dtype=np.int64),
        accuracy=np.array([[one.accuracy for one in part] for part in parts]),
        balanced=np.array([[one.balanced_accuracy for one in part] for part in parts]),
    )


def resampled(count: int) -> NDArray[np.int64]:
    """Which of `count` seeds each resample holds, [RESAMPLES, count]; the same every time."""
    return np.random.default_rng(SEED).integers(0, count, (RESAMPLES, count))


def interval(values: Numbers) -> Interval:
    """Mean of [S] and its bootstrap interval."""
    means = values[resampled(len(values))].mean(1)
    return _interval(float(values.mean()), means)


def _interval(mean: float, resamples: Numbers) -> Interval:
    edge = (1 - LEVEL) / 2
    low, high = np.quantile(resamples, [edge, 1 - edge])
    return Interval(mean, float(low), float(high))


def compare(strategy: Curves, other: Curves, *, balanced: bool = False) -> Comparison:
    """AULC of a strategy less that of another, in pairs."""
    differences = strategy.of(balanced).mean(1) - other.of(balanced).mean(1)
    wins = float((differences > 0).sum() + 0.5 * (differences == 0).sum())
    return Comparison(interval(differences), wins, len(differences), sign_flip_p(differences))


def sign_flip_p(differences: Numbers) -> float:
    """Share of random signs under which the mean of [S] is as far from 0, two-sided."""
    signs = np.random.default_rng(SEED).choice([-1.0, 1.0], (RESAMPLES, len(differences)))
    means = np.abs((signs * differences).mean(1))
    return float((1 + (means >= abs(differences.mean()) - 1e-15).sum()) / (1 + RESAMPLES))


def holm(chances: Mapping[str, float]) -> dict[str, float]:
    """p corrected for how many there are: the k-th smallest of m is multiplied by m - k + 1, never below the one before."""
    corrected, largest = {}, 0.0
    for place, name in enumerate(sorted(chances, key=chances.__getitem__)):
        largest = max(largest, min(1.0, (len(chances) - place) * chances[name]))
        corrected[name] = largest
    return corrected


def against(all_curves: Mapping[str, Curves], other: str, *, balanced: bool = False) -> dict[str, Comparison]:
    """Every other strategy against `other`, corrected."""
    found = {
        name: compare(one, all_curves[other], balanced=balanced) for name, one in all_curves.items() if name != other
    }
    corrected = holm({name: one.p for name, one in found.items()})
    return {name: Comparison(one.difference, one.wins, one.seeds, corrected[name]) for name, one in found.items()}


# Labels saved


def labels_needed(labels: NDArray[np.int64], means: Numbers, target: float) -> float:
    """Labels at which a curve [R] first reaches `target`, on straight lines between rounds; infinite if it does not."""
    reached = np.flatnonzero(means >= target)
    if not len(reached):
        return float("inf")
    at = int(reached[0])
    if at == 0:
        return float(labels[0])
    share = (target - means[at - 1]) / (means[at] - means[at - 1])
    return float(labels[at - 1] + share * (labels[at] - labels[at - 1]))


def saving(strategy: Curves, random: Curves, *, balanced: bool = False) -> Interval:
    """Share of labels that a strategy leaves unused when its mean curve reaches random's final accuracy, in [0, 1]; 0 where
    it never does, or there are too few seeds to say. Seeds are resampled in pairs."""
    own, base = strategy.of(balanced), random.of(balanced)
    if len(own) < FEWEST:
        return Interval(0.0, 0.0, 0.0)

    def saved(chosen: NDArray[np.int64] | slice) -> float:
        needed = labels_needed(strategy.labels, own[chosen].mean(0), float(base[chosen].mean(0)[-1]))
        return max(0.0, 1 - needed / float(random.labels[-1]))

    resamples = np.array([saved(chosen) for chosen in resampled(len(own))[:2000]])
    return _interval(saved(slice(None)), resamples)


def saving_sentence(saved: Interval) -> str:
    """For a person; where the interval holds 0, nothing is claimed."""
    if saved.low <= 0:
        return "no saving shown"
    shown, low, high = (round(100 * number) for number in (saved.mean, saved.low, saved.high))
    return f"saves {shown} % of labels, 95 % interval {low}-{high} %"

"""One run: labels are given to a strategy as it asks for them, and the network is measured after every round.

All that is random follows from the seed and not from the strategy: which images are held out, which labels there are at
first, and how the network starts. So strategies differ in what they asked for alone, and can be compared in pairs. The
held-out images are measured and decide nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lplgrad_backend.errors import NotLearnable
from lplgrad_backend.lplgrad.acquisition import DEFAULT
from lplgrad_backend.lplgrad.network import Architecture, Looked, Network
from lplgrad_backend.lplgrad.ordering import Acquisition, Ordered, order_pool
from lplgrad_backend.lplgrad.pool import FeaturePool, NetworkPool, Pool
from lplgrad_backend.lplgrad.recipe import Recipe
from lplgrad_backend.lplgrad.training import fit, look_at
from lplgrad_backend.simulation.measures import measured

HELD_OUT = 0.25
MOST_ROUNDS = 10_000  # so that no two rounds of all seeds draw the same numbers
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Material:
    """What runs are made of, the same for all.

    Attributes:
        targets: which classes an image shows, bool [N, C]: one, or any number where the architecture says so.
        held_out: bool [N], which images are for measuring alone; None: a quarter, drawn anew for each seed.
        seen: what the frozen network says of each image, or the images themselves, uint8 [N, 3, S, S].
        architecture, state: the network before any training, by parameter name.
        recipe: how it is trained.
        copies: how often each image stands in the pool.
        rare: how many images the classes with an odd number keep in the pool, for each image that the most frequent class
            has before, in (0, 1]. Below 1 only where an image has one class.
    """

    targets: NDArray[np.bool_]
    held_out: NDArray[np.bool_] | None
    seen: Looked | Tensor
    architecture: Architecture
    state: Mapping[str, Tensor]
    recipe: Recipe
    copies: int = 1
    rare: float = 1.0

    @property
    def multiple(self) -> bool:
        """Any number of classes per image instead of one."""
        return self.architecture.multiple

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each image, int64 [N], where it has one."""
        labels: NDArray[np.int64] = self.targets.argmax(1)
        return labels


@dataclass(frozen=True)
class Budget:
    """How many labels there are at first, how many come with each round, how many in all, and how many images the pool
    has at most, before rare classes lose some."""

    first: int
    each: int
    last: int
    pool: int = 10_000


@dataclass(frozen=True)
class Round:
    """What one round knew and did.

    Attributes:
        labels: number of labels trained on.
        accuracy, balanced_accuracy: on the held-out images, in [0, 1]; where an image has several classes, the two
            numbers of `measures` for that.
        per_class: labels of each class [C].
        chosen: images labelled since the round before, in order.
        ordered_by: strategy that made the order; another one than asked for where `complaint` says why.
        correlation, duplicates, complaint: health of the next order, as of `ordering.Health`.
        epochs, loss: of training.
        seconds: of training and of ordering.
    """

    labels: int
    accuracy: float
    balanced_accuracy: float
    per_class: tuple[int, ...]
    chosen: tuple[int, ...]
    ordered_by: str | None
    correlation: float | None
    duplicates: float | None
    complaint: str | None
    epochs: int
    loss: float
    seconds_training: float
    seconds_ordering: float


@dataclass(frozen=True)
class Run:
    """All rounds of one seed and strategy."""

    strategy: str
    seed: int
    held_out: int
    rounds: tuple[Round, ...]

    def as_plain(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Run:
        """Back from a file."""
        rounds = tuple(
            Round(**{**one, "chosen": tuple(one["chosen"]), "per_class": tuple(one["per_class"])})
            for one in values["rounds"]
        )
        return cls(values["strategy"], values["seed"], values["held_out"], rounds)


@dataclass(frozen=True)
class Division:
    """Images [.] of a seed: those to measure with, those labelled at first, and the rest of the pool."""

    held_out: NDArray[np.int64]
    first: NDArray[np.int64]
    pool: NDArray[np.int64]


def divide(material: Material, budget: Budget, seed: int) -> Division:
    """Which images are which for this seed.

    Raises:
        NotLearnable: there are too few images for the budget, or the first labels cannot hold two classes.
    """
    random = np.random.default_rng(seed)
    count = len(material.targets)
    held_out = material.held_out
    if held_out is None:
        held_out = np.zeros(count, dtype=bool)
        held_out[random.permutation(count)[: max(1, round(HELD_OUT * count))]] = True
    pool = random.permutation(np.flatnonzero(~held_out))[: max(1, budget.pool // material.copies)]
    if material.rare < 1:
        assert not material.multiple
        often = material.targets[pool].sum(0).max()
        pool = _thinned(pool, material.labels, max(1, round(material.rare * often)))
    pool = random.permutation(np.repeat(pool, material.copies))
    if len(pool) < budget.last or _classes_in(material, pool) < 2:
        raise NotLearnable(
            f"{len(pool)} images can be labelled, and the simulation asks for {budget.last} labels of at least two classes. "
            "Lower --budget, or give more images."
        )
    first = budget.first
    while _classes_in(material, pool[:first]) < 2:
        first += 1  # as in production, where no round is due before there are two classes
    return Division(np.flatnonzero(held_out), pool[:first], pool[first:])


def _classes_in(material: Material, images: NDArray[np.int64]) -> int:
    return int(material.targets[images].any(0).sum())


def _thinned(pool: NDArray[np.int64], labels: NDArray[np.int64], few: int) -> NDArray[np.int64]:
    kept = np.ones(len(pool), dtype=bool)
    for rare in range(1, int(labels.max()) + 1, 2):
        kept[np.flatnonzero(labels[pool] == rare)[few:]] = False
    return pool[kept]


class Replay:
    """Replays runs with one network. Not for several threads."""

    def __init__(self, material: Material, budget: Budget) -> None:
        self._material, self._budget = material, budget
        self._network = Network(material.architecture)
        self._last_start: tuple[int, dict[str, Tensor]] | None = None

    def run(self, strategy: str, seed: int) -> Run:
        """One run, a function of material, budget, strategy and seed.

        Raises:
            NotLearnable: too few images or classes.
            KeyError: there is no such strategy.
        """
        division = divide(self._material, self._budget, seed)
        start = self._start(seed)
        labelled, pool = division.first, division.pool
        rounds: list[Round] = []
        chosen = labelled
        while True:
            began = time.perf_counter()
            self._network.load_state_dict(start)
            *_, last = fit(
                self._network,
                self._part(labelled),
                self._targets(labelled),
                self._material.recipe,
                seed=seed,
                device=CPU,
            )
            trained = time.perf_counter()
            wanted = min(self._budget.each, self._budget.last - len(labelled))
            ordered = (
                self._order(strategy, labelled, pool, wanted, MOST_ROUNDS * seed + len(rounds)) if wanted > 0 else None
            )
            seconds = (trained - began, time.perf_counter() - trained)
            news = (last.epoch, last.loss)
            rounds.append(self._round(labelled, chosen, division.held_out, ordered, news, seconds))
            if ordered is None:
                return Run(strategy, seed, len(division.held_out), tuple(rounds))
            at = ordered.queue.positions.numpy()
            chosen, pool = pool[at], np.delete(pool, at)
            labelled = np.concatenate([labelled, chosen])

    def _start(self, seed: int) -> dict[str, Tensor]:
        """The network before training: the material's weights, and for this seed what they leave open."""
        if self._last_start is None or self._last_start[0] != seed:
            torch.manual_seed(seed)
            fresh = Network(self._material.architecture).state_dict()
            self._last_start = seed, {**fresh, **self._material.state}
        return self._last_start[1]

    def _order(
        self, strategy: str, labelled: NDArray[np.int64], pool: NDArray[np.int64], wanted: int, seed: int
    ) -> Ordered:
        """The default is watched as in production; the others are what their names say whatever comes of it."""
        wish = Acquisition(strategy=strategy, strict=strategy != DEFAULT)
        return order_pool(self._pool(labelled, pool), wish, seed, wanted)

    def _pool(self, labelled: NDArray[np.int64], pool: NDArray[np.int64]) -> Pool:
        known, open_ones, counts = self._part(labelled), self._part(pool), self._targets(labelled).sum(0)
        if isinstance(known, Looked) and isinstance(open_ones, Looked):
            return FeaturePool(self._network, open_ones, known, counts)
        assert isinstance(known, Tensor)
        assert isinstance(open_ones, Tensor)
        return NetworkPool(self._network, open_ones, known, counts)

    def _part(self, images: NDArray[np.int64]) -> Looked | Tensor:
        at, seen = torch.from_numpy(images), self._material.seen
        if isinstance(seen, Tensor):
            return seen[at]
        return Looked(seen.logits[at], seen.features[at], tuple(level[at] for level in seen.pooled))

    def _targets(self, images: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self._material.targets[images]).float()

    def _round(
        self,
        labelled: NDArray[np.int64],
        chosen: NDArray[np.int64],
        held_out: NDArray[np.int64],
        ordered: Ordered | None,
        news: tuple[int, float],
        seconds: tuple[float, float],
    ) -> Round:
        material = self._material
        accuracy, balanced = measured(self._logits(held_out), material.targets[held_out], material.multiple)
        health = ordered.health if ordered else None
        return Round(
            labels=len(labelled),
            accuracy=accuracy,
            balanced_accuracy=balanced,
            per_class=tuple(material.targets[labelled].sum(0).tolist()),
            chosen=tuple(chosen.tolist()),
            ordered_by=ordered.ordered_by if ordered else None,
            correlation=_finite(health.correlation) if health else None,
            duplicates=health.duplicates if health else None,
            complaint=health.sentence if health else None,
            epochs=news[0],
            loss=news[1],
            seconds_training=round(seconds[0], 4),
            seconds_ordering=round(seconds[1], 4),
        )

    def _logits(self, images: NDArray[np.int64]) -> NDArray[np.float32]:
        part = self._part(images)
        with torch.no_grad():
            logits: NDArray[np.float32] = (
                self._network.head(part.features) if isinstance(part, Looked) else look_at(self._network, part).logits
            ).numpy()
        return logits


def _finite(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if value == value else None

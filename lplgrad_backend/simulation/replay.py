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

from lplgrad_backend.lplgrad.acquisition import DEFAULT
from lplgrad_backend.lplgrad.cold_start import is_cold, simple_features
from lplgrad_backend.lplgrad.network import Looked, Network
from lplgrad_backend.lplgrad.ordering import Acquisition, Ordered, order_cold, order_pool
from lplgrad_backend.lplgrad.pool import FeaturePool, NetworkPool, Pool
from lplgrad_backend.lplgrad.training import fit, look_at
from lplgrad_backend.simulation.material import Budget, Division, Material, begun_typically, divide
from lplgrad_backend.simulation.measures import measured

MOST_ROUNDS = 10_000  # so that no two rounds of all seeds draw the same numbers
CPU = torch.device("cpu")


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
        start = self._start(seed)
        division = self._division(seed, start)
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
            at = ordered.queue.positions[:wanted].numpy()
            chosen, pool = pool[at], np.delete(pool, at)
            labelled = np.concatenate([labelled, chosen])

    def _division(self, seed: int, start: dict[str, Tensor]) -> Division:
        division = divide(self._material, self._budget, seed)
        if not self._budget.cold_start:
            return division
        self._network.load_state_dict(start)
        features = self._compared_by(np.concatenate([division.first, division.pool]))
        return begun_typically(division, self._material, features, self._budget.first, seed)

    def _compared_by(self, images: NDArray[np.int64]) -> Tensor:
        """What cold_order.py would order these images by: features of pretrained weights, or colours and edges."""
        part = self._part(images)
        if isinstance(part, Looked):
            return part.features
        return look_at(self._network, part).features if self._material.state else simple_features(part)

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
        """The default is watched as in production, and where the budget begins as there also waits as there until it knows
        enough labels (trainer.too_cold); the others are what their names say whatever comes of it."""
        wish = Acquisition(strategy=strategy, strict=strategy != DEFAULT)
        seen = self._pool(labelled, pool)
        cold = isinstance(seen, FeaturePool) and is_cold(seen.labelled_counts)
        if cold and self._budget.cold_start and strategy == DEFAULT:
            return order_cold(seen, wish, seed)
        return order_pool(seen, wish, seed, wanted)

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

"""What runs are made of, and how a seed divides it: images to measure with, those that are labelled at first, and a pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lplgrad_backend.errors import NotLearnable
from lplgrad_backend.lplgrad.cold_start import cold_queue
from lplgrad_backend.lplgrad.network import Architecture, Looked
from lplgrad_backend.lplgrad.recipe import Recipe

HELD_OUT = 0.25


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
    has at most, before rare classes lose some. `cold_start`: the first are those that the backend asks for before there is
    a version (lplgrad/cold_start.py), instead of any."""

    first: int
    each: int
    last: int
    pool: int = 10_000
    cold_start: bool = False


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
    first = _enough(material, pool, budget.first)
    return Division(np.flatnonzero(held_out), pool[:first], pool[first:])


def begun_typically(division: Division, material: Material, features: Tensor, wanted: int, seed: int) -> Division:
    """The same images, of which the most typical ones are labelled at first.

    Args:
        features: of all that can be labelled, in the order of `division.first`, `division.pool`: [N, D].
        wanted: how many.
    """
    images = np.concatenate([division.first, division.pool])
    images = images[cold_queue(features, features[:0], seed).positions.numpy()]
    first = _enough(material, images, wanted)
    return Division(division.held_out, images[:first], images[first:])


def _enough(material: Material, images: NDArray[np.int64], wanted: int) -> int:
    """As in production, where no round is due before there are two classes."""
    while _classes_in(material, images[:wanted]) < 2:
        wanted += 1
    return wanted


def _classes_in(material: Material, images: NDArray[np.int64]) -> int:
    return int(material.targets[images].any(0).sum())


def _thinned(pool: NDArray[np.int64], labels: NDArray[np.int64], few: int) -> NDArray[np.int64]:
    kept = np.ones(len(pool), dtype=bool)
    for rare in range(1, int(labels.max()) + 1, 2):
        kept[np.flatnonzero(labels[pool] == rare)[few:]] = False
    return pool[kept]

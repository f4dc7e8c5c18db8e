"""Which images of a pool to label first: strategies by name, and the score by which Label Studio orders its queue.

The notation is that of worth.py, where what an image is worth by itself is defined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from lplgrad_backend.lplgrad.coverage import cover
from lplgrad_backend.lplgrad.diversity import Chosen, drawn_apart, farthest_first
from lplgrad_backend.lplgrad.pool import Pool
from lplgrad_backend.lplgrad.worth import WORTH, entropy_gradient_norm, finite, logarithms, undecided_and_rare_norm

DEFAULT = "lplgrad-coverage"
SHARPNESS = 1.0
SCREENED_SHARE = 0.3
# Positive doubles are ordered as their bits are when read as integers, so that the next double is the next integer.
BITS_OF_LOWEST, BITS_OF_ONE = 0x0010 << 48, 0x3FF0 << 48  # of the smallest normal double, and of 1.0


def scores(norms: Tensor, scale: float) -> Tensor:
    """Label Studio's scores s / (s + g): in (0, 1), lowest for the largest norm, so that it is served first.

    Different norms get different scores and equal norms equal ones: where the formula rounds two to one number, or to 0 or
    1, they are moved to the nearest numbers that keep the order. A norm scored alone may differ from that by these steps.

    Args:
        norms: g >= 0, [N].
        scale: s > 0; the g that gets 0.5.

    Returns:
        float64 [N], each a normal number.

    Raises:
        NonFiniteScore: a norm is NaN or infinite; it names the positions.
        ValueError: a norm is negative, or the scale not positive and finite.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"The scale of scores is {scale}; it must be positive and finite.")
    given = finite(norms, "the gradient norms")
    if (given < 0).any():
        raise ValueError(f"A gradient norm is {given.min().item()}; norms are never negative.")
    ascending, where = torch.unique(given, return_inverse=True)
    return _strictly_falling(1.0 / (1.0 + ascending / scale))[where]


def _strictly_falling(values: Tensor) -> Tensor:
    """The nearest strictly falling numbers in (0, 1) to values in [0, 1] that never rise, float64 [K]."""
    rank = torch.arange(len(values), device=values.device)
    bits = values.view(torch.int64).clamp(max=BITS_OF_ONE - 1)
    falling = (bits + rank).cummin(0).values - rank
    return torch.maximum(falling, BITS_OF_LOWEST + rank.flip(0)).view(torch.float64)


def queue_scores(worth: Tensor, scale: float) -> Tensor:
    """Scores along a queue whose worth never rises, float64 [K]: strictly rising, whatever is worth the same.

    Args:
        worth: finite and >= 0, [K], in the queue's order.
        scale: s > 0; the worth that gets 0.5.
    """
    values = 1.0 / (1.0 + worth.double() / scale)
    return _strictly_falling(values.flip(0)).flip(0)


@dataclass(frozen=True)
class Queue:
    """The first K images of a pool to label.

    Attributes:
        positions: int64 [K], distinct, in the order in which to label them.
        worth: float64 [K], finite, what each is worth at its turn, in the strategy's own unit; it never rises.
    """

    positions: Tensor
    worth: Tensor


Strategy = Callable[[Pool, int, int], Queue]
"""(pool, budget, seed) -> the first min(budget, N) images. The seed decides between equals and whatever is drawn; ties
never go by position. Raises ValueError for a negative budget, and NonFiniteScore with the positions of images about which
something is not finite."""


# Strategies


def _by(worth_of: Callable[[Pool], Tensor]) -> Strategy:
    """Order by what each image is worth by itself."""

    def strategy(pool: Pool, budget: int, seed: int) -> Queue:
        return _ranked(worth_of(pool).cpu(), budget, seed)

    return strategy


def screened(pool: Pool, budget: int, seed: int) -> Queue:
    """g, measured only where ||d|| is among the top 30 %; the others stand behind these, ordered by ||d||.

    Measured on digits (benchmarks/screening.md): of the exact top 10 % it had all with the 4 networks whose likeliest
    class had a mean probability of 0.8 and more, and 57 to 98 % with 5 less sure ones, whose ties hide in the rest. On
    ResNet-18 it costs about 1.9 forward passes, exact norms for all 3.2.
    """
    rough = entropy_gradient_norm(pool).cpu()
    order = _ranked(rough, len(rough), seed).positions
    inside, outside = order.split([count := math.ceil(SCREENED_SHARE * len(order)), len(order) - count])
    exact = finite(pool.gradient_norms(inside), "the gradient norms").cpu()
    front = _ranked(exact, count, seed)
    # g counts ||d|| in itself, as the norm of the last bias; without such a bias the others have to be held back
    behind = rough[outside].clamp(max=float(exact.min())) if count else rough
    positions, worth = torch.cat([inside[front.positions], outside]), torch.cat([front.worth, behind])
    wanted = _wanted(budget, len(order))
    return Queue(positions[:wanted], worth[:wanted])


def badge(pool: Pool, budget: int, seed: int) -> Queue:
    """k-means++ over the last layer's gradients, were the likeliest outcome the label: (p - one-hot) ⊗ f (Ash et al.,
    arXiv 1906.03671, algorithm 1). Worth is the squared distance to the nearest one before."""
    likely, unlikely = logarithms(pool)
    top = likely > unlikely if pool.multiple else F.one_hot(likely.argmax(1), likely.shape[1])
    residuals, features = likely.exp() - top.double(), finite(pool.features, "the features")

    def choose(order: Tensor, wanted: int, random: torch.Generator) -> Chosen:
        return drawn_apart(residuals[order], features[order], wanted, random)

    return _chosen(choose, len(features), budget, seed)


def coreset(pool: Pool, budget: int, seed: int) -> Queue:
    """k-center greedy on features, from the labelled ones (Sener and Savarese, arXiv 1708.00489, algorithm 1). Worth is
    the distance to the nearest one before."""
    features, labelled = finite(pool.features, "the features"), finite(pool.labelled_features, "labelled features")

    def choose(order: Tensor, wanted: int, random: torch.Generator) -> Chosen:
        return farthest_first(features[order], labelled, wanted)

    return _chosen(choose, len(features), budget, seed)


def covering(worth_of: Callable[[Pool], Tensor] = undecided_and_rare_norm, sharpness: float = SHARPNESS) -> Strategy:
    """Cover what the pool's images are worth, them and their look-alikes (`coverage`). Worth is what is newly covered."""

    def strategy(pool: Pool, budget: int, seed: int) -> Queue:
        weights, features = worth_of(pool), finite(pool.features, "the features")
        labelled = finite(pool.labelled_features, "labelled features")

        def choose(order: Tensor, wanted: int, random: torch.Generator) -> Chosen:
            return cover(features[order], weights[order], labelled, sharpness, wanted)

        return _chosen(choose, len(features), budget, seed)

    return strategy


def at_random(pool: Pool, budget: int, seed: int) -> Queue:
    """A random order. Worth is the number drawn, in [0, 1)."""
    drawn = torch.rand(len(pool), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return _ranked(drawn, budget, seed)


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        "lplgrad": _by(WORTH["lplgrad"]),
        "lplgrad-ladder": _by(WORTH["lplgrad-ladder"]),
        "lplgrad-coverage": covering(),
        "lplgrad-screened": screened,
        "lplgrad-head": _by(WORTH["lplgrad-head"]),
        "entropy": _by(WORTH["entropy"]),
        "margin": _by(WORTH["margin"]),
        "least-confidence": _by(WORTH["least-confidence"]),
        "predicted-loss": _by(WORTH["predicted-loss"]),
        "badge": badge,
        "coreset": coreset,
        "random": at_random,
    }
)


def _ranked(worth: Tensor, budget: int, seed: int) -> Queue:
    shuffled = torch.randperm(len(worth), generator=torch.Generator().manual_seed(seed))
    order = shuffled[worth[shuffled].argsort(descending=True, stable=True)][: _wanted(budget, len(worth))]
    return Queue(order, worth[order])


def _chosen(choose: Callable[[Tensor, int, torch.Generator], Chosen], count: int, budget: int, seed: int) -> Queue:
    """What `choose` takes of the positions 0 … count - 1, which it is given shuffled."""
    random = torch.Generator().manual_seed(seed)
    order, wanted = torch.randperm(count, generator=random), _wanted(budget, count)
    if wanted == 0:
        return Queue(order[:0], torch.zeros(0, dtype=torch.float64))
    taken, worth = choose(order, wanted, random)
    return Queue(order[taken], worth)


def _wanted(budget: int, count: int) -> int:
    if budget < 0:
        raise ValueError(f"The budget of a strategy is {budget}; it is a number of images.")
    return min(budget, count)

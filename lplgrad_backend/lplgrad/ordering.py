"""The querying phase of one round: a pool, and which of its images to label in which order.

Before an order is used it is looked at (`Health`): does the strategy still rank like uncertainty, does the head of the queue
show one class again and again, or one picture? Where it does, a safe strategy orders instead, and the round says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lplgrad_backend.lplgrad import acquisition
from lplgrad_backend.lplgrad.acquisition import STRATEGIES, Queue, Strategy
from lplgrad_backend.lplgrad.cold_start import cold_queue
from lplgrad_backend.lplgrad.coverage import alike
from lplgrad_backend.lplgrad.pool import Pool
from lplgrad_backend.lplgrad.spreading import NEAR, directions, spread
from lplgrad_backend.lplgrad.worth import WORTH, entropy

SAFE = "badge"
TYPICALITY = "typicality"
SLOW, SLOW_HEAD = ("badge", "coreset"), 400
HEAD = 50
LOWEST_CORRELATION, MOST_DUPLICATES, FEWEST_CLASSES = 0.0, 0.5, 0.4


@dataclass(frozen=True)
class Acquisition:
    """How to order a pool.

    Attributes:
        strategy: a name of `acquisition.STRATEGIES`.
        sharpness: of the kernel of `lplgrad-coverage`; None: no coverage, so the paper's order by gradient norm.
        strict: keep the strategy whatever its health.
        random_share: of the queue, in [0, 1), is drawn at random from the whole pool.
        apart: at least so many places lie between look-alikes, as far as there are others to put between them; 1: no
            matter.
        draw: with the seed, decides what is drawn; orders made one after the other with the same seed want different ones.
    """

    strategy: str = acquisition.DEFAULT
    sharpness: float | None = acquisition.SHARPNESS
    strict: bool = False
    random_share: float = 0.0
    apart: int = 1
    draw: int = 0


@dataclass(frozen=True)
class Health:
    """What can be seen of an order without labels.

    Attributes:
        correlation: Spearman's, of what images are worth by themselves and their entropy, over the pool; NaN where either
            is the same for all.
        head_classes: how many of the first 50 are predicted to be of each class [C].
        duplicates: share of the first 50 that are near-duplicates of a labelled image or of one before (cosine of the
            features above 0.95).
        sentence: what is wrong, for a person; None: nothing.
    """

    correlation: float
    head_classes: tuple[int, ...]
    duplicates: float
    sentence: str | None


@dataclass(frozen=True)
class Ordered:
    """A pool in order.

    Attributes:
        pool: the pool.
        queue: its first images; `worth` never rises, so `acquisition.scores` of it never fall.
        ordered_by: the strategy that made the order; another one than asked for where `health` says why.
        health: of the order asked for.
        random: bool [K], which entries of the queue were drawn at random. They are a uniform sample of the pool, spread
            evenly over the queue.
    """

    pool: Pool
    queue: Queue
    ordered_by: str
    health: Health
    random: Tensor

    @cached_property
    def norms(self) -> Tensor:
        """Each image's gradient norm, float64 [N] on the processor, whatever the order is made of; measured when first
        asked for."""
        return self.pool.gradient_norms(torch.arange(len(self.pool))).cpu()


def order_pool(pool: Pool, acquisition: Acquisition, seed: int, budget: int | None = None) -> Ordered:
    """Order a pool, or its first `budget` images.

    Raises:
        KeyError: there is no such strategy.
        ValueError: the budget is negative or the random share not in [0, 1).
        NonFiniteScore: naming positions in the pool.
    """
    wanted = len(pool) if budget is None else min(budget, len(pool))
    slots, drawn = _drawn(pool, acquisition, seed, wanted)
    name, strategy = _strategy(acquisition, whole=budget is None)
    queue = strategy(pool, max(wanted, HEAD), seed)
    health = examine(pool, queue, name)
    if health.sentence and not acquisition.strict and name not in (SAFE, "random"):
        name, strategy = _strategy(replace(acquisition, strategy=SAFE), whole=budget is None)
        queue = strategy(pool, min(wanted + len(drawn), len(pool)), seed)
    elif len(queue.positions) < min(wanted + len(drawn), len(pool)):
        queue = strategy(pool, wanted + len(drawn), seed)
    mixed = interleaved(queue, drawn, slots)
    if acquisition.apart > 1 and len(mixed.positions):
        seen = directions(pool.features[mixed.positions], pool.features.mean(0))
        order = spread(seen, slots.numpy(), gap=acquisition.apart)
        mixed, slots = Queue(mixed.positions[order], mixed.worth), slots[order]
    return Ordered(pool, mixed, name, health, slots)


def order_cold(pool: Pool, acquisition: Acquisition, seed: int) -> Ordered:
    """Order a pool of which too few labels are known to ask the network (`cold_start.is_cold`): typical images first, each
    with look-alikes that no image before it nor a labelled one covers; the random share as always."""
    slots, drawn = _drawn(pool, acquisition, seed, len(pool))
    queue = cold_queue(pool.features.cpu(), pool.labelled_features.cpu(), seed)
    return Ordered(pool, interleaved(queue, drawn, slots), TYPICALITY, examine(pool, queue, TYPICALITY), slots)


def _drawn(pool: Pool, acquisition: Acquisition, seed: int, wanted: int) -> tuple[Tensor, Tensor]:
    """Which of the first `wanted` places are drawn at random, bool [wanted], and the positions of the images there."""
    slots = random_slots(wanted, acquisition.random_share, seed + acquisition.draw)
    return slots, STRATEGIES["random"](pool, int(slots.sum()), seed + acquisition.draw + 1).positions


def _strategy(wanted: Acquisition, *, whole: bool) -> tuple[str, Strategy]:
    """By its name; `whole`: the whole pool is to be ordered."""
    if wanted.strategy != "lplgrad-coverage":
        found = STRATEGIES[wanted.strategy]
        return wanted.strategy, headed(found) if whole and wanted.strategy in SLOW else found
    if wanted.sharpness is None:
        return "lplgrad", STRATEGIES["lplgrad"]
    return wanted.strategy, acquisition.covering(sharpness=wanted.sharpness)


def headed(strategy: Strategy, head: int = SLOW_HEAD) -> Strategy:
    """The strategy for the first `head` images, and behind them the others by margin, worth less than these. For strategies
    that cost the pool's size times the budget: 10,000 images of 1,280 features take them a minute."""

    def ordered(pool: Pool, budget: int, seed: int) -> Queue:
        front = strategy(pool, min(budget, head), seed)
        others = STRATEGIES["margin"](pool, len(pool), seed)
        left = ~torch.isin(others.positions, front.positions)
        least = front.worth[-1] if len(front.worth) else 1.0
        positions = torch.cat([front.positions, others.positions[left]])[:budget]
        return Queue(positions, torch.cat([front.worth, least * others.worth[left].clamp(0, 1)])[:budget])

    return ordered


# The random share


def random_slots(count: int, share: float, seed: int) -> Tensor:
    """Which of the first `count` places of a queue go to images drawn at random: bool [count], share of every prefix, up
    to one."""
    if not 0 <= share < 1:
        raise ValueError(f"The random share of a queue is {share}; it must be at least 0 and below 1.")
    start = float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
    steps = (torch.arange(count + 1, dtype=torch.float64) * share + start).floor()
    return steps.diff() > 0


def interleaved(queue: Queue, drawn: Tensor, slots: Tensor) -> Queue:
    """The queue without the images drawn, and these at their places [K], worth as much as the place's neighbours."""
    kept = ~torch.isin(queue.positions, drawn)
    room = len(slots) - len(drawn)
    positions = torch.empty(len(slots), dtype=torch.int64)
    worth = torch.empty(len(slots), dtype=torch.float64)
    positions[slots], positions[~slots] = drawn, queue.positions[kept][:room]
    own = queue.worth[kept][:room]
    worth[~slots] = own
    if room:
        before = (~slots).cumsum(0)[slots] - 1  # the place of the last other one before
        worth[slots] = (own[before.clamp(min=0)] + own[(before + 1).clamp(max=room - 1)]) / 2
    else:
        worth[slots] = 0.0
    return Queue(positions, worth)


# Health


def examine(pool: Pool, queue: Queue, strategy: str) -> Health:
    """Look at an order; `strategy` made it."""
    if len(pool) == 0:
        return Health(math.nan, (0,) * pool.logits.shape[1], 0.0, None)
    head = queue.positions[:HEAD]
    worth = WORTH.get(strategy)
    correlation = spearman(worth(pool), entropy(pool)) if worth else math.nan
    predicted = _predicted(pool)
    in_head, in_pool = predicted[head].sum(0), predicted.sum(0)
    duplicates = near_duplicates(pool, head)
    sentence = _complaint(strategy, correlation, in_head, in_pool, duplicates)
    return Health(correlation, tuple(int(count) for count in in_head), duplicates, sentence)


def _predicted(pool: Pool) -> Tensor:
    """Whether an image is predicted to be of a class [N, C]."""
    if pool.multiple:
        return pool.logits.cpu() > 0
    return torch.nn.functional.one_hot(pool.logits.argmax(1), pool.logits.shape[1]).cpu().bool()


def _complaint(strategy: str, correlation: float, in_head: Tensor, in_pool: Tensor, duplicates: float) -> str | None:
    """One sentence about the worst that was found."""
    if correlation < LOWEST_CORRELATION:
        return f"{strategy} ranks the pool against its uncertainty (rank correlation {correlation:.2f})."
    if duplicates > MOST_DUPLICATES:
        return f"{duplicates:.0%} of the head of the queue by {strategy} are near-duplicates."
    if int(in_head.sum()) >= HEAD // 2 and _variety(in_head) < FEWEST_CLASSES * _variety(in_pool):
        return f"{int(in_head.max())} of the first {HEAD} images by {strategy} are predicted to be of one class."
    return None


def _variety(counts: Tensor) -> float:
    """How many equally frequent classes are as varied as these counts [C]: exp of their entropy."""
    shares = counts.double() / counts.sum().clamp(min=1)
    return float(torch.exp(torch.special.entr(shares).sum()))


def near_duplicates(pool: Pool, head: Tensor) -> float:
    """Share of these images that are near-duplicates of a labelled image or of one of these before it."""
    if len(head) == 0:
        return 0.0
    centre, features = pool.features.mean(0), pool.features[head]
    earlier = alike(features, features, centre).tril(-1).amax(1)
    if len(pool.labelled_features):
        earlier = torch.maximum(earlier, alike(features, pool.labelled_features, centre).amax(1))
    return float((earlier > NEAR).double().mean())


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation of [N] and [N], equal values sharing their mean rank; NaN where all are equal."""
    ranks = torch.stack([_ranks(first), _ranks(second)])
    if len(first) < 2 or bool((ranks.std(1) == 0).any()):
        return math.nan
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, where, counts = torch.unique(values.cpu(), return_inverse=True, return_counts=True)
    ends = counts.cumsum(0)
    ranks: Tensor = (ends - (counts - 1) / 2.0)[where].double()
    return ranks

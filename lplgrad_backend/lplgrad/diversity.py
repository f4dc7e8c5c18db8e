"""Choosing points that differ: farthest first (k-center), or drawn far apart (k-means++)."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 1024
Chosen = tuple[Tensor, Tensor]
"""Positions int64 [K], and float64 [K] how far each was from all chosen before it; the latter never rises."""


def farthest_first(points: Tensor, centres: Tensor, budget: int) -> Chosen:
    """Take the point farthest from all centres and points taken so far, again and again (Sener and Savarese,
    arXiv 1708.00489, algorithm 1). Without centres the first is the point nearest to the mean.

    Args:
        points: float64 [N, D], N >= 1.
        centres: float64 [L, D].
        budget: K, 1 to N.
    """
    centre = points.mean(0)
    points, centres = points - centre, centres - centre  # small numbers lose least in the differences of squares
    lengths = points.square().sum(1)
    if len(centres):
        nearest = torch.cat([torch.cdist(part, centres).amin(1) for part in points.split(ROWS)])
        at = int(nearest.argmax())
    else:
        at = int(lengths.argmin())
        nearest = _distances(points, lengths, at)
    taken, gaps = [at], [nearest.max()]
    while len(taken) < budget:
        nearest = torch.minimum(nearest, _distances(points, lengths, at))
        nearest[taken[-1]] = -1.0  # below every distance: never taken again
        at = int(nearest.argmax())
        taken.append(at)
        gaps.append(nearest[at])
    return torch.tensor(taken), torch.stack(gaps).cpu()


def _distances(points: Tensor, lengths: Tensor, at: int) -> Tensor:
    """From each point [N, D], whose squared lengths are known, to the one at `at`: [N]."""
    return (lengths + lengths[at] - 2 * (points @ points[at])).clamp(min=0).sqrt()


def drawn_apart(left: Tensor, right: Tensor, budget: int, random: torch.Generator) -> Chosen:
    """k-means++ over the products of `left` and `right`, which are never multiplied out: first the longest, then each
    with a probability proportional to its squared distance from the nearest one taken.

    Args:
        left, right: float64 [N, C] and [N, D], N >= 1; a point is the outer product of its rows, [C x D].
        budget: K, 1 to N.
    """
    squared = left.square().sum(1) * right.square().sum(1)
    at = int(squared.argmax())
    taken, gaps = [at], [squared[at]]
    nearest = torch.full_like(squared, torch.inf)
    while len(taken) < budget:
        distances = squared + squared[at] - 2 * (left @ left[at]) * (right @ right[at])
        nearest = torch.minimum(nearest, distances.clamp(min=0))
        nearest[taken] = 0.0
        at = _draw(nearest, taken, random)
        taken.append(at)
        gaps.append(nearest[at])
    return torch.tensor(taken), torch.stack(gaps).cummin(0).values.cpu()


def _draw(weights: Tensor, taken: list[int], random: torch.Generator) -> int:
    """A position by weight; where all weights are 0, any that is not taken."""
    chances = weights.cpu()
    if not chances.any():
        chances = torch.ones_like(chances)
        chances[taken] = 0.0
    return int(torch.multinomial(chances / chances.max(), 1, generator=random))

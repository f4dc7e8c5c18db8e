"""What a training step sees: which images are drawn, and how they are changed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_EPOCH = 8


def expected_draws(targets: Tensor, balanced: bool) -> Tensor:
    """How often each image [N] is to be drawn in an epoch, on average: once, or so that every class that has labels
    comes equally often. A few images come several times, so that batch normalisation has something to average."""
    count = len(targets)
    weights = torch.ones(count, dtype=torch.float64)
    if balanced:
        per_class = targets.double().sum(0)
        weights = (targets.double() / per_class.clamp(min=1e-12)).sum(1)
    return weights * (max(count, SMALLEST_EPOCH) / weights.sum().clamp(min=1e-12))


def draw(expected: Tensor, batch: int, random: torch.Generator) -> tuple[Tensor, ...]:
    """Batches of positions for one epoch, equally large up to one. Each image comes as often as `expected` [N] says,
    rounded up or down at random: systematic sampling, which is a plain permutation where all are expected once."""
    order = torch.randperm(len(expected), generator=random)
    total = round(float(expected.sum()))
    ends = expected[order].cumsum(0)
    marks = torch.arange(total, dtype=torch.float64) + torch.rand((), generator=random, dtype=torch.float64)
    drawn = order[torch.searchsorted(ends, marks * (ends[-1] / total)).clamp(max=len(order) - 1)]
    shuffled = drawn[torch.randperm(total, generator=random)]
    return shuffled.tensor_split(math.ceil(total / batch))


def augment(images: Tensor, shift: int, flip: bool, random: torch.Generator) -> Tensor:
    """Shift each image [N, 3, S, S] by up to `shift` pixels in both directions, edges repeated; mirror half of them."""
    count, _, height, width = images.shape
    if shift:
        moves = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=random).to(images.device)
        rows = (moves[0] + torch.arange(height, device=images.device)).unsqueeze(2)  # [N, H, 1]
        columns = (moves[1] + torch.arange(width, device=images.device)).unsqueeze(1)  # [N, 1, W]
        at = torch.arange(count, device=images.device).view(-1, 1, 1)
        padded = F.pad(images, (shift, shift, shift, shift), mode="replicate").permute(0, 2, 3, 1)
        images = padded[at, rows, columns].permute(0, 3, 1, 2)
    if flip:
        mirrored = (torch.rand(count, generator=random) < 0.5).to(images.device)
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    return images.contiguous()

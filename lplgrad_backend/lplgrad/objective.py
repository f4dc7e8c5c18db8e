"""The two losses that are minimised together (see training.py)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def full(value: Tensor) -> Tensor:
    """A value of half precision as float32; others as they are."""
    return value.float() if value.dtype.itemsize < 4 else value


def main_loss(logits: Tensor, targets: Tensor, multiple: bool) -> Tensor:
    """Loss of each image [N]: cross-entropy to soft targets, or binary cross-entropies summed over the classes."""
    if multiple:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
    return F.cross_entropy(logits, targets, reduction="none")


def ranking_loss(predicted: Tensor, losses: Tensor, margin: float) -> Tensor:
    """How wrongly the predicted losses [N] order the losses [N], which count as data. A scalar; 0 for fewer than two."""
    half = len(losses) // 2
    if half == 0:
        return predicted.sum() * 0.0
    losses = losses.detach()
    sign = torch.sign(losses[:half] - losses.flip(0)[:half])
    return F.relu(margin - sign * (predicted[:half] - predicted.flip(0)[:half])).mean()


def agreement(logits: Tensor, targets: Tensor, multiple: bool) -> Tensor:
    """Share of right answers, a scalar: of images, or where an image has any number of classes, of its single answers."""
    if multiple:
        return ((logits > 0) == (targets > 0.5)).float().mean()
    return (logits.argmax(1) == targets.argmax(1)).float().mean()

"""Squeeze and excitation (Hu et al., arXiv 1709.01507): each channel times a number that is made of all channels' means.

    m = mean of x over its P places    s = s(m)    y = s x
    dH/ds = sum over places of g x     dH/dx = dH/dm / P + s g,  the first of them the same at all places

Autograd would write both parts of dH/dx and add them, the first of them in another order than x's, which takes a twentieth
of MobileNetV3-small's time. Here the gate leaves g and s with the squeeze, whose turn comes later on the way back: m is
among what the gate is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm import calls, places
from lplgrad_backend.lplgrad.gradnorm.tally import Tally

Saved = tuple[Tensor, ...]
Wanted = tuple[bool, ...]


class Squeeze:
    """x [N, C, H, W] -> m [N, C, 1, 1], of one forward pass."""

    def __init__(self) -> None:
        self._size = torch.Size()
        self._left: tuple[Tensor, Tensor] | None = None

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        self._size = inputs[0].shape
        return F.adaptive_avg_pool2d(inputs[0], 1), ()

    def backward(self, tally: Tally, gradient: Tensor, saved: Saved, wanted: Wanted) -> tuple[Tensor | None, ...]:
        everywhere = (gradient / self._size[2:].numel()).expand(self._size)
        left, self._left = self._left, None
        return (everywhere if left is None else torch.addcmul(everywhere, *left),)

    def leave(self, g: Tensor, s: Tensor) -> None:
        """The gate's part of dH/dx, until the squeeze's turn."""
        self._left = g, s


class Gate:
    """s [N, C, 1, 1], x [N, C, H, W] and m, which is only there to be waited for -> s x."""

    def __init__(self, squeeze: Squeeze) -> None:
        self._squeeze = squeeze

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        s, x = inputs[:2]
        return s * x, (s, x)

    def backward(self, tally: Tally, gradient: Tensor, saved: Saved, wanted: Wanted) -> tuple[Tensor | None, ...]:
        s, x = saved
        self._squeeze.leave(gradient, s)
        return places.sums(gradient, x)[1][:, :, None, None], None, None


@dataclass(frozen=True)
class Squeezed:
    """Features whose mean was taken, as they were then.

    Attributes:
        version: torch's count of how often x was overwritten.
    """

    x: Tensor
    mean: Tensor
    version: int
    rule: Squeeze

    def fits(self, s: Tensor) -> bool:
        """Whether s x is what the gate does."""
        return s.shape == self.mean.shape and s.requires_grad and self.x._version == self.version


def is_squeeze(func: object, args: calls.Args) -> bool:
    """Whether a call takes the mean over all places of features on the way to the logits."""
    return (
        func is F.adaptive_avg_pool2d
        and len(args) == 2
        and args[1] in (1, (1, 1), [1, 1])
        and args[0].dim() == 4
        and args[0].requires_grad
    )


def factors(func: object, args: calls.Args, kwargs: calls.Kwargs) -> tuple[Tensor, Tensor] | None:
    """The two tensors that a call multiplies, the one with fewer numbers first."""
    if calls.name_of(func) not in calls.PRODUCTS or kwargs or not all(isinstance(one, Tensor) for one in args):
        return None
    fewer, more = sorted(args, key=Tensor.numel)
    return fewer, more

"""Where Winograd's form is faster, and of tiles of which side.

Costs were fitted to what 3x3 convolutions of 48 to 512 channels and 4 to 56 places a side took (AVX2, one thread), and are
counted in multiplications of an ordinary convolution for each pair of channels. What they choose took one to seven
hundredths longer than the fastest, in the means of four such fits beside busy neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm.matrices import has_wide_vectors
from lplgrad_backend.lplgrad.gradnorm.products import Window
from lplgrad_backend.lplgrad.gradnorm.winograd import Grid, output_size
from lplgrad_backend.lplgrad.gradnorm.winograd_forms import Form, form


@dataclass(frozen=True)
class Cost:
    """What it takes.

    Args:
        product: a tile's k k products.
        moving: making and joining a tile, over the number of channels.
        once: for all images reading U, for each image writing dH/dU, or for each step making both.
    """

    product: float
    moving: float
    once: float


CONVOLUTION: Mapping[int, Cost] = {2: Cost(19.7, 340, 225), 4: Cost(51, 800, 580)}
"""By the side of a tile. Forwards, or backwards to the input."""

WEIGHT_GRADIENT: Mapping[int, Cost] = {2: Cost(9.3, 350, 485), 4: Cost(32.5, 640, 855)}
"""Of each image by itself."""

TRAINING: Mapping[int, Cost] = {2: Cost(15, 350, 510), 4: Cost(38, 1040, 1170)}
"""Forwards, backwards to the input and to the weight; a third of all three."""

WORTH = 0.95
"""The share of an ordinary convolution's time below which it is done."""

LARGEST_KERNEL = 2**22
"""Numbers in U above which small tiles have to do: it is kept, and making it anew took twice the time it saves."""

LARGEST_KEPT = 2**18
"""Numbers in V of an image up to which it is kept for the weight gradients, which take a third less so: of larger maps that
takes more memory than it is worth (ResNet-18, 224 pixels: a tenth, for a fortieth of the time)."""


def convolution(x: Tensor, weight: Tensor, window: Window) -> Form | None:
    """For x [N, I, H, W] and a weight [O, I, k, k], forwards and backwards to the input; None where torch is faster."""
    if not _fits(x, weight, window):
        return None
    return _fastest(CONVOLUTION, len(x), output_size(x, window.padding), weight)


def weight_gradient(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Form | None:
    """For per-image weight gradients of x [N, I, H, W] and g [N, O, H', W']; None where products.py is faster."""
    if not _fits(x, weight, window):
        return None
    return _fastest(WEIGHT_GRADIENT, 1, (g.shape[2], g.shape[3]), weight)


def kept(x: Tensor, weight: Tensor, window: Window) -> Form | None:
    """The form of weight gradients whose V is worth keeping on the way forward; None if it is not, or there are none."""
    if not _fits(x, weight, window):
        return None
    size = output_size(x, window.padding)
    found = _fastest(WEIGHT_GRADIENT, 1, size, weight)
    if found is None:
        return None
    return found if len(found.kernel) ** 2 * Grid.over(size, found.side).tiles * x.shape[1] <= LARGEST_KEPT else None


def training(x: Tensor, weight: Tensor, window: Window) -> Form | None:
    """For all that a training step does with such a convolution, U made anew; None where torch is faster."""
    if not _fits(x, weight, window):
        return None
    return _fastest(TRAINING, len(x), output_size(x, window.padding), weight)


def _fits(x: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether it can be done, and was measured: not with AVX-512, which torch's batches of products leave half idle."""
    return (
        weight.shape[2:] == (3, 3)
        and window.stride == window.dilation == (1, 1)
        and window.groups == 1
        and max(window.padding) <= 2
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and not has_wide_vectors()
    )


def _fastest(costs: Mapping[int, Cost], images: int, size: tuple[int, int], weight: Tensor) -> Form | None:
    height, width = size
    outputs, inputs = weight.shape[:2]
    taken = {}
    for side, cost in costs.items():
        if side == min(costs) or (side + 2) ** 2 * outputs * inputs <= LARGEST_KERNEL:
            tiles = images * Grid.over(size, side).tiles
            taken[side] = tiles * (cost.product + cost.moving * (1 / outputs + 1 / inputs)) + cost.once
    fastest = min(taken, key=taken.__getitem__)
    return form(fastest) if taken[fastest] < WORTH * 9 * images * height * width else None

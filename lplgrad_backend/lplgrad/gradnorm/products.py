"""Squared norms of weight gradients, from what enters a layer and what comes back to it.

n  images    p, q  positions    i, o  channels in and out    d  offset in the kernel window
a  [n, p, i]  inputs    g  [n, p, o]  gradients at the outputs
G_n = sum_p g_np (x) a_np                       the weight gradient of image n
||G_n||^2 = sum_pq (g_np . g_nq) (a_np . a_nq)  without forming it
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT_COST = 12.0
"""Adding one number of a Gram matrix takes as long as this many multiplications inside a matrix product (measured)."""


@dataclass(frozen=True)
class Window:
    """A convolution's geometry; each pair is (vertical, horizontal)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def plain(self) -> bool:
        """Whether a 1x1 kernel with it is a linear layer at every position."""
        return self.stride == (1, 1) and self.padding == (0, 0)


def outer_squares(a: Tensor, g: Tensor) -> Tensor:
    """||sum_p g_p (x) a_p||^2 of a [N, P, I] and g [N, P, O] -> [N]."""
    positions, inputs, outputs = a.shape[1], a.shape[2], g.shape[2]
    if positions == 1:
        return a.square().sum((1, 2)) * g.square().sum((1, 2))
    if positions * (inputs + outputs) < inputs * outputs:
        return (torch.bmm(a, a.mT) * torch.bmm(g, g.mT)).sum((1, 2))
    lengths: Tensor = torch.linalg.vector_norm(torch.bmm(g.mT, a), dim=(1, 2))
    return lengths.square()


def outer_products(a: Tensor, g: Tensor) -> Tensor:
    """sum_p g_p (x) a_p -> [N, O, I]."""
    return torch.bmm(g.mT, a)


def positions_last(features: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H * W, C], without a copy where channels come last in memory."""
    return features.flatten(2).mT


def image_weight_gradient(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Tensor:
    """The weight gradient of a batch, summed over it; called with one image."""
    gradient: Tensor = torch.ops.aten.convolution_backward(
        g, x, weight, None, window.stride, window.padding, window.dilation, False, (0, 0), window.groups,
        (False, True, False),
    )[1]  # fmt: skip
    return gradient


def weight_gradients(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Per-image weight gradients [N, O, I / groups, k, k] of a convolution of x [N, I, H, W]."""
    images = zip(x.split(1), g.split(1), strict=True)
    return torch.stack([image_weight_gradient(x_n, g_n, weight, window) for x_n, g_n in images])


def depthwise_gradients(x: Tensor, g: Tensor, kernel: tuple[int, int], window: Window) -> Tensor:
    """The same for one input channel per group: each channel's input, convolved with its gradient as the filter."""
    images, channels = g.shape[:2]
    (top, left), (down, right) = window.padding, window.stride
    planes = x.reshape(1, images * channels, *x.shape[2:])
    filters = g.reshape(images * channels, 1, *g.shape[2:])
    taps = F.conv2d(planes, filters, None, window.dilation, (top, left), (down, right), images * channels)
    return taps[:, :, : kernel[0], : kernel[1]].reshape(images, channels, 1, *kernel)


def gram_is_cheaper(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether the two Gram matrices of a convolution cost less than its weight gradients."""
    outputs, inputs, height, width = weight.shape
    positions = g.shape[2] * g.shape[3]
    padded = (x.shape[2] + 2 * window.padding[0]) * (x.shape[3] + 2 * window.padding[1])
    products = positions**2 * outputs + padded**2 * inputs * window.groups
    sums = SHIFT_COST * (height + width) * positions**2 * window.groups
    return products + sums < 1.2 * positions * outputs * inputs * height * width


def gram_squares(x: Tensor, g: Tensor, kernel: tuple[int, int], window: Window) -> Tensor:
    """||G_n||^2 of a convolution [N]: the Gram matrix of its windows is that of its pixels, summed along the kernel."""
    images, groups = x.shape[0], window.groups
    (top, left), (height, width) = window.padding, g.shape[2:]
    padded = F.pad(x, (left, left, top, top)) if top or left else x
    rows, columns = padded.shape[2:]
    pixels = _gram(padded, groups).view(-1, rows, columns, rows, columns)
    for axis, (count, size) in enumerate(((kernel[0], height), (kernel[1], width)), start=1):
        pixels = _sum_along_kernel(pixels, axis, count, size, window)
    product = pixels.reshape(-1, height * width, height * width) * _gram(g, groups)
    return product.sum((1, 2)).view(images, groups).sum(1)


def _gram(features: Tensor, groups: int) -> Tensor:
    """[N, C, H, W] -> [N * groups, H * W, H * W]."""
    flat = features.reshape(features.shape[0] * groups, features.shape[1] // groups, -1)
    return torch.bmm(flat.mT, flat)


def _sum_along_kernel(pixels: Tensor, axis: int, count: int, size: int, window: Window) -> Tensor:
    """Sum of the diagonal shifts of a Gram matrix [M, H, W, H, W] along one axis of the image."""
    stride, dilation = window.stride[axis - 1], window.dilation[axis - 1]
    total: Tensor | None = None
    for tap in range(count):
        places = slice(tap * dilation, tap * dilation + stride * (size - 1) + 1, stride)
        part = pixels[:, places, :, places] if axis == 1 else pixels[:, :, places, :, places]
        total = part if total is None else total + part
    assert total is not None
    return total

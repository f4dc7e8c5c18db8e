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

from lplgrad_backend.lplgrad.gradnorm.matrices import grams, outer_sums
from lplgrad_backend.lplgrad.gradnorm.tally import at_least_single, squared_norms

SHIFT_COST = 12.0
"""Adding one number of a Gram matrix takes as long as this many multiplications inside a matrix product (measured)."""


LARGEST_DIRECT_KERNEL = 3
"""oneDNN has a fast weight gradient for depthwise kernels up to this size (measured: 5x5 takes 8 times as long)."""


@dataclass(frozen=True)
class Window:
    """A convolution's geometry; each pair is (vertical, horizontal)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def channels_last(features: Tensor) -> bool:
    """Whether channels vary fastest in memory, and nothing else would describe it as well."""
    return features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()


def outer_gram_is_cheaper(positions: int, inputs: int, outputs: int) -> bool:
    """Whether ||sum_p g_p (x) a_p|| costs less from Gram matrices than from the sum itself."""
    return positions * (inputs + outputs) < inputs * outputs


def outer_squares(a: Tensor, g: Tensor) -> Tensor:
    """||sum_p g_p (x) a_p||^2 of a [N, P, I] and g [N, P, O] -> [N]."""
    positions, inputs, outputs = a.shape[1], a.shape[2], g.shape[2]
    if positions == 1:
        return squared_norms(a) * squared_norms(g)
    if outer_gram_is_cheaper(positions, inputs, outputs):
        return (grams(a) * grams(g)).sum((1, 2), dtype=at_least_single(a))
    return squared_norms(outer_sums(a, g))


def positions_last(features: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H * W, C], without a copy where channels come last in memory."""
    return features.flatten(2).mT


def image_weight_gradient(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Tensor:
    """The weight gradient of a batch, summed over it; called with one image."""
    gradient: Tensor = torch.ops.aten.convolution_backward.default(
        g, x, weight, None, window.stride, window.padding, window.dilation, False, (0, 0), window.groups,
        (False, True, False),
    )[1]  # fmt: skip
    return gradient


def weight_gradients(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Per-image weight gradients [N, O, I / groups, k, k] of a convolution of x [N, I, H, W].

    Image by image, since oneDNN sums over a batch. Products of gathered windows or rows take as long or up to twice as long,
    and Winograd's form, with half the multiplications, 1.5 to 2.7 times (measured: 64 channels on 32x32 and 56x56 places,
    128 on 28x28): torch's products are slower than oneDNN's convolutions by more than that saves.
    """
    images = zip(x.split(1), g.split(1), strict=True)
    return torch.stack([image_weight_gradient(x_n, g_n, weight, window) for x_n, g_n in images])


def depthwise_gradients(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Tensor:
    """The same for one input channel per group.

    Each channel's input, convolved with its gradient as the filter. Where channels come last in memory that takes a
    copy, and small kernels are cheaper image by image.
    """
    images, channels = g.shape[:2]
    height, width = weight.shape[2:]
    if channels_last(x) and max(height, width) <= LARGEST_DIRECT_KERNEL:
        return weight_gradients(x, g, weight, window)
    (top, left), (down, right) = window.padding, window.stride
    planes = x.reshape(1, images * channels, *x.shape[2:])
    filters = g.reshape(images * channels, 1, *g.shape[2:])
    taps = F.conv2d(planes, filters, None, window.dilation, (top, left), (down, right), images * channels)
    return taps[:, :, :height, :width].reshape(images, channels, 1, height, width)


def gram_is_cheaper(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether the two Gram matrices of a convolution cost less than its weight gradients."""
    outputs, inputs, height, width = weight.shape
    positions, pixels = g.shape[2] * g.shape[3], x.shape[2] * x.shape[3]
    products = positions**2 * outputs + pixels**2 * inputs * window.groups
    sums = SHIFT_COST * (height + width) * positions**2 * window.groups
    return products + sums < 1.2 * positions * outputs * inputs * height * width


def gram_squares(x: Tensor, g: Tensor, kernel: tuple[int, int], window: Window) -> Tensor:
    """||G_n||^2 of a convolution [N]: the Gram matrix of its windows is that of its pixels, summed along the kernel."""
    images, groups, (rows, columns), (height, width) = x.shape[0], window.groups, x.shape[2:], g.shape[2:]
    pixels = _gram(x, groups).view(-1, rows, columns, rows, columns)
    for axis, (count, size) in enumerate(((kernel[0], height), (kernel[1], width)), start=1):
        pixels = _sum_along_kernel(pixels, axis, count, size, window)
    product = pixels.view(-1, height * width, height * width) * _gram(g, groups)
    return product.sum((1, 2), dtype=at_least_single(x)).view(images, groups).sum(1)


def _gram(features: Tensor, groups: int) -> Tensor:
    """[N, C, H, W] -> [N * groups, H * W, H * W]."""
    return grams(features.reshape(features.shape[0] * groups, features.shape[1] // groups, -1).mT)


def _sum_along_kernel(pixels: Tensor, axis: int, count: int, size: int, window: Window) -> Tensor:
    """Sum of the diagonal shifts of a Gram matrix [M, H, W, H, W] along one axis of the image; H or W becomes `size`.
    The zeros around an image add nothing."""
    stride, pixel_count = window.stride[axis - 1], pixels.shape[axis]
    shape = [*pixels.shape]
    shape[axis] = shape[axis + 2] = size
    total = pixels.new_zeros(shape)
    for tap in range(count):
        offset = tap * window.dilation[axis - 1] - window.padding[axis - 1]
        first, last = max(0, -(offset // stride)), min(size - 1, (pixel_count - 1 - offset) // stride)
        if first <= last:
            start = first * stride + offset
            _diagonal(total, axis, slice(first, last + 1)).add_(
                _diagonal(pixels, axis, slice(start, last * stride + offset + 1, stride))
            )
    return total


def _diagonal(pixels: Tensor, axis: int, places: slice) -> Tensor:
    """The same places along an image's axis, in both of a Gram matrix's pixels."""
    return pixels[:, places, :, places] if axis == 1 else pixels[:, :, places, :, places]

"""Squared norms of weight gradients, from what enters a layer and what comes back to it.

n  images    p, q  positions    i, o  channels in and out    d  offset in the kernel window
a  [n, p, i]  inputs    g  [n, p, o]  gradients at the outputs
G_n = sum_p g_np (x) a_np                       the weight gradient of image n
||G_n||^2 = sum_pq (g_np . g_nq) (a_np . a_nq)  without forming it
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm.matrices import has_wide_vectors, inner_products, outer_sums, row_products
from lplgrad_backend.lplgrad.gradnorm.tally import squared_norms

SHIFT_COST = 12.0
"""Adding one number of a Gram matrix takes as long as this many multiplications inside a matrix product (measured)."""

FEWEST_HALVED = 128
"""Positions from which three quarters of a Gram matrix are faster than all of it (measured: by a fifth at 196)."""

FEWEST_CHANNELS = 32
"""In and out, from which products of shifted maps pay (measured: at 16 they take as long as oneDNN image by image)."""

LARGEST_DIRECT_KERNEL = 3
"""torch has a fast weight gradient for depthwise kernels up to this size (measured on a processor: 5x5 takes 8 times as
long)."""

LARGEST_SIDE_BY_SIDE, MOST_CHANNELS_SIDE_BY_SIDE = 310_000, 8
"""Numbers of an image and its gradient, and channels of a group, up to which several images at once are faster than one by
one: each call of oneDNN's weight gradient takes a tenth of a millisecond whatever its size (measured with AVX2: up to 5
times as fast on maps of 14x14, 1.2 to 1.8 times at 28x28, and slower from 112x112)."""

FEWEST_SIDE_BY_SIDE = 24
"""Channels, which are copied in one piece, from which that pays (measured: not at 16)."""

MOST_SIDE_BY_SIDE = 4 * LARGEST_SIDE_BY_SIDE
"""Numbers of all that are laid side by side at a time: of more, the first have left the cache (measured: up to twice as
long), and of less than four images little is gained."""

Quarters: TypeAlias = tuple[Tensor, Tensor]
"""Of a symmetric matrix [N, P, P]: its upper half [N, P // 2, P], and the right one of the lower."""


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
        return gram_inner_products(a, g)
    return squared_norms(outer_sums(a, g))


def gram_inner_products(a: Tensor, g: Tensor) -> Tensor:
    """sum_pq (g_p . g_q) (a_p . a_q) of a [N, P, I] and g [N, P, O] -> [N].

    Both Gram matrices are symmetric, so of large ones the upper right quarter stands for the lower left as well.
    """
    positions = a.shape[1]
    if positions < FEWEST_HALVED:
        return inner_products(row_products(a, a), row_products(g, g))
    return _inner_products_of_quarters(_quarters(a), _quarters(g))


def _quarters(rows: Tensor) -> Quarters:
    """Of the Gram matrix of [N, P, C]."""
    half = rows.shape[1] // 2
    return row_products(rows[:, :half], rows), row_products(rows[:, half:], rows[:, half:])


def _inner_products_of_quarters(one: Quarters, other: Quarters) -> Tensor:
    """Overwrites the other's: what stands for the left of the lower half counts twice."""
    (upper, lower), (other_upper, other_lower) = one, other
    other_upper[:, :, upper.shape[1] :].mul_(2)
    return inner_products(upper, other_upper) + inner_products(lower, other_lower)


def positions_last(features: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H * W, C], without a copy where channels come last in memory."""
    return features.flatten(2).mT


def image_weight_gradient(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Tensor:
    """The weight gradient of a batch, summed over it; called with one image, or with all as one."""
    gradient: Tensor = torch.ops.aten.convolution_backward.default(
        g, x, weight, None, window.stride, window.padding, window.dilation, False, (0, 0), window.groups,
        (False, True, False),
    )[1]  # fmt: skip
    return gradient


def weight_gradients(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Per-image weight gradients [N, O, I / groups, k, k] of a convolution of x [N, I, H, W], the cheaper of two ways."""
    if are_shifts_cheaper(x, weight, window):
        return shifted_weight_gradients(x, g, weight, window)
    return weight_gradients_by_layer(x, g, weight, window)


def are_shifts_cheaper(x: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether products of shifted maps are faster than oneDNN image by image.

    Measured: with AVX2, from FEWEST_CHANNELS on, they take 7 to 10 tenths of the time, and half of it beside other work;
    with AVX-512, where MKL leaves half of the processor idle (matrices.py), as long or up to twice as long, and Winograd's
    form, with half the multiplications, 1.5 to 2.7 times. On a GPU each image of its own would cost a launch.
    """
    if x.device.type != "cpu":
        return True
    return window.groups == 1 and min(weight.shape[:2]) >= FEWEST_CHANNELS and not has_wide_vectors()


def weight_gradients_by_layer(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Tensor:
    """By the layer's own backward pass, which sums over a batch: of one image made of several, or of an image at a time."""
    if channels_last(x) and are_images_cheaper_side_by_side(x, g, weight, window):
        return weight_gradients_side_by_side(x, g, weight, window)
    return weight_gradients_one_by_one(x, g, weight, window)


def are_images_cheaper_side_by_side(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether a call for several images is faster than one for each; on a GPU each would cost a launch."""
    if x.device.type != "cpu":
        return True
    narrow = window.groups > 1 and weight.shape[1] <= MOST_CHANNELS_SIDE_BY_SIDE
    small = x[0].numel() + g[0].numel() <= LARGEST_SIDE_BY_SIDE
    return narrow and small and x.shape[1] >= FEWEST_SIDE_BY_SIDE


def weight_gradients_side_by_side(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Tensor:
    """The channels of some images are those of one image, whose groups keep them apart."""
    parts = math.ceil((x.numel() + g.numel()) / MOST_SIDE_BY_SIDE) if x.device.type == "cpu" else 1
    some = math.ceil(len(x) / parts)
    found = [_as_one_image(*part, weight, window) for part in zip(x.split(some), g.split(some), strict=True)]
    return torch.cat(found) if len(found) > 1 else found[0]


def _as_one_image(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Tensor:
    window = replace(window, groups=len(x) * window.groups)
    kernels = weight[:1, :1].expand(len(x) * len(weight), *weight.shape[1:])  # its numbers do not matter
    found = image_weight_gradient(_side_by_side(x), _side_by_side(g), kernels, window)
    return found.view(len(x), *weight.shape)


def _side_by_side(features: Tensor) -> Tensor:
    """[N, C, H, W] -> [1, N * C, H, W], channels last."""
    images = features.permute(2, 3, 0, 1)
    return images.flatten(2).unsqueeze(0).permute(0, 3, 1, 2)


def weight_gradients_one_by_one(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Tensor:
    """An image at a time."""
    images = zip(x.split(1), g.split(1), strict=True)
    return torch.stack([image_weight_gradient(x_n, g_n, weight, window) for x_n, g_n in images])


def shifted_weight_gradients(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Tensor:
    """A product of matrices for each offset d in the kernel window:  G_n,d = sum_p g_np (x) a_n,(p + d).

    x and g are laid out in rows of one length, x with the zeros around it and g with zeros where x's rows are longer, so
    that p + d is p moved on by a fixed number of places and nothing is copied for a d. With a stride the maps of every
    stride-th row and column take x's place.
    """
    outputs, inputs, height, width = weight.shape
    (down, right), (dilation, across), groups = window.stride, window.dilation, window.groups
    rows, columns = g.shape[2], g.shape[3] + (width - 1) * across // right
    maps = _phases(x, window, rows + (height - 1) * dilation // down + 1, columns)
    gradients = F.pad(g, (0, columns - g.shape[3])).unflatten(1, (groups, outputs // groups))
    gradients = gradients.permute(0, 1, 3, 4, 2).reshape(-1, rows * columns, outputs // groups)
    taps = []
    for i, j in itertools.product(range(0, height * dilation, dilation), range(0, width * across, across)):
        start = i // down * columns + j // right
        phase = maps[:, :, i % down, :, j % right].reshape(len(gradients), -1, inputs)
        moved = phase[:, start : start + rows * columns]
        taps.append(torch.bmm(gradients.mT, moved))
    found = torch.stack(taps, 2).view(len(x), outputs, height, width, inputs)  # as their norms are taken
    return found.permute(0, 1, 4, 2, 3)


def _phases(x: Tensor, window: Window, rows: int, columns: int) -> Tensor:
    """x with zeros around, by the remainders of row and column: [N * groups, rows, stride, columns, stride, I / groups]."""
    (down, right), (top, left) = window.stride, window.padding
    edges = left, columns * right - left - x.shape[3], top, rows * down - top - x.shape[2]
    framed: Tensor = F.pad(x, edges).unflatten(1, (window.groups, -1)).permute(0, 1, 3, 4, 2)
    return framed.reshape(-1, rows, down, columns, right, framed.shape[-1])


def depthwise_gradients(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Tensor:
    """The same for one input channel per group, where narrow.py cannot: on a GPU, in another precision, with channels first.

    Each channel's input, convolved with its gradient as the filter.
    """
    images, channels = g.shape[:2]
    height, width = weight.shape[2:]
    if channels_last(x) and max(height, width) <= LARGEST_DIRECT_KERNEL:
        return weight_gradients_by_layer(x, g, weight, window)
    planes = x.reshape(1, images * channels, *x.shape[2:])
    filters = g.reshape(images * channels, 1, *g.shape[2:])
    taps = F.conv2d(planes, filters, None, window.dilation, window.padding, window.stride, images * channels)
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
    places, positions = _rows(x, groups), _rows(g, groups)
    pixels = row_products(places, places).view(-1, rows, columns, rows, columns)
    for axis, (count, size) in enumerate(((kernel[0], height), (kernel[1], width)), start=1):
        pixels = _sum_along_kernel(pixels, axis, count, size, window)
    windows = pixels.reshape(-1, height * width, height * width)
    if height * width < FEWEST_HALVED:
        found = inner_products(windows, row_products(positions, positions))
    else:
        half = height * width // 2
        found = _inner_products_of_quarters((windows[:, :half], windows[:, half:, half:]), _quarters(positions))
    return found.view(images, groups).sum(1)


def _rows(features: Tensor, groups: int) -> Tensor:
    """[N, C, H, W] -> [N * groups, H * W, C / groups]."""
    return features.reshape(features.shape[0] * groups, features.shape[1] // groups, -1).mT


def _sum_along_kernel(pixels: Tensor, axis: int, count: int, size: int, window: Window) -> Tensor:
    """Sum of the diagonal shifts of a Gram matrix [M, H, W, H, W] along one axis of the image; H or W becomes `size`.
    The zeros around an image add nothing."""
    stride, pixel_count = window.stride[axis - 1], pixels.shape[axis]
    offsets = [tap * window.dilation[axis - 1] - window.padding[axis - 1] for tap in range(count)]
    if stride == 1 and size == pixel_count and 0 in offsets:
        total = pixels.clone()  # saves writing zeros, and adding to them
        offsets.remove(0)
    else:
        shape = [*pixels.shape]
        shape[axis] = shape[axis + 2] = size
        total = pixels.new_zeros(shape)
    for offset in offsets:
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

"""3x3 convolutions with 16 multiplications where there are 36: Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308).

x  4x4 places of the input; neighbours share two rows or columns        V = B' x B
w  the kernel of one pair of channels                                   U = G w G'
y  2x2 places of the output: a tile                                     g = dH/dy

    y = A' (sum over input channels of U . V) A        dH/dw = G' (sum over tiles of V . (A g A')) G

. is place by place, so that each of 16 places is one product of matrices. Of a kernel turned about, G w has its first and
last row exchanged, so that U serves the way back as well:  dH/dx = A' (sum over output channels of U turned . B' g B) A.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm.matrices import has_wide_vectors
from lplgrad_backend.lplgrad.gradnorm.products import Window

G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))

FORWARDS, BACKWARDS = (0, 1, 2, 3), (3, 1, 2, 0)
"""Which row of U meets which row of V."""

PRODUCT = 18.4
"""What a tile's 16 products take, for each pair of channels, in multiplications of an ordinary convolution. This and the
next were measured with AVX2, and hold within a tenth from 48 to 512 channels."""

CONVOLUTION, WEIGHT_GRADIENT, TRAINING = (624.0, 200.0, 0.875), (270.0, 600.0, 0.95), (704.0, 417.0, 1.09)
"""What else it takes: making and joining a tile, over the number of channels; and once for all images reading U, for each
image writing dH/dU, or for each step making both. And the share of an ordinary convolution's time below which it is done;
a step's three cost torch 1.15 times the first of them."""

LARGEST_PART = 2**19
"""Numbers in V from which less at a time is faster, since it stays near the processor (measured), and takes less memory."""


def suits(x: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether a convolution of x [N, I, H, W] by a weight [O, I, k, k] is faster so, and its input gradient."""
    height, width = _size(x, window.padding)
    return _fits(x, weight, window) and _is_worth(len(x), height, width, weight, CONVOLUTION)


def suits_weight_gradients(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether per-image weight gradients of x [N, I, H, W] and g [N, O, H', W'] are faster so than by products.py."""
    return _fits(x, weight, window) and _is_worth(1, g.shape[2], g.shape[3], weight, WEIGHT_GRADIENT)


def suits_training(x: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether all that a training step does with such a convolution is faster so, U made anew."""
    height, width = _size(x, window.padding)
    return _fits(x, weight, window) and _is_worth(len(x), height, width, weight, TRAINING)


def _size(x: Tensor, padding: tuple[int, int]) -> tuple[int, int]:
    """H' and W'."""
    return x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2


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


def _is_worth(images: int, height: int, width: int, weight: Tensor, cost: tuple[float, float, float]) -> bool:
    move, once, share = cost
    tiles = images * _half(height) * _half(width)
    taken = tiles * (PRODUCT + move * (1 / weight.shape[0] + 1 / weight.shape[1])) + once
    return taken < share * 9 * images * height * width


class Winograd:
    """A convolution by a weight [O, I, 3, 3] with stride 1, for as many calls as there are."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> None:
        # U [16, I, O]
        self._spread = (_products_of_g(weight) @ weight.permute(0, 2, 3, 1).flatten(1, 2)).permute(1, 2, 0)
        self._bias, self._padding = bias, padding

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, I, H, W] -> y [N, O, H', W'], both channels last."""
        return _convolved(x, self._spread, self._bias, self._padding, FORWARDS)

    def input_gradient(self, g: Tensor) -> Tensor:
        """dH/dy [N, O, H', W'] -> dH/dx [N, I, H, W], both channels last."""
        down, right = self._padding
        return _convolved(g, self._spread.mT, None, (2 - down, 2 - right), BACKWARDS)


def weight_gradients(x: Tensor, g: Tensor, padding: tuple[int, int]) -> Tensor:
    """Per-image weight gradients [N, O, I, 3, 3] of a convolution with stride 1, of x [N, I, H, W] and g [N, O, H', W']."""
    found = []
    for part in _met(x, g, padding):
        # dH/dU [16 N, O, I], each image by itself
        spread = _sum(torch.bmm(of_g.flatten(0, 1).mT, of_x.flatten(0, 1)) for of_x, of_g in part)
        found.append(spread.unflatten(0, (16, -1)))
    kernels = [(_products_of_g(x).T @ one.flatten(1)).view(3, 3, *one.shape[1:]) for one in found]
    return torch.cat(kernels, 2).permute(2, 3, 4, 0, 1)


def weight_gradient(x: Tensor, g: Tensor, padding: tuple[int, int]) -> Tensor:
    """Their sum [O, I, 3, 3], channels last."""
    bands = itertools.chain.from_iterable(_met(x, g, padding))
    spread = _sum(torch.bmm(of_g.flatten(1, 2).mT, of_x.flatten(1, 2)) for of_x, of_g in bands)  # [16, O, I]
    kernels = _products_of_g(x).T @ spread.transpose(0, 1)
    return kernels.view(len(kernels), 3, 3, -1).permute(0, 3, 1, 2)


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """Sum of one tensor or more, in the place of the first."""
    return functools.reduce(Tensor.add_, parts)


def _products_of_g(like: Tensor) -> Tensor:
    """(G (x) G) [16, 9]: U of a kernel whose taps are in one row."""
    g = like.new_tensor(G)
    return torch.kron(g, g)


def _convolved(
    x: Tensor, spread: Tensor, bias: Tensor | None, padding: tuple[int, int], order: Sequence[int]
) -> Tensor:
    height, width = _size(x, padding)
    down, right = _half(height), _half(width)
    whole = len(x), spread.shape[2], 2 * down, 2 * right
    y = torch.empty(whole, dtype=x.dtype, memory_format=torch.channels_last)
    images, band = _parts(down, right, max(spread.shape[1:]))
    for some, out in zip(_rows_first(x).split(images), _rows_first(y).split(images), strict=True):
        framed = _framed(some, down, right, padding)
        for rows in _bands(down, band):
            tiles = _tiles(_under(framed, rows), order)
            products = torch.bmm(tiles.flatten(0, 1).flatten(1, 3), spread)
            _joined(products.view(*tiles.shape[:5], -1), bias, order, out[:, 2 * rows.start : 2 * rows.stop])
    if (height, width) == (2 * down, 2 * right):
        return y  # no view, which an activation in place would not be allowed on
    return y[:, :, :height, :width].contiguous(memory_format=torch.channels_last)


def _met(x: Tensor, g: Tensor, padding: tuple[int, int]) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """V [16, N, P, I] and A g A' [16, N, P, O] of some images after the other, each in bands of P tiles."""
    down, right = _half(g.shape[2]), _half(g.shape[3])
    images, band = _parts(down, right, max(x.shape[1], g.shape[1]))
    for some, of_some in zip(_rows_first(x).split(images), _rows_first(g).split(images), strict=True):
        framed, whole = _framed(some, down, right, padding), _framed(of_some, down - 1, right - 1, (0, 0))
        yield (
            (
                _tiles(_under(framed, rows), FORWARDS).flatten(0, 1).flatten(2, 3),
                _scattered(whole[:, 2 * rows.start : 2 * rows.stop]).flatten(0, 1).flatten(2, 3),
            )
            for rows in _bands(down, band)
        )


# Parts


def _half(places: int) -> int:
    """Tiles side by side."""
    return (places + 1) // 2


def _parts(down: int, right: int, channels: int) -> tuple[int, int]:
    """How many images, and how many rows of tiles of each, are done together."""
    rows = max(1, LARGEST_PART // (16 * right * channels))
    return max(1, rows // down), min(rows, down)


def _bands(down: int, band: int) -> Iterator[slice]:
    return (slice(start, min(start + band, down)) for start in range(0, down, band))


def _under(framed: Tensor, rows: slice) -> Tensor:
    """Places that the tiles of these rows look at."""
    return framed[:, 2 * rows.start : 2 * rows.stop + 2]


def _rows_first(features: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H, W, C]."""
    return features.permute(0, 2, 3, 1)


def _framed(x: Tensor, down: int, right: int, padding: tuple[int, int]) -> Tensor:
    """x [N, H, W, C] with zeros around, as many as all tiles want: [N, 2 down + 2, 2 right + 2, C]."""
    (top, left), (height, width) = padding, x.shape[1:3]
    edges = 0, 0, left, 2 * right + 2 - width - left, top, 2 * down + 2 - height - top
    framed: Tensor = F.pad(x, edges) if any(edges) else x
    return framed


# Tiles


def _tiles(framed: Tensor, order: Sequence[int]) -> Tensor:
    """V [4, 4, N, down, right, C] of [N, 2 down + 2, 2 right + 2, C]."""
    images, height, width, channels = framed.shape
    down, right = height // 2 - 1, width // 2 - 1
    rows = framed.new_empty(4, images, down, width, channels)
    _spread(framed.unfold(1, 4, 2).unbind(-1), [rows[n] for n in order])
    tiles = framed.new_empty(4, 4, images, down, right, channels)
    _spread(rows.unfold(3, 4, 2).unbind(-1), [tiles[:, n] for n in order])
    return tiles


def _spread(x: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """B' x."""
    torch.sub(x[0], x[2], out=out[0])
    torch.add(x[1], x[2], out=out[1])
    torch.sub(x[2], x[1], out=out[2])
    torch.sub(x[1], x[3], out=out[3])


def _joined(products: Tensor, bias: Tensor | None, order: Sequence[int], y: Tensor) -> None:
    """A' m A of m [4, 4, N, down, right, O] into y [N, 2 down, 2 right, O]."""
    if bias is not None:
        products[1, 1] += bias  # which each place of y counts once
    rows = torch.empty_like(products[:2])
    _join([products[n] for n in order], rows.unbind())
    for row, places in zip(rows, (y[:, 0::2], y[:, 1::2]), strict=True):
        _join([row[n] for n in order], (places[:, :, 0::2], places[:, :, 1::2]))


def _join(m: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """A' m."""
    torch.add(m[1], m[2], out=out[0]).add_(m[0])
    torch.sub(m[1], m[2], out=out[1]).sub_(m[3])


def _scattered(g: Tensor) -> Tensor:
    """A g A' [4, 4, N, down, right, O] of g [N, 2 down, 2 right, O]."""
    images, height, width, channels = g.shape
    rows = g.new_empty(4, images, height // 2, width, channels)
    _scatter(g[:, 0::2], g[:, 1::2], rows.unbind())
    tiles = g.new_empty(4, 4, images, height // 2, width // 2, channels)
    _scatter(rows[:, :, :, 0::2], rows[:, :, :, 1::2], tiles.unbind(1))
    return tiles


def _scatter(first: Tensor, second: Tensor, out: Sequence[Tensor]) -> None:
    """A g."""
    out[0].copy_(first)
    torch.add(first, second, out=out[1])
    torch.sub(first, second, out=out[2])
    torch.neg(second, out=out[3])

"""3x3 convolutions with 16 multiplications where there are 36: Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308).

x  4x4 places of the input; neighbours share two rows or columns        V = B' x B
w  the kernel of one pair of channels                                   U = G w G'
y  2x2 places of the output: a tile                                     g = dH/dy

    y = A' (sum over input channels of U . V) A        dH/dw = G' (sum over tiles of V . (A g A')) G

. is place by place, so that each of 16 places is one product of matrices. Of a kernel turned about, G w has its first and
last row exchanged, so that U serves the way back as well:  dH/dx = A' (sum over output channels of U turned . B' g B) A.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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

CONVOLUTION, WEIGHT_GRADIENT = (624.0, 200.0, 0.875), (270.0, 600.0, 0.95)
"""What else it takes: making and joining a tile, over the number of channels; once for all reading U, or once for an image
writing dH/dU. And the share of the ordinary time below which it is done."""

LARGEST_PART = 2**19
"""Numbers in V from which less at a time is faster, since it stays near the processor (measured), and takes less memory."""


def suits(x: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether a convolution of x [N, I, H, W] by a weight [O, I, k, k] is faster so, and its input gradient."""
    height, width = (size + 2 * padding - 2 for size, padding in zip(x.shape[2:], window.padding, strict=True))
    return _fits(x, weight, window) and _is_worth(len(x), height, width, weight, CONVOLUTION)


def suits_weight_gradients(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether per-image weight gradients of x [N, I, H, W] and g [N, O, H', W'] are faster so than by products.py."""
    return _fits(x, weight, window) and _is_worth(1, g.shape[2], g.shape[3], weight, WEIGHT_GRADIENT)


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
        spread = weight.new_tensor(G)
        self._spread = torch.einsum("ar,bc,oirc->abio", spread, spread, weight).flatten(0, 1)  # U [16, I, O]
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
    down, right = _half(g.shape[2]), _half(g.shape[3])
    images, band = _parts(down, right, max(x.shape[1], g.shape[1]))
    found = []
    for some, of_some in zip(_rows_first(x).split(images), _rows_first(g).split(images), strict=True):
        framed, whole = _framed(some, down, right, padding), _framed(of_some, down - 1, right - 1, (0, 0))
        found.append(_kernels(_spread_gradient(framed, whole, band)))
    return torch.cat(found).permute(0, 4, 3, 1, 2)


def _convolved(
    x: Tensor, spread: Tensor, bias: Tensor | None, padding: tuple[int, int], order: Sequence[int]
) -> Tensor:
    height, width = x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2
    down, right = _half(height), _half(width)
    y: Tensor = x.new_empty(len(x), 2 * down, 2 * right, spread.shape[2])
    images, band = _parts(down, right, max(spread.shape[1:]))
    for some, out in zip(_rows_first(x).split(images), y.split(images), strict=True):
        framed = _framed(some, down, right, padding)
        for rows in _bands(down, band):
            tiles = _tiles(_under(framed, rows), order)
            products = torch.bmm(tiles.flatten(0, 1).flatten(1, 3), spread)
            _joined(products.view(*tiles.shape[:5], -1), bias, order, out[:, 2 * rows.start : 2 * rows.stop])
    return y[:, :height, :width].contiguous().permute(0, 3, 1, 2)


def _spread_gradient(framed: Tensor, g: Tensor, band: int) -> Tensor:
    """dH/dU [4, 4, N, I, O]."""
    total: Tensor | None = None
    for rows in _bands(g.shape[1] // 2, band):
        tiles = _tiles(_under(framed, rows), FORWARDS).flatten(3, 4)
        scattered = _scattered(g[:, 2 * rows.start : 2 * rows.stop]).flatten(3, 4)
        part = torch.bmm(tiles.flatten(0, 2).mT, scattered.flatten(0, 2))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total.view(4, 4, len(g), *total.shape[1:])


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


def _kernels(spread: Tensor) -> Tensor:
    """G' m G of m [4, 4, N, I, O]: [N, 3, 3, I, O]."""
    return _gathered(_gathered(spread, 0), 1).permute(2, 0, 1, 3, 4)


def _gathered(m: Tensor, axis: int) -> Tensor:
    """G' m along an axis."""
    first, second, third, last = m.unbind(axis)
    same, other = (second + third).mul_(0.5), (second - third).mul_(0.5)
    return torch.stack([same + first, other, same + last], axis)

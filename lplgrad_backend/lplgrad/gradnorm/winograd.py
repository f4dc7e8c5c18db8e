"""3x3 convolutions with a quarter of the multiplications, or four ninths: Winograd's (Lavin and Gray, arXiv 1509.09308).

y  m x m places of the output: a tile                                   g = dH/dy
x  k x k places of the input under it, k = m + 2; neighbours share two rows or columns        V = B x B'
w  the kernel of one pair of channels                                                         U = G w G'

    y = A' (sum over input channels of U . V) A        dH/dw = G' (sum over tiles of V . (A g A')) G
    dH/dx = A' (sum over output channels of U . V) A, of g, with the matrices of the way back

. is place by place, so that each of k k places is one product of matrices. The others (winograd_forms.py) are products too,
along one axis of the image after the other; of kernels, which are few, along both at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm.winograd_forms import Form, Way

TOGETHER = 4096
"""Places of y that are done at a time, if a row of tiles has no more: few enough to stay near the
processor, and enough to fill it (measured)."""

LARGEST_SPREAD = 2**20
"""Numbers in dH/dU of some images, from which memory is what takes the time."""


class Winograd:
    """A convolution by a weight [O, I, 3, 3] with stride 1, for as many calls as there are."""

    def __init__(self, form: Form, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> None:
        self._form, self._bias, self._padding = form, bias, padding
        self._spread = (form.kernel @ _taps(weight)).permute(1, 2, 0)  # U [k k, I, O]

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, I, H, W] -> y [N, O, H', W'], both channels last."""
        return _convolved(x, self._spread, self._bias, self._padding, self._form.side, self._form.forwards)

    def input_gradient(self, g: Tensor) -> Tensor:
        """dH/dy [N, O, H', W'] -> dH/dx [N, I, H, W], both channels last."""
        down, right = self._padding
        padding = 2 - down, 2 - right
        return _convolved(g, self._spread.mT, None, padding, self._form.side, self._form.backwards)


def weight_gradients(form: Form, x: Tensor, g: Tensor, padding: tuple[int, int]) -> Tensor:
    """Per-image weight gradients [N, O, I, 3, 3] of a convolution with stride 1, of x [N, I, H, W] and g [N, O, H', W']."""
    inputs, outputs = x.shape[1], g.shape[1]
    kernels = x.new_empty(len(x), outputs, 3, 3, inputs)
    most = max(1, LARGEST_SPREAD // (len(form.kernel) * inputs * outputs))
    start = 0
    for part in _met(form, x, g, padding, most):
        # dH/dU [k k n, O, I], each image by itself
        spread = _sum(torch.bmm(of_g.flatten(0, 1).mT, of_x.flatten(0, 1)) for of_x, of_g in part)
        found = (form.kernel.T @ spread.view(len(form.kernel), -1)).view(3, 3, -1, outputs, inputs)
        kernels[start : start + found.shape[2]].copy_(found.permute(2, 3, 0, 1, 4))
        start += found.shape[2]
    gradients: Tensor = kernels.permute(0, 1, 4, 2, 3)
    return gradients


def weight_gradient(form: Form, x: Tensor, g: Tensor, padding: tuple[int, int]) -> Tensor:
    """Their sum [O, I, 3, 3], channels last."""
    bands = (band for part in _met(form, x, g, padding, len(x)) for band in part)
    spread = _sum(torch.bmm(of_g.flatten(1, 2).mT, of_x.flatten(1, 2)) for of_x, of_g in bands)  # [k k, O, I]
    kernels: Tensor = (form.kernel.T @ spread.transpose(0, 1)).unflatten(1, (3, 3))
    return kernels.permute(0, 3, 1, 2)


def output_size(x: Tensor, padding: tuple[int, int]) -> tuple[int, int]:
    """H' and W' of x [N, I, H, W]."""
    return x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2


def _taps(weight: Tensor) -> Tensor:
    """[O, I, 3, 3] -> [O, 9, I]."""
    return weight.permute(0, 2, 3, 1).flatten(1, 2)


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """Sum of one tensor or more, in the place of the first."""
    return functools.reduce(Tensor.add_, parts)


def _convolved(
    x: Tensor, spread: Tensor, bias: Tensor | None, padding: tuple[int, int], side: int, way: Way
) -> Tensor:
    height, width = output_size(x, padding)
    grid = Grid.over((height, width), side)
    whole = len(x), spread.shape[2], side * grid.down, side * grid.right
    y = torch.empty(whole, dtype=x.dtype, memory_format=torch.channels_last)
    parts = grid.parts(_rows_first(x), len(x))
    for framed, out in zip(grid.frames(parts, padding, 2), grid.parts(_rows_first(y), len(x)), strict=True):
        for rows in grid.bands():
            tiles = _spread(way.spreading, grid.under(framed, rows), side)
            products = torch.bmm(tiles.flatten(1, 2), spread)
            _join(way.joining, products, bias, grid.inside(out, rows), side)
    if (height, width) == whole[2:]:
        return y  # no view, which an activation in place would not be allowed on
    return y[:, :, :height, :width].contiguous(memory_format=torch.channels_last)


def _met(
    form: Form, x: Tensor, g: Tensor, padding: tuple[int, int], most: int
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """V [k k, N, P, I] and A g A' [k k, N, P, O] of at most so many images after the other, each in bands of P tiles."""
    grid = Grid.over((g.shape[2], g.shape[3]), form.side)
    of_x, of_g = (grid.parts(_rows_first(one), most) for one in (x, g))
    for under, inside in zip(grid.frames(of_x, padding, 2), grid.frames(of_g, (0, 0), 0), strict=True):
        yield (
            (
                _spread(form.forwards.spreading, grid.under(under, rows), form.side),
                _spread(form.forwards.joining.T, grid.inside(inside, rows), form.side),
            )
            for rows in grid.bands()
        )


# Tiles


@dataclass(frozen=True)
class Grid:
    """Tiles of side x side over an output, down of them in a column and right of them in a row.

    What lies in memory as [N, H, W, C] is cut into parts of some images, and these into bands of some rows of tiles.
    """

    side: int
    down: int
    right: int

    @classmethod
    def over(cls, size: tuple[int, int], side: int) -> Grid:
        height, width = size
        return cls(side, -(-height // side), -(-width // side))

    @property
    def _rows(self) -> int:
        """Rows of tiles that are done at a time."""
        return max(1, TOGETHER // (self.side**2 * self.right))

    def parts(self, features: Tensor, most: int) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = features.split(max(1, min(self._rows // self.down, most)))
        return parts

    def bands(self) -> Iterator[slice]:
        rows = math.ceil(self.down / math.ceil(self.down / self._rows))  # of as few bands as may be, as even ones as may be
        return (slice(start, min(start + rows, self.down)) for start in range(0, self.down, rows))

    def frames(self, parts: Sequence[Tensor], padding: tuple[int, int], around: int) -> Iterator[Tensor]:
        """Each part with zeros about it, as many as all tiles want that look this much further; in the same memory."""
        (top, left), (images, height, width, channels) = padding, parts[0].shape
        whole = self.side * self.down + around, self.side * self.right + around
        if whole == (height, width):
            yield from parts
            return
        frame = parts[0].new_zeros(images, *whole, channels)
        inside = frame[:, top : top + height, left : left + width]
        for part in parts:
            inside[: len(part)].copy_(part)
            yield frame[: len(part)]

    def under(self, framed: Tensor, rows: slice) -> Tensor:
        """Places that the tiles of these rows look at."""
        return framed[:, self.side * rows.start : self.side * rows.stop + 2]

    def inside(self, y: Tensor, rows: slice) -> Tensor:
        """Places of these rows of tiles."""
        return y[:, self.side * rows.start : self.side * rows.stop]


def _spread(matrix: Tensor, places: Tensor, side: int) -> Tensor:
    """The matrix [k, q] along both axes of all q x q places of [N, H, W, C], one every side -> [k k, N, tiles, C]."""
    across = _along(matrix, places, 2, side)  # [k, N, H, right, C]
    both = _along(matrix, across, 2, side)  # [k, k, N, down, right, C]
    return both.view(len(matrix) ** 2, len(places), -1, places.shape[3])


def _along(matrix: Tensor, places: Tensor, axis: int, step: int) -> Tensor:
    """The matrix [k, q] times all q places in a row of an axis, one every step -> [k, ...], one of an axis each."""
    rows = places.unfold(axis, matrix.shape[1], step).movedim(-1, 0)
    return (matrix @ rows.reshape(matrix.shape[1], -1)).view(len(matrix), *rows.shape[1:])


def _join(matrix: Tensor, products: Tensor, bias: Tensor | None, y: Tensor, side: int) -> None:
    """The matrix [m, k] along both axes of products [k k, N tiles, O], plus the bias, into tiles of y [N, H, W, O]."""
    tiles = y.unflatten(1, (-1, side)).unflatten(3, (-1, side))  # [N, down, m, right, m, O]
    images, down, _, right = tiles.shape[:4]
    once = (matrix @ products.view(matrix.shape[1], -1)).view(side, matrix.shape[1], -1)
    places = (matrix @ once).view(side, side, images, down, right, -1).permute(2, 3, 0, 4, 1, 5)
    tiles.copy_(places) if bias is None else torch.add(places, bias, out=tiles)


def _rows_first(features: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H, W, C]."""
    return features.permute(0, 2, 3, 1)

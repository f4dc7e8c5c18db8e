"""3x3 convolutions with a quarter of the multiplications, or four ninths: Winograd's (Lavin and Gray, arXiv 1509.09308).

y  m x m places of the output: a tile                                   g = dH/dy
x  k x k places of the input under it, k = m + 2; neighbours share two rows or columns        V = B x B'
w  the kernel of one pair of channels                                                         U = G w G'

    y = A' (sum over input channels of U . V) A        dH/dw = G' (sum over tiles of V . (A g A')) G
    dH/dx = A' (sum over output channels of U . V) A, of g, with the matrices of the way back

. is place by place, so that each of k k places is one product of matrices. The other matrices (winograd_forms.py) work along
one axis of the image after the other (winograd_tiles.py). V, which y and dH/dw both want, is made once where it is worth its
memory (winograd_choice.kept).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm.winograd_forms import Form, Way
from lplgrad_backend.lplgrad.gradnorm.winograd_tiles import APART, cut, join, planes

TOGETHER = 4096
"""Places of y that are done at a time, if a row of tiles has no more: few enough to stay near the
processor, and enough to fill it (measured)."""

LARGEST_SPREAD = 2**20
"""Numbers in dH/dU of some images, from which memory is what takes the time."""


class Winograd:
    """A convolution by a weight [O, I, 3, 3] with stride 1, for as many calls as there are."""

    def __init__(self, form: Form, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> None:
        self.form, self._bias, self._padding = form, bias, padding
        self._spread = _spread(form, weight)

    def __call__(self, x: Tensor, kept: Sequence[Tensor] = ()) -> Tensor:
        """x [N, I, H, W] -> y [N, O, H', W'], both channels last.

        Args:
            kept: `tiles` of x and this form, if they are known.
        """
        grid = Grid.over(output_size(x, self._padding), self.form.side)
        most = kept[0].shape[1] if kept else len(x)
        found = kept or _tiles(self.form.forwards, x, grid, self._padding, most)
        return _convolved(found, x, self._spread.mT, self._bias, self._padding, self.form.forwards, most)

    def input_gradient(self, g: Tensor) -> Tensor:
        """dH/dy [N, O, H', W'] -> dH/dx [N, I, H, W], both channels last."""
        down, right = self._padding
        padding = 2 - down, 2 - right
        grid = Grid.over(output_size(g, padding), self.form.side)
        found = _tiles(self.form.backwards, g, grid, padding, len(g))
        return _convolved(found, g, self._spread, None, padding, self.form.backwards, len(g))


def tiles(form: Form, x: Tensor, outputs: int, padding: tuple[int, int]) -> list[Tensor]:
    """V [k k, N, P, I] of x [N, I, H, W], some images and P tiles after the other, as `weight_gradients` wants them."""
    grid, most = Grid.over(output_size(x, padding), form.side), _most(form, x.shape[1], outputs)
    pieces = len(grid.parts(x, most)) * len(grid.bands())
    numbers = len(x) * grid.tiles * x.shape[1] + pieces * APART
    room = x.new_empty(len(form.kernel) ** 2 * numbers)  # one piece leaves fewer holes
    return list(_tiles(form.forwards, x, grid, padding, most, room))


def weight_gradients(
    form: Form, x: Tensor, g: Tensor, padding: tuple[int, int], kept: Sequence[Tensor] = ()
) -> Tensor:
    """Per-image weight gradients [N, O, I, 3, 3] of a convolution with stride 1, of x [N, I, H, W] and g [N, O, H', W'].

    Args:
        kept: `tiles` of x, if they are known.
    """
    inputs, outputs = x.shape[1], g.shape[1]
    kernels = x.new_empty(len(x), outputs, 3, 3, inputs)
    places = iter(kernels)
    for part in _met(form, x, g, padding, _most(form, inputs, outputs), kept):
        bands = [_spread_gradients(*met) for met in part]
        for of_image in zip(*bands, strict=True):
            _gather(form, _sum(of_image), next(places))
    gradients: Tensor = kernels.permute(0, 1, 4, 2, 3)
    return gradients


def weight_gradient(form: Form, x: Tensor, g: Tensor, padding: tuple[int, int]) -> Tensor:
    """Their sum [O, I, 3, 3], channels last."""
    bands = (band for part in _met(form, x, g, padding, len(x)) for band in part)
    kernels = x.new_empty(g.shape[1], 3, 3, x.shape[1])
    spread = _sum(_multiplied(of_g.flatten(1, 2).mT, of_x.flatten(1, 2)) for of_x, of_g in bands)
    _gather(form, spread, kernels)
    return kernels.permute(0, 3, 1, 2)


ALONE = range(1), 1
"""Kernels are of one tile each."""


def _spread(form: Form, weight: Tensor) -> Tensor:
    """U [k k, O, I] of a weight [O, I, 3, 3]."""
    kernels = _rows_first(weight.contiguous(memory_format=torch.channels_last))
    spread = planes(weight, (len(form.kernel) ** 2, len(weight), 1, weight.shape[1]))
    cut(form.kernel, kernels, (0, 0), 3, ALONE, spread)
    return spread.squeeze(2)


def _spread_gradients(of_x: Tensor, of_g: Tensor) -> list[Tensor]:
    """dH/dU [k k, O, I] of each image, from V [k k, N, P, I] and A g A' [k k, N, P, O]."""
    images = zip(of_x.unbind(1), of_g.unbind(1), strict=True)
    return [_multiplied(g_n.mT, x_n) for x_n, g_n in images]


def _multiplied(left: Tensor, right: Tensor) -> Tensor:
    """A product [k k, P, Q] for each place. The planes lie apart if one thread makes them: several of torch's would take up
    to ten times as long for it (measured)."""
    if torch.get_num_threads() > 1:
        return torch.bmm(left, right)
    room = planes(left, (len(left), left.shape[1], 1, right.shape[2])).squeeze(2)
    return torch.bmm(left, right, out=room)


def _gather(form: Form, spread: Tensor, kernels: Tensor) -> None:
    """dH/dU [k k, O, I] -> kernels [O, 3, 3, I]."""
    join(form.kernel.T, spread.unsqueeze(2), None, kernels, ALONE)


def output_size(x: Tensor, padding: tuple[int, int]) -> tuple[int, int]:
    """H' and W' of x [N, I, H, W]."""
    return x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """Sum of one tensor or more, in the place of the first."""
    return functools.reduce(Tensor.add_, parts)


def _most(form: Form, inputs: int, outputs: int) -> int:
    """Images whose weight gradients are made at a time."""
    return max(1, LARGEST_SPREAD // (len(form.kernel) ** 2 * inputs * outputs))


def _convolved(
    tiles: Iterable[Tensor], x: Tensor, spread: Tensor, bias: Tensor | None, padding: tuple[int, int], way: Way, most: int
) -> Tensor:
    """y, of V of at most so many images after the other."""
    height, width = output_size(x, padding)
    grid = Grid.over((height, width), len(way.joining))
    y = torch.empty(len(x), spread.shape[2], height, width, dtype=x.dtype, memory_format=torch.channels_last)
    places = ((part, rows) for part in grid.parts(_rows_first(y), most) for rows in grid.bands())
    for band, (part, rows) in zip(tiles, places, strict=True):
        products = _multiplied(band.flatten(1, 2), spread).unflatten(1, band.shape[1:3])
        join(way.joining, products, bias, part, (rows, grid.right))
    return y


def _met(
    form: Form, x: Tensor, g: Tensor, padding: tuple[int, int], most: int, kept: Sequence[Tensor] = ()
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """V [k k, N, P, I] and A g A' [k k, N, P, O] of at most so many images after the other, each in bands of P tiles."""
    grid = Grid.over((g.shape[2], g.shape[3]), form.side)
    of_x = iter(kept or _tiles(form.forwards, x, grid, padding, most))
    for part in grid.parts(_rows_first(g), most):
        yield ((next(of_x), _band(form.forwards.joining.T, part, grid, rows, (0, 0))) for rows in grid.bands())


# Tiles


def _tiles(
    way: Way, x: Tensor, grid: Grid, padding: tuple[int, int], most: int, room: Tensor | None = None
) -> Iterator[Tensor]:
    """V [k k, N, P, I] of at most so many images after the other, each in bands of P tiles; one behind the other if there is
    room for it."""
    for part in grid.parts(_rows_first(x), most):
        for rows in grid.bands():
            band = _band(way.spreading, part, grid, rows, padding, room)
            room = None if room is None else room[len(band) * band.stride(0) :]
            yield band


def _band(
    matrix: Tensor, part: Tensor, grid: Grid, rows: range, corner: tuple[int, int], room: Tensor | None = None
) -> Tensor:
    """The matrix along both axes of what is under some rows of tiles [N, H, W, C] -> [k k, N, P, C]."""
    band = planes(part, (len(matrix) ** 2, len(part), len(rows) * grid.right, part.shape[3]), room)
    cut(matrix, part, corner, grid.side, (rows, grid.right), band)
    return band


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
    def tiles(self) -> int:
        """Of an image."""
        return self.down * self.right

    @property
    def _rows(self) -> int:
        """Rows of tiles that are done at a time."""
        return max(1, TOGETHER // (self.side**2 * self.right))

    def parts(self, features: Tensor, most: int) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = features.split(max(1, min(self._rows // self.down, most)))
        return parts

    def bands(self) -> list[range]:
        rows = math.ceil(self.down / math.ceil(self.down / self._rows))  # of as few bands as may be, as even ones as may be
        return [range(start, min(start + rows, self.down)) for start in range(0, self.down, rows)]


def _rows_first(features: Tensor) -> Tensor:
    """[N, C, H, W], channels last -> [N, H, W, C]."""
    return features.permute(0, 2, 3, 1)

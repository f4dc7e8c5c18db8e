"""3x3 convolutions with a quarter of the multiplications, or four ninths: Winograd's (Lavin and Gray, arXiv 1509.09308).

y  m x m places of the output: a tile                                   g = dH/dy
x  k x k places of the input under it, k = m + 2; neighbours share two rows or columns        V = B x B'
w  the kernel of one pair of channels                                                         U = G w G'

    y = A' (sum over input channels of U . V) A        dH/dw = G' (sum over tiles of V . (A g A')) G
    dH/dx = A' (sum over output channels of U . V) A, of g, with the matrices of the way back

. is place by place, so that each of k k places is one product of matrices. The others (winograd_forms.py) are products too,
along one axis of the image after the other; of kernels, which are few, along both at once. V, which y and dH/dw both want,
is made once where it is worth its memory (winograd_choice.kept).
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
        self.form, self._bias, self._padding = form, bias, padding
        self._spread = (form.kernel @ _taps(weight)).permute(1, 2, 0)  # U [k k, I, O]

    def __call__(self, x: Tensor, kept: Sequence[Tensor] = ()) -> Tensor:
        """x [N, I, H, W] -> y [N, O, H', W'], both channels last.

        Args:
            kept: `tiles` of x and this form, if they are known.
        """
        grid = Grid.over(output_size(x, self._padding), self.form.side)
        most = kept[0].shape[1] if kept else len(x)
        found = kept or _tiles(self.form.forwards, x, grid, self._padding, most)
        return _convolved(found, x, self._spread, self._bias, self._padding, self.form.forwards, most)

    def input_gradient(self, g: Tensor) -> Tensor:
        """dH/dy [N, O, H', W'] -> dH/dx [N, I, H, W], both channels last."""
        down, right = self._padding
        padding = 2 - down, 2 - right
        grid = Grid.over(output_size(g, padding), self.form.side)
        found = _tiles(self.form.backwards, g, grid, padding, len(g))
        return _convolved(found, g, self._spread.mT, None, padding, self.form.backwards, len(g))


def tiles(form: Form, x: Tensor, outputs: int, padding: tuple[int, int]) -> list[Tensor]:
    """V [k k, N, P, I] of x [N, I, H, W], some images and P tiles after the other, as `weight_gradients` wants them."""
    grid = Grid.over(output_size(x, padding), form.side)
    room = x.new_empty(len(form.kernel) * len(x) * grid.tiles * x.shape[1])  # one piece leaves fewer holes
    return list(_tiles(form.forwards, x, grid, padding, _most(form, x.shape[1], outputs), room))


def weight_gradients(
    form: Form, x: Tensor, g: Tensor, padding: tuple[int, int], kept: Sequence[Tensor] = ()
) -> Tensor:
    """Per-image weight gradients [N, O, I, 3, 3] of a convolution with stride 1, of x [N, I, H, W] and g [N, O, H', W'].

    Args:
        kept: `tiles` of x, if they are known.
    """
    inputs, outputs = x.shape[1], g.shape[1]
    kernels = x.new_empty(len(x), outputs, 3, 3, inputs)
    start = 0
    for part in _met(form, x, g, padding, _most(form, inputs, outputs), kept):
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


def _most(form: Form, inputs: int, outputs: int) -> int:
    """Images whose weight gradients are made at a time."""
    return max(1, LARGEST_SPREAD // (len(form.kernel) * inputs * outputs))


def _convolved(
    tiles: Iterable[Tensor], x: Tensor, spread: Tensor, bias: Tensor | None, padding: tuple[int, int], way: Way, most: int
) -> Tensor:
    """y, of V of at most so many images after the other."""
    (height, width), side = output_size(x, padding), len(way.joining)
    grid = Grid.over((height, width), side)
    whole = len(x), spread.shape[2], side * grid.down, side * grid.right
    y = torch.empty(whole, dtype=x.dtype, memory_format=torch.channels_last)
    places = (grid.inside(out, rows) for out in grid.parts(_rows_first(y), most) for rows in grid.bands())
    for band, out in zip(tiles, places, strict=True):
        _join(way.joining, torch.bmm(band.flatten(1, 2), spread), bias, out, side)
    if (height, width) == whole[2:]:
        return y  # no view, which an activation in place would not be allowed on
    return y[:, :, :height, :width].contiguous(memory_format=torch.channels_last)


def _met(
    form: Form, x: Tensor, g: Tensor, padding: tuple[int, int], most: int, kept: Sequence[Tensor] = ()
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """V [k k, N, P, I] and A g A' [k k, N, P, O] of at most so many images after the other, each in bands of P tiles."""
    grid = Grid.over((g.shape[2], g.shape[3]), form.side)
    of_x = iter(kept or _tiles(form.forwards, x, grid, padding, most))
    for inside in grid.frames(grid.parts(_rows_first(g), most), (0, 0), 0):
        yield (
            (next(of_x), _spread(form.forwards.joining.T, grid.inside(inside, rows), form.side)) for rows in grid.bands()
        )


# Tiles


def _tiles(
    way: Way, x: Tensor, grid: Grid, padding: tuple[int, int], most: int, room: Tensor | None = None
) -> Iterator[Tensor]:
    """V [k k, N, P, I] of at most so many images after the other, each in bands of P tiles; one behind the other if there is
    room for it."""
    start = 0
    for framed in grid.frames(grid.parts(_rows_first(x), most), padding, 2):
        for rows in grid.bands():
            size = len(way.spreading) ** 2 * len(framed) * (rows.stop - rows.start) * grid.right * x.shape[1]
            out = None if room is None else room[start : start + size]
            start += size
            yield _spread(way.spreading, grid.under(framed, rows), grid.side, out)


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


def _spread(matrix: Tensor, places: Tensor, side: int, out: Tensor | None = None) -> Tensor:
    """The matrix [k, q] along both axes of all q x q places of [N, H, W, C], one every side -> [k k, N, tiles, C]."""
    across = _along(matrix, places, 2, side)  # [k, N, H, right, C]
    both = _along(matrix, across, 2, side, out)  # [k, k, N, down, right, C]
    return both.view(len(matrix) ** 2, len(places), -1, places.shape[3])


def _along(matrix: Tensor, places: Tensor, axis: int, step: int, out: Tensor | None = None) -> Tensor:
    """The matrix [k, q] times all q places in a row of an axis, one every step -> [k, ...], one of an axis each."""
    rows = places.unfold(axis, matrix.shape[1], step).movedim(-1, 0)
    room = None if out is None else out.view(len(matrix), -1)
    return torch.mm(matrix, rows.reshape(matrix.shape[1], -1), out=room).view(len(matrix), *rows.shape[1:])


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

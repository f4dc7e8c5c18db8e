"""From features to Winograd's tiles and back, in one pass over the memory.

    cut      V = M x M'   for every tile of q x q places of x       M [k, q]
    join     y = M P M'   for every k x k products P                M [m, k]

As products of matrices they would take three passes, and a copy of every place under two tiles. The matrices are part of
the machine code, so that what is 0 or 1 in them costs nothing. Places beside the image are zeros when read, and nowhere when
written.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm.assembly import Assembly, Numbers, Routine, Whole, Widths, widths_for

LANES = 8
"""Channels at a time at most, of which a tile of 6 x 6 fits the nearest memory."""

APART = 16
"""Numbers between two of the k k planes. At distances of a power of two all places of a tile would want the same few lines
of the nearest memory (measured: two to three times as long)."""

Matrix = tuple[tuple[float, ...], ...]


def planes(like: Tensor, shape: tuple[int, int, int, int], room: Tensor | None = None) -> Tensor:
    """[k k, N, tiles, C] for `cut` and `join`, in the room if there is one."""
    count, size = shape[0], math.prod(shape[1:])
    apart = size + APART
    rows = like.new_empty(count, apart) if room is None else room[: count * apart].view(count, apart)
    return rows[:, :size].view(shape)


def cut(matrix: Tensor, x: Tensor, corner: tuple[int, int], side: int, tiles: tuple[range, int], out: Tensor) -> None:
    """x [N, H, W, C] -> out [k k, N, tiles, C], whose planes may lie apart.

    Args:
        matrix: [k, q].
        corner: how far above and left of the image the first tile begins.
        side: places from a tile to the next.
        tiles: the rows of tiles that are wanted, and how many tiles are in each.
    """
    rows, right = tiles
    sizes = *x.shape[1:], *corner, side, rows.start, rows.stop, right, out.stride(0)
    _cut(_constants(matrix), widths_for(x.shape[3], LANES))(len(x), (x, out), sizes)


def join(matrix: Tensor, products: Tensor, bias: Tensor | None, y: Tensor, tiles: tuple[range, int]) -> None:
    """products [k k, N, tiles, O], whose planes may lie apart, plus the bias [O] if there is one -> y [N, H, W, O].

    Args:
        matrix: [m, k].
    """
    rows, right = tiles
    sizes = *y.shape[1:], rows.start, rows.stop, right, products.stride(0)
    arrays = (products, y) if bias is None else (products, y, bias)
    _join(_constants(matrix), bias is not None, widths_for(y.shape[3], LANES))(len(y), arrays, sizes)


def _constants(matrix: Tensor) -> Matrix:
    return tuple(map(tuple, matrix.tolist()))


@functools.cache
def _cut(matrix: Matrix, widths: Widths) -> Routine:
    written = Assembly("cut", arrays=2, sizes=10)
    x, out = written.arrays
    height, width, channels, top, left, side, first, last, right, plane = written.sizes
    with written.loop(written.first, written.last) as n, written.loop(first, last) as i, written.loop(0, right) as j:
        rows = [i * side + r - top for r in range(len(matrix[0]))]
        inside = [row.is_within(height) for row in rows]
        tile = (n * (last - first) + i - first) * right + j
        for lanes, c in written.channels(channels, widths):

            def column(s: Whole, c: Whole = c, lanes: int = lanes) -> list[Numbers]:
                at = j * side + s - left
                met = [written.code.and_(one, at.is_within(width)) for one in inside]
                places = [((n * height + row) * width + at) * channels + c for row in rows]
                return [written.load(x, place, lanes, one) for place, one in zip(places, met, strict=True)]

            for r, s, numbers in _transformed(written, matrix, column, lanes):
                written.store(numbers, out, plane * (r * len(matrix) + s) + tile * channels + c, lanes)
    return Routine(written)


@functools.cache
def _join(matrix: Matrix, biased: bool, widths: Widths) -> Routine:
    written = Assembly("join", arrays=2 + biased, sizes=7)
    products, y, *bias = written.arrays
    height, width, channels, first, last, right, plane = written.sizes
    side, reach = len(matrix), len(matrix[0])
    with written.loop(written.first, written.last) as n, written.loop(first, last) as i, written.loop(0, right) as j:
        tile = (n * (last - first) + i - first) * right + j
        for lanes, c in written.channels(channels, widths):

            def column(s: Whole, c: Whole = c, lanes: int = lanes) -> list[Numbers]:
                places = [plane * (s + r * reach) + tile * channels + c for r in range(reach)]
                return [written.load(products, place, lanes) for place in places]

            plus = [written.load(one, c, lanes) for one in bias]
            for r, s, numbers in _transformed(written, matrix, column, lanes):
                row, at = i * side + r, j * side + s
                met = written.code.and_(row.is_within(height), at.is_within(width))
                place = ((n * height + row) * width + at) * channels + c
                written.store(functools.reduce(Numbers.__add__, plus, numbers), y, place, lanes, met)
    return Routine(written)


def _transformed(
    written: Assembly, matrix: Matrix, column: Callable[[Whole], list[Numbers]], lanes: int
) -> Iterator[tuple[Whole, int, Numbers]]:
    """The matrix along both axes of what has such columns: row, place in the row, and what is there."""
    reach = len(matrix[0])
    middle = written.scratch(len(matrix) * reach * lanes)
    with written.loop(0, reach) as s:
        for row, numbers in enumerate(_products(matrix, column(s))):
            written.store(numbers, middle, (s + row * reach) * lanes, lanes)
    with written.loop(0, len(matrix)) as r:
        once = [written.load(middle, (r * reach + place) * lanes, lanes) for place in range(reach)]
        yield from ((r, place, numbers) for place, numbers in enumerate(_products(matrix, once)))


def _products(matrix: Matrix, column: Sequence[Numbers]) -> Iterator[Numbers]:
    """The matrix times a column, the zeros left out."""
    for factors in matrix:
        parts = [one if factor == 1 else one * factor for factor, one in zip(factors, column, strict=True) if factor]
        yield functools.reduce(Numbers.__add__, parts)

"""The matrices of F(m x m, 3 x 3), by Toom and Cook's interpolation (Lavin and Gray, arXiv 1509.09308, section 4; Barabasz
et al., arXiv 1803.10986).

m  side of a tile of y                               k = m + 2  side of the places of x under it
p  k - 1 points, and infinity as the last            N_j = product over i != j of (p_j - p_i)

    A [k, m]  A_j = (1, p_j, p_j^2, ...)              of infinity  (0, ..., 0, 1)
    G [k, 3]  G_j = (1, p_j, p_j^2) / N_j             of infinity  (0, 0, 1)
    B [k, k]  B_j = coefficients of the polynomial that is 0 at all points but p_j; of infinity, at all

A kernel turned about is a polynomial turned about, w'(p) = p^2 w(1/p), so where every point's inverse is a point too, U of
a kernel serves the way back: its rows in another order, times factors that A takes on.

A form is the more exact the nearer its points are to 1 and to each other's middle. With 2/3 and 3/2 one of 4 x 4 errs in
the mean by 9e-7 of y's length, with the usual 1 and 2 by 2e-6, one of 2 x 2 by 3e-7 and torch's own convolution by 4e-7
(128 channels). Fractions cost little: reading and writing takes longer than all the arithmetic.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(2, 3), Fraction(3, 2), Fraction(-2, 3), Fraction(-3, 2)),
}
"""By the side of a tile; infinity is one more."""


@dataclass(frozen=True)
class Way:
    """Two matrices that belong together, for each axis of an image, float32.

    Args:
        spreading: B [k, k], by which V is made of the places under a tile.
        joining: A' [m, k], by which a tile of y is made of products.
    """

    spreading: Tensor
    joining: Tensor


@dataclass(frozen=True)
class Form:
    """Tiles of m x m.

    Args:
        side: m.
        kernel: G [k, 3], for each axis, by which U is made of a kernel.
        forwards, backwards: x and y; and dH/dy and dH/dx, where U is the same.
    """

    side: int
    kernel: Tensor
    forwards: Way
    backwards: Way


@functools.cache
def form(side: int) -> Form:
    """Of tiles of side x side, one of POINTS."""
    points = POINTS[side]
    a = _matrix([*(_powers(point, side) for point in points), _last(side)])
    zeros = [*(_others(point, points) for point in points), points]
    b = _matrix([_coefficients(some) for some in zeros])
    distances = [math.prod(point - other for other in _others(point, points)) for point in points]
    g = _matrix([*(_powers(point, 3) for point in points), _last(3)]) / _matrix([[*distances, 1]]).T
    turned = _inverses(points)
    factors = (g.flip(1) * g[turned]).sum(1, keepdim=True) / g[turned].square().sum(1, keepdim=True)
    backwards = _way((factors * a)[turned], b[turned])
    return Form(side, g.float(), _way(a, b), backwards)


def _way(a: Tensor, b: Tensor) -> Way:
    return Way(b.float(), a.T.float())


def _matrix(rows: Sequence[Sequence[Fraction | int]]) -> Tensor:
    """Short rows end with zeros."""
    whole = itertools.zip_longest(*rows, fillvalue=0)
    return torch.tensor([[float(number) for number in column] for column in whole], dtype=torch.float64).T


def _powers(point: Fraction, count: int) -> list[Fraction]:
    return [point**power for power in range(count)]


def _last(count: int) -> list[int]:
    return [0] * (count - 1) + [1]


def _others(point: Fraction, points: Sequence[Fraction]) -> list[Fraction]:
    return [other for other in points if other != point]


def _coefficients(zeros: Sequence[Fraction]) -> list[Fraction]:
    """Of the polynomial with these zeros, the lowest power first."""
    found = [Fraction(1)]
    for zero in zeros:
        found = [lower - zero * same for lower, same in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)]
    return found


def _inverses(points: Sequence[Fraction]) -> list[int]:
    """Where the inverse of each point is, and 0 where infinity is."""
    return [points.index(1 / point) if point else len(points) for point in points] + [points.index(Fraction(0))]

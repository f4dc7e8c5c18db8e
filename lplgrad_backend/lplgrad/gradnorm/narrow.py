"""Weight gradients, image by image, of convolutions whose groups have few channels: depthwise ones, and those of colours.

n  image    p, q  place of the output    i, j  offset in the kernel window    c  output channel    a  input channel
r = stride p + dilation i - padding,  s = stride q + dilation j - padding

    G_n,ij,a,c = sum over p, q of g_n,pq,c x_n,rs,a      a = c alone where the convolution is depthwise

Too little arithmetic for a product of matrices, and oneDNN's own weight gradients copy all of it first: they take up to 7
times as long (measured). Here a row of the output meets a row of the input, neighbouring channels side by side, and the
sums for one row of the kernel stay in registers.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm.assembly import Assembly, Numbers, Routine, Whole, Widths, readable, widths_for
from lplgrad_backend.lplgrad.gradnorm.products import Window

MOST_INPUTS = 4
"""Input channels of a convolution in one group; with more, others are faster."""

WIDEST = 11
"""Columns of a kernel, of which there is a routine each."""

TOGETHER = 5
"""Columns whose sums fit the registers: two for each with AVX2, which has sixteen."""


def is_narrow(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether `weight_gradients` can do a convolution of x [N, I, H, W] by a weight [O, I / groups, k, k]."""
    outputs, inputs = weight.shape[:2]
    depthwise = inputs == 1 and window.groups == outputs
    few = window.groups == 1 and inputs <= MOST_INPUTS
    return (depthwise or few) and weight.shape[3] <= WIDEST and readable(x, g)


def weight_gradients(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Tensor:
    """G of x [N, I, H, W] and g [N, O, H', W'] -> [N, O, I / groups, k, k], output channels last in memory."""
    images, outputs, rows, columns = g.shape
    inputs, height, width = weight.shape[1:]
    found = g.new_zeros(images, height, width, inputs, outputs)
    start, stop = _inside(x.shape[3], columns, width, window)
    sizes = (
        *x.shape[1:], rows, columns, outputs, *window.stride, *window.padding, *window.dilation, height, start, stop
    )  # fmt: skip
    _routine(width, window.groups > 1, widths_for(outputs))(images, (x, g, found), sizes)
    return found.permute(0, 4, 3, 1, 2)


def _inside(pixels: int, columns: int, width: int, window: Window) -> tuple[int, int]:
    """The columns of the output under which all of a kernel's row lies on the image: from the first to below the last."""
    stride, padding, reach = window.stride[1], window.padding[1], (width - 1) * window.dilation[1]
    start = min(columns, math.ceil(padding / stride))
    return start, max(start, min(columns, (pixels - 1 + padding - reach) // stride + 1))


@functools.cache
def _routine(width: int, depthwise: bool, widths: Widths) -> Routine:
    return Routine(_Loops(width, depthwise, widths).written)


@dataclass(frozen=True)
class _Meeting:
    """A row of the output and a row of the input that an offset i puts over it.

    Attributes:
        x, g: the numbers of their first places.
        found: the number of the kernel's place there, of the whole batch's.
        a, c, lanes: an input channel, an output channel, and how many of these are meant.
    """

    x: Whole
    g: Whole
    found: Whole
    a: Whole
    c: Whole
    lanes: int


class _Loops:
    """Images, rows of the output, channels, rows of the kernel, and places in a row: the routine while it is written."""

    def __init__(self, width: int, depthwise: bool, widths: Widths) -> None:
        self.width, self.depthwise = width, depthwise
        self.written = Assembly("narrow", arrays=3, sizes=15)
        self.x, self.g, self.found = self.written.arrays
        (
            self.inputs, self.height, self.pixels, self.rows, self.columns, self.outputs, self.down, self.right, self.top,
            self.left, self.dilation, self.across, self.kernel_height, self.start, self.stop,
        ) = self.written.sizes  # fmt: skip
        with self.written.loop(self.written.first, self.written.last) as n, self.written.loop(0, self.rows) as p:
            for lanes, c in self.written.channels(self.outputs, widths):
                self._meet(n, p, c, lanes)

    def _meet(self, n: Whole, p: Whole, c: Whole, lanes: int) -> None:
        """A row of the output meets all that its kernel lies on."""
        with self.written.loop(0, self.kernel_height) as i:
            r = p * self.down + i * self.dilation - self.top
            x, g = (n * self.height + r) * self.pixels, (n * self.rows + p) * self.columns
            found = (n * self.kernel_height + i) * self.width
            with self.written.code.if_then(r.is_within(self.height)):
                if self.depthwise:
                    self._add(_Meeting(x, g, found, c, c, lanes))
                else:
                    with self.written.loop(0, self.inputs) as a:
                        self._add(_Meeting(x, g, found, a, c, lanes))

    def _add(self, met: _Meeting) -> None:
        """The products of two rows, to G."""
        some = math.ceil(self.width / math.ceil(self.width / TOGETHER))
        for first in range(0, self.width, some):
            totals = {j: self.written.total(met.lanes) for j in range(first, min(first + some, self.width))}
            with self.written.loop(self.start, self.stop) as q:
                g = self._gradient(met, q)
                for j, total in totals.items():
                    total.add(self._pixel(met, self._column(q, j)) * g)
            for j, total in totals.items():
                self.written.add(total.value, self.found, self._place(met, j), met.lanes)
        for left, right in ((0, self.start), (self.stop, self.columns)):
            with self.written.loop(left, right) as q, self.written.loop(0, self.width) as offset:
                self._add_beside(met, q, offset)

    def _add_beside(self, met: _Meeting, q: Whole, j: Whole) -> None:
        """One product, where a part of the kernel's row lies beside the image."""
        s = self._column(q, j)
        with self.written.code.if_then(s.is_within(self.pixels)):
            product = self._pixel(met, s) * self._gradient(met, q)
            self.written.add(product, self.found, self._place(met, j), met.lanes)

    def _column(self, q: Whole, j: Whole | int) -> Whole:
        return q * self.right + self.across * j - self.left

    def _pixel(self, met: _Meeting, s: Whole) -> Numbers:
        read = self.written.load if self.depthwise else self.written.spread
        return read(self.x, (met.x + s) * self.inputs + met.a, met.lanes)

    def _gradient(self, met: _Meeting, q: Whole) -> Numbers:
        return self.written.load(self.g, (met.g + q) * self.outputs + met.c, met.lanes)

    def _place(self, met: _Meeting, j: Whole | int) -> Whole:
        """Of G_ij,a,c in memory."""
        if self.depthwise:
            return (met.found + j) * self.outputs + met.c
        return ((met.found + j) * self.inputs + met.a) * self.outputs + met.c

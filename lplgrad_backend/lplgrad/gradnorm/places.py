"""Sums over the places of features, and the way back through an activation, in one pass over the memory.

    f(g, z)   the activation's gradient    total = sum over places of f(g, z)    inner = sum over places of f(g, z) z

torch would read and write everything once for f and once or twice more for each sum, which takes two to four times as long
(measured).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm.activation import Activation, InLanes
from lplgrad_backend.lplgrad.gradnorm.assembly import Assembly, Routine, Widths, readable, widths_for
from lplgrad_backend.lplgrad.gradnorm.tally import at_least_single

TOGETHER = 32
"""Places that are added in registers before they go to the sum: few enough to stay near the processor until it is the next
channels' turn, and that rounding does not grow with the number of all places."""


def back(
    activation: Activation | None, g: Tensor, z: Tensor | None, wanted: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """f(g, z) [N, C, H, W], its total and its inner sum [N, C], which is None where it is not wanted.

    Args:
        z: like g; what f is a function of, where there is an activation.
        wanted: whether the inner sum is, which takes a z.
    """
    if z is not None and (is_read(activation, g, z) or (activation is None and wanted and readable(g, z))):
        g, total, inner = _swept(activation, g, z)
        return g, total, inner if wanted else None
    if activation is not None and z is not None:
        g = activation.gradient(g, z)
    if z is None or not wanted:
        return g, total_of(g), None
    return g, *sums(g, z)


def is_read(activation: Activation | None, g: Tensor, z: Tensor) -> bool:
    """Whether the way back looks at z in the same pass, so that the inner sum costs nothing."""
    return activation is not None and activation.in_lanes is not None and readable(g, z)


def sums(g: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The total of g and the inner sum of g and z, both [N, C, ...] -> [N, C] each, at least float32."""
    return _swept(None, g, z)[1:] if readable(g, z) else (total_of(g), total_of(g * z))


def total_of(g: Tensor) -> Tensor:
    """[N, C, ...] -> [N, C], at least float32."""
    places = tuple(range(2, g.dim()))
    return g.sum(places, dtype=at_least_single(g)) if places else g


def row_lengths(gradients: Tensor) -> Tensor:
    """||G_n,o|| of weight gradients [N, O, I, k, k] -> [N, O]."""
    rows = gradients.permute(0, 3, 4, 2, 1)
    if rows.is_contiguous() and rows[0, ..., 0].numel() > 1:  # as narrow.py lays them
        features = rows.flatten(1, 3).mT.unsqueeze(3)
        if readable(features):
            return _swept(None, features, features)[2].sqrt()
    lengths: Tensor = torch.linalg.vector_norm(gradients, dim=(2, 3, 4))
    return lengths


def _swept(activation: Activation | None, g: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    images, channels, height, width = g.shape
    found = g if activation is None else torch.empty_like(g)
    total, inner = g.new_zeros(2, images, channels).unbind()
    sweep = _sweep(None if activation is None else activation.in_lanes, widths_for(channels))
    sweep(images, (g, z, found, total, inner), (height * width, channels))
    return found, total, inner


@functools.cache
def _sweep(gradient: InLanes | None, widths: Widths) -> Routine:
    written = Assembly("sweep", arrays=5, sizes=2)
    g, z, found, total, inner = written.arrays
    places, channels = written.sizes
    with written.loop(written.first, written.last) as n, written.loop(0, places, TOGETHER) as start:
        stop = (start + TOGETHER).least(places)
        for lanes, c in written.channels(channels, widths):
            of_g, of_gz = written.total(lanes), written.total(lanes)
            with written.loop(start, stop) as p:
                at = (n * places + p) * channels + c
                g_p, z_p = written.load(g, at, lanes), written.load(z, at, lanes)
                if gradient is not None:
                    g_p = gradient(g_p, z_p)
                    written.store(g_p, found, at, lanes)
                of_g.add(g_p)
                of_gz.add(g_p * z_p)
            written.add(of_g.value, total, n * channels + c, lanes)
            written.add(of_gz.value, inner, n * channels + c, lanes)
    return Routine(written)

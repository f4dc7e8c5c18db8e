"""Convolutions of any geometry, with inputs and gradients, and their weight gradients by autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm.products import Window

Problem = tuple[Tensor, Tensor, Tensor, Window]


def problem(
    images: int, channels: tuple[int, int], size: tuple[int, int], kernel: tuple[int, int], window: Window
) -> Problem:
    """x, g and the weight; channels are those of a group."""
    random = torch.Generator().manual_seed(sum((images, *channels, *size, *kernel)))
    x = torch.randn(images, channels[0] * window.groups, *size, generator=random)
    weight = torch.randn(channels[1] * window.groups, channels[0], *kernel, generator=random)
    outputs = F.conv2d(x, weight, None, window.stride, window.padding, window.dilation, window.groups)
    return x, torch.randn(outputs.shape, generator=random), weight, window


def oracle(x: Tensor, g: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Per-image weight gradients, float64."""
    found = []
    for image, gradient in zip(x.double().split(1), g.double().split(1), strict=True):
        leaf = weight.double().requires_grad_()
        outputs = F.conv2d(image, leaf, None, window.stride, window.padding, window.dilation, window.groups)
        found.append(torch.autograd.grad(outputs, leaf, gradient)[0])
    return torch.stack(found)


def agree(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
windows = st.builds(
    Window,
    stride=pairs,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=pairs,
    groups=st.integers(1, 3),
)

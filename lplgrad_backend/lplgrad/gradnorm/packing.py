"""Convolutions whose weight lies in memory as oneDNN wants it, arranged once instead of at every call.

torch's own convolutions rearrange the weight each time; where images are few and channels many, that costs up to a third
of the call (measured: 512 channels on 7x7 places, four images). The two functions are what torch.compile makes of frozen
convolutions on a processor (torch/_inductor/mkldnn_lowerings.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CONVOLVE: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
ARRANGE: Callable[..., Tensor] | None = getattr(torch._C._nn, "mkldnn_reorder_conv2d_weight", None)
"""None where torch was built without oneDNN."""

WORTH_ARRANGING = 2**14
"""Numbers in a weight from which its arrangement takes longer than a call of torch does (measured)."""

Pair = tuple[int, int]


def packable(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of x by a weight [O, I, k, k] is faster so."""
    return (
        CONVOLVE is not None
        and ARRANGE is not None
        and torch.backends.mkldnn.is_available()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.numel() >= WORTH_ARRANGING
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def turnable(weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> bool:
    """Whether `turn` can do a convolution."""
    within = all(p <= d * (k - 1) for p, d, k in zip(padding, dilation, weight.shape[2:], strict=True))
    return groups == 1 and stride == (1, 1) and within


@dataclass(frozen=True)
class Packed:
    """x [N, I, H, W], channels last -> y [N, O, H', W'], channels last. Made by `pack`."""

    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair

    def __call__(self, x: Tensor) -> Tensor:
        assert CONVOLVE is not None
        return CONVOLVE(x, self.weight, self.bias, self.padding, self.stride, self.dilation, 1, "none", [], "")


def pack(weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, x: Tensor) -> Packed:
    """A convolution in one group by a weight [O, I, k, k], arranged for inputs of x's size and right for others."""
    assert ARRANGE is not None
    arranged = ARRANGE(weight.to_mkldnn(), padding, stride, dilation, 1, list(x.shape))
    return Packed(arranged, bias, stride, padding, dilation)


@dataclass(frozen=True)
class Turned:
    """From a gradient at the output of a convolution with stride 1 to that at its input: a convolution as well.

    dH/dx_p = sum_d W_d' g_(p - d): the kernel turned about, its channels swapped, and so much padding that x comes out.
    torch's own way back for few channels is no faster, and takes up to twice as long for few images (measured).
    """

    weight: Tensor
    padding: Pair
    dilation: Pair

    def __call__(self, g: Tensor) -> Tensor:
        return F.conv2d(g, self.weight, None, 1, self.padding, self.dilation)


def turn(weight: Tensor, padding: Pair, dilation: Pair) -> Turned:
    """The way back through a convolution that is `turnable`."""
    turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
    down, right = (d * (size - 1) - p for d, size, p in zip(dilation, weight.shape[2:], padding, strict=True))
    return Turned(turned, (down, right), dilation)


def way_back(weight: Tensor, padding: Pair, dilation: Pair, g: Tensor) -> Packed | Turned:
    """The same for gradients of g's size, arranged where that is faster."""
    turned = turn(weight, padding, dilation)
    return pack(turned.weight, None, (1, 1), turned.padding, dilation, g) if packable(g, weight) else turned

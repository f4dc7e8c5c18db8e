"""Convolutions over maps of few pixels, as a network made for larger images has them at its end.

    y = W * x, where x is [N, C, 1, 1] and W [D, C, 2p+1, 2p+1], padded by p   =>   y = W[:, :, p, p] x

All other taps of W meet the padding alone, and their gradient is 0. oneDNN arranges them all the same, and their gradient
most of all: a training step of ResNet-18 on 32 images of 16 x 16 takes 2.6 times as long with AVX2, one thread.

    y = W * x, where y is [N, D, 2, 2] or less   =>   y_p = W x_p, where x_p [C k k] is what the kernel meets at pixel p

One product of matrices for all images and pixels. oneDNN reaches half of its speed there: forward and backward by
512 x 512 x 3 x 3 take 1.5 times as long with AVX2, one thread, and by a stride of 2 to 2 x 2 pixels 1.8 times; a whole step
of ResNet-18 with the small stem on 16 x 16, 1.15 times. From 3 x 3 pixels on, and below LARGE, little or nothing is gained.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lplgrad_backend.lplgrad.gradnorm.matrices import has_wide_vectors

FEW = 4
"""Pixels of an output up to which a product of matrices is faster."""

LARGE = 2**19
"""Numbers in a kernel from which it is."""


class SmallMaps(TorchFunctionMode):
    """Within this block such convolutions on the processor are products. What they give, and the gradients, differ by
    rounding at most.

    Args:
        multiplying: whether y is a product for more pixels than one; by default where torch's products fill the processor
            (gradnorm/matrices.py), as measured.
    """

    def __init__(self, multiplying: bool | None = None) -> None:
        super().__init__()
        self._multiplying = not has_wide_vectors() if multiplying is None else multiplying

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.conv2d and len(args) == 7 and _meets_the_centre_alone(*args):
            images, kernels, bias, stride, (down, right), dilation, groups = args
            return torch.conv2d(
                images, kernels[:, :, down : down + 1, right : right + 1], bias, stride, 0, dilation, groups
            )
        if func is torch.conv2d and len(args) == 7 and self._multiplying and _gives_few_pixels(*args):
            return _as_a_product(*args[:-1])
        return func(*args, **(kwargs or {}))


def _meets_the_centre_alone(
    images: Tensor, kernels: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    sides = tuple(kernels.shape[-2:])
    centred = tuple(2 * pixels + 1 for pixels in padding) if isinstance(padding, tuple) else ()
    return (
        images.device.type == "cpu"
        and tuple(images.shape[-2:]) == (1, 1)
        and sides == centred != (1, 1)
        and tuple(dilation) == (1, 1)
    )


def _gives_few_pixels(
    images: Tensor, kernels: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    return (
        images.device.type == "cpu"
        and groups == 1
        and kernels.numel() >= LARGE
        and kernels.shape[2] * kernels.shape[3] > 1
        and isinstance(padding, tuple)
        and len(images) > 0
        and _rows(images, kernels, stride, padding, dilation, 2) * _rows(images, kernels, stride, padding, dilation, 3)
        <= FEW
    )


def _rows(images: Tensor, kernels: Tensor, stride: Any, padding: Any, dilation: Any, axis: int) -> int:
    """Height (axis 2) or width (3) of the output."""
    at = axis - 2
    met = images.shape[axis] + 2 * padding[at] - dilation[at] * (kernels.shape[axis] - 1)
    return int((met - 1) // stride[at] + 1)


def _as_a_product(
    images: Tensor, kernels: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any
) -> Tensor:
    met = F.unfold(images, kernels.shape[2:], dilation, padding, stride)  # [N, C k k, P]
    rows = met.transpose(1, 2).flatten(0, 1)
    given = F.linear(rows, kernels.flatten(1), bias)
    size = [_rows(images, kernels, stride, padding, dilation, axis) for axis in (2, 3)]
    maps: Tensor = given.view(len(images), -1, len(kernels)).transpose(1, 2).unflatten(2, size)
    return maps.contiguous()

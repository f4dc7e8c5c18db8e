"""Convolutions in training, where torch's own take longer than they must. What these give, and the gradients, differ by
rounding at most.

    y = W * x, where x is [N, C, 1, 1] and W [D, C, 2p+1, 2p+1], padded by p   =>   y = W[:, :, p, p] x

All other taps of W meet the padding alone, and their gradient is 0. oneDNN arranges them all the same, and their gradient
most of all: a training step of ResNet-18 on 32 images of 16 x 16 takes 2.6 times as long with AVX2, one thread.

    y = W * x, where W is 3 x 3 and its channels many   =>   by Winograd (gradnorm/winograd.py)

Forward and backward take 0.5 to 0.9 of the time where channels come last, a whole step of ResNet-18 with its images arranged
so 0.58 to 0.72 of it (AVX2, one thread; benchmarks/training_step.md has all that is below and above together).

    y = W * x, where y is [N, D, 2, 2] or less   =>   y_p = W x_p, where x_p [C k k] is what the kernel meets at pixel p

One product of matrices for all images and pixels. oneDNN reaches half of its speed there: forward and backward by
512 x 512 x 3 x 3 take 1.5 times as long with AVX2, one thread, and by a stride of 2 to 2 x 2 pixels 1.8 times. From 3 x 3
pixels on, and below LARGE, little or nothing is gained.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from lplgrad_backend.lplgrad.gradnorm import winograd, winograd_choice
from lplgrad_backend.lplgrad.gradnorm.matrices import has_wide_vectors
from lplgrad_backend.lplgrad.gradnorm.products import Window, channels_last
from lplgrad_backend.lplgrad.gradnorm.winograd_forms import Form

FEW = 4
"""Pixels of an output up to which a product of matrices is faster."""

LARGE = 2**19
"""Numbers in a kernel from which it is."""


def arranged(images: Tensor) -> Tensor:
    """The same images [N, C, H, W], channels last in memory where convolutions are measured to be faster so."""
    quicker = images.device.type == "cpu" and not has_wide_vectors()
    return images.contiguous(memory_format=torch.channels_last) if quicker else images


class QuickConvolutions(TorchFunctionMode):
    """Within this block convolutions on the processor take the quickest of these ways.

    Args:
        multiplying: whether the second and the third are among them; by default where torch's products fill the processor
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
        if func is torch.conv2d and len(args) == 7 and isinstance(args[4], tuple):
            return self._convolved(*args)
        return func(*args, **(kwargs or {}))

    def _convolved(
        self,
        images: Tensor,
        kernels: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> Tensor:
        given = images, kernels, bias, stride, padding, dilation, groups
        if _meets_the_centre_alone(*given):
            down, right = padding
            centre = kernels[:, :, down : down + 1, right : right + 1]
            return torch.conv2d(images, centre, bias, stride, 0, dilation, groups)
        if not self._multiplying:
            return torch.conv2d(*given)
        form = winograd_choice.training(images, kernels, Window(stride, padding, dilation, groups))
        if form is not None:
            spread: Tensor = _Spread.apply(form, images, kernels, bias, padding)
            return spread
        return _as_a_product(*given[:-1]) if _gives_few_pixels(*given) else torch.conv2d(*given)


class _Spread(torch.autograd.Function):
    """Winograd's convolution of images [N, C, H, W], channels last, with stride 1."""

    @staticmethod
    def forward(
        context: Any, form: Form, images: Tensor, kernels: Tensor, bias: Tensor | None, padding: tuple[int, int]
    ) -> Tensor:
        context.save_for_backward(images)
        context.form, context.padding = form, padding
        context.convolution = winograd.Winograd(form, kernels, bias, padding)
        return context.convolution(images)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        [images] = context.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        wanted = context.needs_input_grad
        return (
            None,
            context.convolution.input_gradient(gradient) if wanted[1] else None,
            winograd.weight_gradient(context.form, images, gradient, context.padding) if wanted[2] else None,
            gradient.sum((0, 2, 3)) if wanted[3] else None,
            None,
        )


def _meets_the_centre_alone(
    images: Tensor, kernels: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    sides = tuple(kernels.shape[-2:])
    centred = tuple(2 * pixels + 1 for pixels in padding)
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
    return maps if channels_last(images) else maps.contiguous()

"""A convolution, with the BatchNorm and the activation that follow it folded in.

    z = s * (W * x + b - mean) + beta,  s = gamma / sqrt(var + eps)       y = activation(z)
    g = dH/dz,  G_n = weight gradient of image n against g
    dH/dW = s G    dH/db = s sum g    dH/dbeta = sum g
    dH/dgamma = (<W, G> + (b - mean) sum g) / sqrt(var + eps)  =  (sum g z - beta sum g) / gamma

The first form of the last line serves where G is formed. The second serves where it is not; a ReLU's y may stand for
z, since g is 0 where they differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm.activation import Activation
from lplgrad_backend.lplgrad.gradnorm.products import (
    Window,
    depthwise_gradients,
    gram_is_cheaper,
    gram_squares,
    image_weight_gradient,
    outer_products,
    outer_squares,
    positions_last,
    weight_gradients,
)
from lplgrad_backend.lplgrad.gradnorm.tally import Tally, Target

LARGEST_OFFSET = 1e3
"""Above this |beta / gamma| the second form loses too many digits."""


@dataclass(frozen=True)
class Normalisation:
    """BatchNorm with its running statistics. Vectors of the C channels."""

    mean: Tensor
    variance: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    epsilon: float
    gamma_target: Target | None = None
    beta_target: Target | None = None

    @property
    def inverse_deviation(self) -> Tensor:
        return torch.rsqrt(self.variance + self.epsilon)

    @property
    def scale(self) -> Tensor:
        return self.inverse_deviation if self.gamma is None else self.inverse_deviation * self.gamma

    @property
    def shift(self) -> Tensor:
        offset = -self.mean * self.scale
        return offset if self.beta is None else offset + self.beta

    def invertible(self) -> bool:
        """Whether the normalised input can be had back from the output."""
        if self.gamma is None or self.beta is None:
            return True
        return bool((self.beta.abs() < LARGEST_OFFSET * self.gamma.abs()).all())


@dataclass(frozen=True)
class Kernel:
    """W [O, I / groups, k, k] and b [O]."""

    weight: Tensor
    bias: Tensor | None
    window: Window
    weight_target: Target | None = None
    bias_target: Target | None = None


class Convolution:
    """x [N, I, H, W] -> y [N, O, H', W'].

    Args:
        output_kept: y stays as it is until the backward pass, so it may be looked at again.
    """

    def __init__(
        self, kernel: Kernel, norm: Normalisation | None, activation: Activation | None, output_kept: bool
    ) -> None:
        self.kernel, self.norm, self.activation = kernel, norm, activation
        self.weight, self.bias = kernel.weight, kernel.bias
        if norm is not None:
            shift = norm.shift if self.bias is None else norm.shift + self.bias * norm.scale
            self.weight, self.bias = self.weight * norm.scale.view(-1, 1, 1, 1), shift
        self.depthwise = kernel.weight.shape[1] == 1 and kernel.window.groups == kernel.weight.shape[0]
        self.pointwise = kernel.weight.shape[2:] == (1, 1) and kernel.window.plain and kernel.window.groups == 1
        self.needs_output = norm is not None and norm.gamma_target is not None
        self.output_usable = output_kept and (norm is None or norm.invertible())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """y; x and the tensor that the activation and gamma need."""
        window = self.kernel.window
        z = F.conv2d(inputs[0], self.weight, self.bias, window.stride, window.padding, window.dilation, window.groups)
        if self.activation is None:
            return z, (inputs[0], z) if self.needs_output and self.output_usable else (inputs[0],)
        y = self.activation.apply(z)
        return y, (inputs[0], y if self.activation.of_output else z)

    def backward(
        self, tally: Tally, gradient: Tensor, saved: tuple[Tensor, ...], wanted: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        x, z = saved[0], saved[-1]
        if self.activation is not None:
            gradient = self.activation.gradient(gradient, z)
        self._report(tally, x, gradient, z if len(saved) == 2 else None)
        return (self._input_gradient(x, gradient) if wanted[0] else None,)

    def _input_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        window = self.kernel.window
        gradient: Tensor = torch.ops.aten.convolution_backward(
            g, x, self.weight, None, window.stride, window.padding, window.dilation, False, (0, 0), window.groups,
            (True, False, False),
        )[0]  # fmt: skip
        return gradient

    def _report(self, tally: Tally, x: Tensor, g: Tensor, z: Tensor | None) -> None:
        total = g.sum((2, 3))  # [N, O]
        norm, kernel = self.norm, self.kernel
        if norm is not None:
            tally.add(norm.beta_target, total)
        tally.add(kernel.bias_target, total if norm is None else total * norm.scale)
        if norm is None or norm.gamma_target is None:
            self._report_weight(tally, x, g, None)
        elif z is not None and self.output_usable and not self._forms_gradients(x, g):
            tally.add(norm.gamma_target, _gamma_gradient(norm, g, z, total))
            self._report_weight(tally, x, g, None)
        else:
            inner = torch.empty_like(total)
            self._report_weight(tally, x, g, inner)
            offset = -norm.mean if kernel.bias is None else kernel.bias - norm.mean
            tally.add(norm.gamma_target, (inner + offset * total) * norm.inverse_deviation)

    def _forms_gradients(self, x: Tensor, g: Tensor) -> bool:
        if self.depthwise:
            return True
        if self.pointwise:
            return False
        return not gram_is_cheaper(x, g, self.weight, self.kernel.window)

    def _report_weight(self, tally: Tally, x: Tensor, g: Tensor, inner: Tensor | None) -> None:
        """Also writes <W, G> per output channel to `inner` [N, O]."""
        target = self.kernel.weight_target
        if target is None and inner is None:
            return
        if target is not None and target.alone and inner is None and not self._forms_gradients(x, g):
            tally.add_squares(target, self._squares(x, self._scaled(g)))
        elif (target is None or target.alone) and not self.depthwise:
            self._report_one_by_one(tally, x, g, inner)
        else:
            gradients = self._gradients(x, g)
            if inner is not None:
                inner.copy_((gradients * self.kernel.weight).sum((2, 3, 4)))
            tally.add(target, gradients if self.norm is None else gradients * self.norm.scale.view(-1, 1, 1, 1))

    def _report_one_by_one(self, tally: Tally, x: Tensor, g: Tensor, inner: Tensor | None) -> None:
        """One image's weight gradient at a time: it never leaves the cache."""
        squares, rows = [], self.kernel.weight.flatten(1)
        for n in range(x.shape[0]):
            gradient = image_weight_gradient(x[n : n + 1], g[n : n + 1], self.weight, self.kernel.window).flatten(1)
            lengths = torch.linalg.vector_norm(gradient, dim=1)
            squares.append((lengths if self.norm is None else lengths * self.norm.scale).square().sum())
            if inner is not None:
                torch.sum(gradient * rows, dim=1, out=inner[n])
        if self.kernel.weight_target is not None:
            tally.add_squares(self.kernel.weight_target, torch.stack(squares))

    def _scaled(self, g: Tensor) -> Tensor:
        return g if self.norm is None else g * self.norm.scale.view(-1, 1, 1)

    def _squares(self, x: Tensor, g: Tensor) -> Tensor:
        if self.pointwise:
            return outer_squares(positions_last(x), positions_last(g))
        return gram_squares(x, g, (self.weight.shape[2], self.weight.shape[3]), self.kernel.window)

    def _gradients(self, x: Tensor, g: Tensor) -> Tensor:
        shape = self.weight.shape
        if self.depthwise:
            return depthwise_gradients(x, g, (shape[2], shape[3]), self.kernel.window)
        if self.pointwise:
            return outer_products(positions_last(x), positions_last(g)).view(-1, *shape)
        return weight_gradients(x, g, self.weight, self.kernel.window)


def _gamma_gradient(norm: Normalisation, g: Tensor, z: Tensor, total: Tensor) -> Tensor:
    product = (g * z).sum((2, 3))
    if norm.beta is not None:
        product = product - norm.beta * total
    return product if norm.gamma is None else product / norm.gamma

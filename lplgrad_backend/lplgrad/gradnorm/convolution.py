"""A convolution, with the BatchNorm and the activation that follow it folded in.

    z = s * (W * x + b - mean) + beta,  s = gamma / sqrt(var + eps)       y = activation(z)
    g = dH/dz,  G_n = weight gradient of image n against g
    dH/dW = s G    dH/db = s sum g    dH/dbeta = sum g
    dH/dgamma = (<W, G> + (b - mean) sum g) / sqrt(var + eps)  =  (sum g z - beta sum g) / gamma

The first form of the last line serves where G is formed. The second serves where it is not; a ReLU's y may stand for
z, since g is 0 where they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm import narrow, places, winograd, winograd_choice
from lplgrad_backend.lplgrad.gradnorm.activation import Activation
from lplgrad_backend.lplgrad.gradnorm.matrices import linear, outer_sums
from lplgrad_backend.lplgrad.gradnorm.packing import Packed, Turned, pack, packable, turnable, way_back
from lplgrad_backend.lplgrad.gradnorm.products import (
    Window,
    depthwise_gradients,
    gram_is_cheaper,
    gram_squares,
    outer_gram_is_cheaper,
    outer_squares,
    positions_last,
    weight_gradients,
)
from lplgrad_backend.lplgrad.gradnorm.tally import Tally, Target

LARGEST_OFFSET = 1e3
"""Above this |beta / gamma| the second form loses too many digits."""


@dataclass(frozen=True)
class Statistics:
    """BatchNorm with its running statistics. Vectors of the C channels."""

    mean: Tensor
    variance: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    epsilon: float
    gamma_target: Target | None = None
    beta_target: Target | None = None


class Normalisation:
    """The same as s x + t, with the values that its tensors have now."""

    def __init__(self, given: Statistics) -> None:
        self.mean, self.gamma, self.beta, self.epsilon = given.mean, given.gamma, given.beta, given.epsilon
        self.variance = given.variance
        self.gamma_target, self.beta_target = given.gamma_target, given.beta_target
        self.inverse_deviation = torch.rsqrt(given.variance + given.epsilon)
        self.scale = self.inverse_deviation if given.gamma is None else self.inverse_deviation * given.gamma
        offset = given.mean * self.scale
        self.shift = -offset if given.beta is None else given.beta - offset

    @cached_property
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
        memory_format: how x and y lie in memory; the weight takes it on once instead of at every call.
        precision: x's and y's, where it is not the weight's.
    """

    def __init__(
        self, kernel: Kernel, statistics: Statistics | None, activation: Activation | None, output_kept: bool,
        memory_format: torch.memory_format, precision: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        norm = None if statistics is None else Normalisation(statistics)
        self.kernel, self.norm, self.activation = kernel, norm, activation
        self.memory_format = memory_format
        self.weight, self.bias = _arranged(kernel.weight, norm, memory_format), kernel.bias
        if norm is not None:
            self.bias = norm.shift if kernel.bias is None else norm.shift + kernel.bias * norm.scale
        if precision is not None:
            self.weight, self.bias = self.weight.to(precision), None if self.bias is None else self.bias.to(precision)
        self.depthwise = kernel.weight.shape[1] == 1 and kernel.window.groups == kernel.weight.shape[0]
        self.pointwise = (
            kernel.weight.shape[2:] == (1, 1) and kernel.window.padding == (0, 0) and kernel.window.groups == 1
        )
        self.wants_gamma = norm is not None and norm.gamma_target is not None
        self.output_kept = output_kept
        window = kernel.window
        self._turnable = memory_format == torch.channels_last and turnable(
            self.weight, window.stride, window.padding, window.dilation, window.groups
        )
        self._met_before = False
        self._winograd: winograd.Winograd | None = None
        self._packed: Packed | None = None
        self._way_back: Packed | Turned | None = None

    def forward(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """y; x, the tensor that the activation and gamma need, and Winograd's V."""
        x = inputs[0].contiguous(memory_format=self.memory_format)
        if not self._is_product(x):
            self._prepare(x)
        tiles = self._tiles(x)
        z = self._convolve(x, tiles)
        y = z if self.activation is None else self.activation.apply(z)
        output = y if self.activation is None or self.activation.of_output else z
        return y, (x, output, *tiles) if self._is_output_read(x, y) else (x, *tiles)

    def _prepare(self, x: Tensor) -> None:
        """As the second batch suggests: the first is of few images, that tell how much memory one takes, or else of weights
        that have changed since, and that may change again."""
        window = self.kernel.window
        unprepared = self._winograd is None and self._packed is None
        if unprepared and self._met_before and window.groups == 1 and packable(x, self.weight):
            form = winograd_choice.convolution(x, self.weight, window)
            if form is not None:
                self._winograd = winograd.Winograd(form, self.weight, self.bias, window.padding)
                self.weight = self.kernel.weight  # of which only the shape is asked from now on
            else:
                self._packed = pack(self.weight, self.bias, window.stride, window.padding, window.dilation, x)
        self._met_before = True

    def _tiles(self, x: Tensor) -> Sequence[Tensor]:
        """V of x, where both the convolution and weight gradients that will be formed want it, and it is worth keeping."""
        form, target = winograd_choice.kept(x, self.weight, self.kernel.window), self.kernel.weight_target
        another = self._packed is not None or (self._winograd is not None and self._winograd.form is not form)
        if form is None or target is None or another:
            return ()
        padding, outputs = self.kernel.window.padding, len(self.weight)
        g = x.new_empty(1).expand(len(x), outputs, *winograd.output_size(x, padding))  # as large; its numbers do not matter
        formed = not target.alone or self._are_gradients_cheaper(x, g)
        return winograd.tiles(form, x, outputs, padding) if formed else ()

    def _convolve(self, x: Tensor, tiles: Sequence[Tensor]) -> Tensor:
        window = self.kernel.window
        if self._is_product(x):
            product = linear(x.flatten(1), self.weight.flatten(1), self.bias)
            return product[:, :, None, None].clone()  # no view, which an activation in place would not be allowed on
        if self._winograd is not None:
            return self._winograd(x, tiles)
        if self._packed is not None:
            return self._packed(x)
        return F.conv2d(x, self.weight, self.bias, window.stride, window.padding, window.dilation, window.groups)

    def _is_product(self, x: Tensor) -> bool:
        """Whether there is but one place, for which torch's convolution takes 3 to 6 times as long (measured)."""
        return self.pointwise and x.shape[2:] == (1, 1)

    def backward(
        self, tally: Tally, gradient: Tensor, saved: tuple[Tensor, ...], wanted: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        x, *others = saved
        g = gradient.contiguous(memory_format=self.memory_format)
        z = others.pop(0) if self._is_output_read(x, g) else None
        g, total, inner = places.back(self.activation, g, z, self._output_tells(x, g, z))
        self._report(tally, x, g, total, inner, others)
        return (self._input_gradient(x, g) if wanted[0] else None,)

    def _input_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        if self._winograd is not None:
            return self._winograd.input_gradient(g)
        if self._is_product(x):
            return linear(g.flatten(1), self.weight.flatten(1).mT)[:, :, None, None]
        window = self.kernel.window
        if self._way_back is None and self._turnable and g.device.type == "cpu":
            self._way_back = way_back(self.weight, window.padding, window.dilation, g)
        if self._way_back is not None:
            return self._way_back(g)
        gradient: Tensor = torch.ops.aten.convolution_backward.default(
            g, x, self.weight, None, window.stride, window.padding, window.dilation, False, (0, 0), window.groups,
            (True, False, False),
        )[0]  # fmt: skip
        return gradient

    def _report(
        self, tally: Tally, x: Tensor, g: Tensor, total: Tensor, inner: Tensor | None, tiles: Sequence[Tensor]
    ) -> None:
        norm, kernel, target = self.norm, self.kernel, self.kernel.weight_target
        if norm is not None:
            tally.add(norm.beta_target, total)
        if kernel.bias_target is not None:
            tally.add(kernel.bias_target, total if norm is None else total * norm.scale)
        formed = self._forms_gradients(x, g) or (self.wants_gamma and inner is None)
        x = self._seen(x)
        gradients = self._gradients(x, g, tiles) if formed else None
        if target is not None and gradients is None:
            tally.add_squares(target, self._squares(x, self._scaled(g)))
        elif target is not None and gradients is not None:
            tally.add(target, self._weight_gradient(target, gradients))
        if norm is not None and inner is not None:
            tally.add(norm.gamma_target, _gamma_by_output(norm, total, inner))
        elif norm is not None and self.wants_gamma and gradients is not None:
            tally.add(norm.gamma_target, self._gamma(norm, gradients, total))

    def _seen(self, x: Tensor) -> Tensor:
        """The places that a 1x1 kernel looks at."""
        (down, right) = self.kernel.window.stride
        return x[:, :, ::down, ::right] if self.pointwise and (down, right) != (1, 1) else x

    def _forms_gradients(self, x: Tensor, g: Tensor) -> bool:
        """Whether the weight's gradients are formed for its own sake, or only their norm found."""
        target = self.kernel.weight_target
        return target is not None and (not target.alone or self._are_gradients_cheaper(x, g))

    def _is_output_read(self, x: Tensor, g: Tensor) -> bool:
        """Whether the way back looks at the output again. Of g only the size matters, which is the output's."""
        return self.activation is not None or (self.wants_gamma and self.output_kept and self._is_output_cheaper(x, g))

    def _is_output_cheaper(self, x: Tensor, g: Tensor) -> bool:
        """Whether gamma's gradient takes less from the output than from the weight's gradients."""
        return not self._forms_gradients(x, g) or g[0].numel() < self.weight.numel()

    def _output_tells(self, x: Tensor, g: Tensor, z: Tensor | None) -> bool:
        """Whether gamma's gradient is had from the output."""
        if z is None or not self.wants_gamma or not self.output_kept or self.norm is None or not self.norm.invertible:
            return False
        return places.is_read(self.activation, g, z) or self._is_output_cheaper(x, g)

    def _are_gradients_cheaper(self, x: Tensor, g: Tensor) -> bool:
        if self.depthwise:
            return True
        if self.pointwise:
            return not outer_gram_is_cheaper(g.shape[2] * g.shape[3], self.weight.shape[1], self.weight.shape[0])
        return not gram_is_cheaper(x, g, self.weight, self.kernel.window)

    def _weight_gradient(self, target: Target, gradients: Tensor) -> Tensor:
        """With the norm's scale; of a tensor used once, the lengths of its rows will do."""
        if target.alone:
            lengths = places.row_lengths(gradients)
            return lengths if self.norm is None else lengths * self.norm.scale
        return gradients if self.norm is None else gradients * self.norm.scale.view(-1, 1, 1, 1)

    def _gamma(self, norm: Normalisation, gradients: Tensor, total: Tensor) -> Tensor:
        inner = (gradients * self.kernel.weight).sum((2, 3, 4))
        offset = -norm.mean if self.kernel.bias is None else self.kernel.bias - norm.mean
        return (inner + offset * total) * norm.inverse_deviation

    def _scaled(self, g: Tensor) -> Tensor:
        return g if self.norm is None else (g * self.norm.scale.view(-1, 1, 1)).to(g.dtype)

    def _squares(self, x: Tensor, g: Tensor) -> Tensor:
        if self.pointwise:
            return outer_squares(positions_last(x), positions_last(g))
        return gram_squares(x, g, (self.weight.shape[2], self.weight.shape[3]), self.kernel.window)

    def _gradients(self, x: Tensor, g: Tensor, tiles: Sequence[Tensor]) -> Tensor:
        if self.pointwise:
            return outer_sums(positions_last(x), positions_last(g)).view(-1, *self.weight.shape)
        if narrow.is_narrow(x, g, self.weight, self.kernel.window):
            return narrow.weight_gradients(x, g, self.weight, self.kernel.window)
        if self.depthwise:
            return depthwise_gradients(x, g, self.weight, self.kernel.window)
        form = winograd_choice.weight_gradient(x, g, self.weight, self.kernel.window)
        if form is not None:
            return winograd.weight_gradients(form, x, g, self.kernel.window.padding, tiles)
        return weight_gradients(x, g, self.weight, self.kernel.window)


def _arranged(weight: Tensor, norm: Normalisation | None, memory_format: torch.memory_format) -> Tensor:
    """s W, in a memory format."""
    if norm is None:
        return weight.contiguous(memory_format=memory_format)
    arranged = torch.empty_like(weight, memory_format=memory_format)
    return torch.mul(weight, norm.scale.view(-1, 1, 1, 1), out=arranged)


def _gamma_by_output(norm: Normalisation, total: Tensor, inner: Tensor) -> Tensor:
    if norm.beta is not None:
        inner = inner - norm.beta * total
    return inner if norm.gamma is None else inner / norm.gamma

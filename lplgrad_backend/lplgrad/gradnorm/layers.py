"""Rules of the layers other than convolutions. N images; where windows or heads share dimension 0, the image comes first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm import places
from lplgrad_backend.lplgrad.gradnorm.activation import Activation
from lplgrad_backend.lplgrad.gradnorm.convolution import Normalisation, Statistics
from lplgrad_backend.lplgrad.gradnorm.matrices import linear, outer_sums
from lplgrad_backend.lplgrad.gradnorm.products import outer_squares
from lplgrad_backend.lplgrad.gradnorm.tally import Tally, Target, at_least_single

aten = torch.ops.aten

Saved = tuple[Tensor, ...]
Wanted = tuple[bool, ...]


class Linear:
    """y = x W' + b at every position:  dH/dW = sum_p g_p (x) x_p,  dH/db = sum_p g_p."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, weight_target: Target | None, bias_target: Target | None
    ) -> None:
        self.weight, self.bias = weight, bias
        self.weight_target, self.bias_target = weight_target, bias_target

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        return linear(inputs[0], self.weight, self.bias), inputs

    def backward(self, tally: Tally, gradient: Tensor, saved: Saved, wanted: Wanted) -> tuple[Tensor | None, ...]:
        a = saved[0].reshape(tally.images, -1, saved[0].shape[-1])
        g = gradient.reshape(tally.images, -1, gradient.shape[-1])
        tally.add(self.bias_target, g.sum(1))
        if self.weight_target is not None and self.weight_target.alone:
            tally.add_squares(self.weight_target, outer_squares(a, g))
        elif self.weight_target is not None:
            tally.add(self.weight_target, outer_sums(a, g))
        return (linear(gradient, self.weight.mT) if wanted[0] else None,)


class BatchNorm:
    """y = activation(s x + t) in evaluation mode:  dH/dbeta = sum g,  dH/dgamma = sum g (x - mean) / deviation."""

    def __init__(self, statistics: Statistics, activation: Activation | None) -> None:
        self.norm, self.activation = Normalisation(statistics), activation

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        x = inputs[0]
        norm = self.norm
        z = F.batch_norm(x, norm.mean, norm.variance, norm.gamma, norm.beta, False, 0.0, norm.epsilon)
        if self.activation is None:
            return z, (x,)
        y = self.activation.apply(z)
        return y, (x, y if self.activation.of_output else z)

    def backward(self, tally: Tally, gradient: Tensor, saved: Saved, wanted: Wanted) -> tuple[Tensor | None, ...]:
        x, norm = saved[0], self.norm
        g = gradient if self.activation is None else self.activation.gradient(gradient, saved[1])
        channels = (-1, *[1] * (x.dim() - 2))
        total, inner = places.sums(g, x) if norm.gamma_target is not None else (places.total_of(g), None)
        tally.add(norm.beta_target, total)
        if inner is not None:
            tally.add(norm.gamma_target, (inner - norm.mean * total) * norm.inverse_deviation)
        return ((g * norm.scale.view(channels)).to(g.dtype) if wanted[0] else None,)


class LayerNorm:
    """y = gamma xhat + beta, xhat standardised over the last dimensions:  dH/dgamma = sum g xhat,  dH/dbeta = sum g.

    y is at least float32, whatever x is.
    """

    def __init__(
        self, shape: Sequence[int], epsilon: float, gamma: Tensor | None, beta: Tensor | None,
        gamma_target: Target | None, beta_target: Target | None,
    ) -> None:  # fmt: skip
        self.shape, self.epsilon = tuple(shape), epsilon
        self.gamma, self.beta = gamma, beta
        self.gamma_target, self.beta_target = gamma_target, beta_target

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        x = inputs[0]
        y, mean, inverse_deviation = aten.native_layer_norm.default(
            x.to(at_least_single(x)), self.shape, self.gamma, self.beta, self.epsilon
        )
        return y, (x, mean, inverse_deviation)

    def backward(self, tally: Tally, gradient: Tensor, saved: Saved, wanted: Wanted) -> tuple[Tensor | None, ...]:
        x, mean, inverse_deviation = saved
        g = gradient.to(mean.dtype)
        if self.beta_target is not None:
            tally.add(self.beta_target, _reduced(g, tally.images, self.shape))
        if self.gamma_target is not None:
            standard = (x - mean).mul_(inverse_deviation)
            tally.add(self.gamma_target, _reduced(standard.mul_(g), tally.images, self.shape))
        if not wanted[0]:
            return (None,)
        found = aten.native_layer_norm_backward.default(
            g, x.to(mean.dtype), self.shape, mean, inverse_deviation, self.gamma, self.beta, (True, False, False)
        )
        return (found[0].to(x.dtype),)


class GroupNorm:
    """The same over groups of channels, with gamma and beta [C]."""

    def __init__(
        self, groups: int, epsilon: float, gamma: Tensor | None, beta: Tensor | None, gamma_target: Target | None,
        beta_target: Target | None,
    ) -> None:  # fmt: skip
        self.groups, self.epsilon = groups, epsilon
        self.gamma, self.beta = gamma, beta
        self.gamma_target, self.beta_target = gamma_target, beta_target

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        x = inputs[0].to(at_least_single(inputs[0]))
        return F.group_norm(x, self.groups, self.gamma, self.beta, self.epsilon), inputs

    def backward(self, tally: Tally, gradient: Tensor, saved: Saved, wanted: Wanted) -> tuple[Tensor | None, ...]:
        g, shape = gradient.to(at_least_single(gradient)), (gradient.shape[1], *[1] * (gradient.dim() - 2))
        with torch.enable_grad():
            x = saved[0].detach().to(g.dtype).requires_grad_(wanted[0])
            standard = F.group_norm(x, self.groups, None, None, self.epsilon)
        for target, values in ((self.beta_target, g), (self.gamma_target, g * standard.detach())):
            tally.add(target, _reduced(values, tally.images, shape).flatten(1))
        if not wanted[0]:
            return (None,)
        back = g if self.gamma is None else g * self.gamma.view(shape)
        return (torch.autograd.grad(standard, x, back)[0].to(saved[0].dtype),)


class Sum:
    """y = x + w, w broadcast over x: position embeddings and biases of attention."""

    def __init__(self, weight: Tensor, target: Target) -> None:
        self.weight, self.target = weight, target

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        return inputs[0] + self.weight, ()

    def backward(self, tally: Tally, gradient: Tensor, saved: Saved, wanted: Wanted) -> tuple[Tensor | None, ...]:
        tally.add(self.target, _reduced(gradient, tally.images, self.weight.shape))
        return (gradient,)


class Product:
    """y = x * w, w broadcast over x: layer scale."""

    def __init__(self, weight: Tensor, target: Target) -> None:
        self.weight, self.target = weight, target

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        return inputs[0] * self.weight, inputs

    def backward(self, tally: Tally, gradient: Tensor, saved: Saved, wanted: Wanted) -> tuple[Tensor | None, ...]:
        tally.add(self.target, _reduced(gradient * saved[0], tally.images, self.weight.shape))
        return (gradient * self.weight if wanted[0] else None,)


def _reduced(values: Tensor, images: int, shape: Sequence[int]) -> Tensor:
    """Sums [N * windows, ...] per image over what was broadcast from `shape` -> [N, *shape]."""
    padded = (1,) * (values.dim() - len(shape)) + tuple(shape)
    split = values.reshape(images, -1, *values.shape[1:])
    broadcast = [1, *(axis + 1 for axis in range(1, values.dim()) if padded[axis] == 1)]
    return split.sum(broadcast).reshape(images, *shape)


class Repeat:
    """A class token, repeated for every image."""

    def __init__(self, repeated: Tensor, shape: Sequence[int], target: Target) -> None:
        self.repeated, self.shape, self.target = repeated, tuple(shape), target

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        return self.repeated.clone(), ()

    def backward(self, tally: Tally, gradient: Tensor, saved: Saved, wanted: Wanted) -> tuple[Tensor | None, ...]:
        tally.add(self.target, _reduced(gradient, tally.images, self.shape))
        return ()


class Mapped:
    """Any function of the images and some weights: its vector-Jacobian product, mapped over the images.

    Args:
        function: (inputs, weights) -> output, where each input holds one image or all.
    """

    def __init__(
        self, function: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor], weights: Sequence[Tensor],
        targets: Sequence[Target],
    ) -> None:  # fmt: skip
        self.function, self.weights, self.targets = function, tuple(weights), targets

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        return self.function(inputs, self.weights), inputs

    def backward(self, tally: Tally, gradient: Tensor, saved: Saved, wanted: Wanted) -> tuple[Tensor | None, ...]:
        def of_image(g: Tensor, *inputs: Tensor) -> Any:
            pull = torch.func.vjp(lambda *weights: self.function(inputs, weights), *self.weights)[1]
            return pull(g)

        rows = [one.reshape(tally.images, -1, *one.shape[1:]) for one in (gradient, *saved)]
        try:
            gradients = torch.func.vmap(of_image, chunk_size=8)(*rows)
        except RuntimeError:  # something in it cannot be mapped
            parts = [of_image(*[one[n] for one in rows]) for n in range(tally.images)]
            gradients = tuple(torch.stack(column) for column in zip(*parts, strict=True))
        for target, per_image in zip(self.targets, gradients, strict=True):
            tally.add(target, per_image)
        with torch.enable_grad():
            inputs = [one.detach().requires_grad_(need) for one, need in zip(saved, wanted, strict=True)]
            output = self.function(inputs, self.weights)
        needed = [one for one in inputs if one.requires_grad]
        found = iter(torch.autograd.grad(output, needed, gradient, allow_unused=True) if needed else ())
        return tuple(next(found) if need else None for need in wanted)

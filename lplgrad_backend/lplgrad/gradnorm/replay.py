"""Runs a network by its plan: the planned calls go through sites, all others stay as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lplgrad_backend.lplgrad.gradnorm import calls, layers
from lplgrad_backend.lplgrad.gradnorm.convolution import Convolution, Kernel, Statistics
from lplgrad_backend.lplgrad.gradnorm.products import Window
from lplgrad_backend.lplgrad.gradnorm.site import Rule, through
from lplgrad_backend.lplgrad.gradnorm.squeeze import Gate, Squeeze, Squeezed, factors, is_squeeze
from lplgrad_backend.lplgrad.gradnorm.tally import Key, Tally, Target
from lplgrad_backend.lplgrad.gradnorm.trace import Kind, Plan, Unproved, Use

Known = TypeVar("Known")
Rules: TypeAlias = dict[tuple[int, ...], Rule]
"""By the position of the call and the identities of its weights."""


class Replay(TorchFunctionMode):
    """One forward pass, in one thread; the network itself is not touched.

    Args:
        names: trainable parameters, id -> name.
        rules: filled with rules that only hold parameters, for the next pass; valid while no parameter changes.
        anchor: a tensor that requires a gradient; its gradient is what a backward pass has to ask for.
        precision: of what enters the sites, where it is not the network's own.
    """

    def __init__(
        self, plan: Plan, names: Mapping[int, str], rules: Rules, tally: Tally, anchor: Tensor,
        precision: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.precision = precision
        self.plan, self.names, self.rules, self.tally, self.anchor = plan, names, rules, tally, anchor
        self.count = 0
        self.derived: dict[int, tuple[int, Tensor]] = {}
        self.squeezed: dict[int, Squeezed] = {}  # by the identity of what is squeezed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        at, self.count = self.count, self.count + 1
        use = self.plan.uses.get(at)
        if use is None:
            return self._unplanned(func, args, kwargs)
        if use.func != func:
            raise Unproved(f"its {at}th call is now {calls.name_of(func)} instead of {calls.name_of(use.func)}")
        if use.kind is Kind.SITE and use.inputs == (0,):
            return self._site(at, use, args, kwargs)
        if use.kind is Kind.TAKEN and use.norm is None:
            return args[0]
        self._check_weights(use, args, kwargs)
        return self._planned(at, use, args, kwargs)

    def derived_weights(self) -> dict[int, Tensor]:
        """Tensors computed from parameters alone, by the position of their call, with their autograd graph."""
        return dict(self.derived.values())

    def _unplanned(self, func: Any, args: calls.Args, kwargs: calls.Kwargs) -> Any:
        if self.precision is not None:
            args, kwargs = calls.of_one_precision(func, args, kwargs)
        result = self._squeeze(args[0]) if is_squeeze(func, args) else self._gated(func, args, kwargs)
        if result is None:
            result = func(*args, **kwargs)
        if isinstance(result, Tensor) and any(id(one) in self.names for one in args) and result.requires_grad:
            raise Unproved(f"{calls.name_of(func)} meets a parameter that it did not meet before")
        return result

    def _squeeze(self, x: Tensor) -> Tensor:
        rule = Squeeze()
        mean = through(rule, self.tally, None, x)
        self.squeezed[id(x)] = Squeezed(x, mean, x._version, rule)
        return mean

    def _gated(self, func: Any, args: calls.Args, kwargs: calls.Kwargs) -> Tensor | None:
        """The product, if it is a gate's."""
        pair = factors(func, args, kwargs) if self.squeezed else None
        squeezed = None if pair is None else self.squeezed.get(id(pair[1]))
        if pair is None or squeezed is None or not squeezed.fits(pair[0]):
            return None
        del self.squeezed[id(squeezed.x)]  # a second gate of the same features leaves its part to autograd
        return through(Gate(squeezed.rule), self.tally, None, *pair, squeezed.mean)

    def _check_weights(self, use: Use, args: calls.Args, kwargs: calls.Kwargs) -> None:
        """A network may choose its weights by what it sees; then the plan is another network's."""
        if use.kind is Kind.TAKEN and use.norm is not None:
            planned = calls.tensors_in(use.norm[0], use.norm[1])
            same = list(map(id, calls.tensors_in(args[1:], kwargs))) == list(map(id, planned))
        else:
            same = self._keys(*calls.tensors_in(args, kwargs)) == use.keys
        if not same:
            raise Unproved(f"{calls.name_of(use.func)} takes other weights for other images")

    def _planned(self, at: int, use: Use, args: calls.Args, kwargs: calls.Kwargs) -> Any:
        if use.kind is Kind.TAKEN:
            return args[0]
        if use.kind is Kind.SUM:
            return torch.add(*args, **kwargs)
        if use.kind is Kind.DERIVED:
            result = use.func(*args, **kwargs)  # type: ignore[operator]
            for one in calls.tensors_in((result,), {}):
                self.derived[id(one)] = (at, one)
            return result
        if use.kind is Kind.ATTENTION:
            return self._attention(at, args)
        leaves, _ = calls.flattened(args, kwargs)
        return self._through(self._rule(use, args, kwargs), use.keys, *(leaves[n] for n in use.inputs))

    def _site(self, at: int, use: Use, args: calls.Args, kwargs: calls.Kwargs) -> Tensor:
        """The usual case: the images come first, and the same weights have the same rule."""
        place = (at, *map(id, calls.tensors_in(args[1:], kwargs)))
        rule = self.rules.get(place)
        if rule is None:
            self._check_weights(use, args, kwargs)
            rule = self._rule(use, args, kwargs)
            if all(isinstance(key, str) for key in use.keys):
                self.rules[place] = rule
        return self._through(rule, use.keys, args[0])

    def _through(self, rule: Rule, keys: Sequence[Key], *inputs: Tensor) -> Tensor:
        if self.precision is not None:
            precision = torch.float32 if isinstance(rule, layers.Mapped) else self.precision
            inputs = tuple(one.to(precision) if one.is_floating_point() else one for one in inputs)
        return through(rule, self.tally, self.anchor if keys else None, *inputs)

    def _target(self, tensor: Tensor | None) -> Target | None:
        key = None if tensor is None else self._key(tensor)
        return None if key is None else Target(key, key in self.plan.alone)

    def _key(self, tensor: Tensor | None) -> Key | None:
        key: Key | None = self.names.get(id(tensor))
        if key is None and id(tensor) in self.derived:
            key = self.derived[id(tensor)][0]
        return key

    def _rule(self, use: Use, args: calls.Args, kwargs: calls.Kwargs) -> Rule:
        if use.kind is Kind.SITE:
            builder = _BUILDERS.get(use.func)
            return builder(self, use, *args, **kwargs) if builder else self._elementwise(use, args)
        if use.kind is Kind.REPEAT:
            with torch.no_grad():
                repeated = use.func(*args, **kwargs)  # type: ignore[operator]
            return layers.Repeat(repeated, args[0].shape, _known(self._target(args[0])))
        return self._mapped(use, args, kwargs)

    def _elementwise(self, use: Use, args: calls.Args) -> Rule:
        weight = args[1 - use.inputs[0]]
        rule = layers.Sum if calls.name_of(use.func) in calls.SUMS else layers.Product
        return rule(weight.detach(), _known(self._target(weight)))

    def _mapped(self, use: Use, args: calls.Args, kwargs: calls.Kwargs) -> Rule:
        leaves, spec = calls.flattened(args, kwargs)
        places = [n for n, one in enumerate(leaves) if isinstance(one, Tensor) and self._target(one) is not None]

        def function(inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
            filled = list(leaves)
            for place, one in zip((*use.inputs, *places), (*inputs, *weights), strict=True):
                filled[place] = one
            its_args, its_kwargs = calls.restored(filled, spec)
            result: Tensor = use.func(*its_args, **its_kwargs)  # type: ignore[operator]
            return result

        weights = [leaves[place] for place in places]
        return layers.Mapped(
            function, [one.detach() for one in weights], [_known(self._target(one)) for one in weights]
        )

    def _attention(self, at: int, args: calls.Args) -> tuple[Tensor, None]:
        """softmax(Q K' / sqrt d) V of a sequence [L, N, E] to itself, between two linear sites."""
        sequence, heads = args[0].transpose(0, 1), args[4]
        packed = self._linear(args[5], args[6])
        projected = self._through(packed, self._keys(args[5], args[6]), sequence)  # [N, L, 3 E]
        query, key, value = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        output = self._through(self._linear(args[11], args[12]), self._keys(args[11], args[12]), mixed)
        return output.transpose(0, 1), None

    def _keys(self, *tensors: Tensor | None) -> tuple[Key, ...]:
        return tuple(key for key in map(self._key, tensors) if key is not None)

    def _linear(self, weight: Tensor, bias: Tensor | None) -> layers.Linear:
        weights = [None if one is None else one.detach().to(self.precision or one.dtype) for one in (weight, bias)]
        return layers.Linear(_known(weights[0]), weights[1], self._target(weight), self._target(bias))

    def _linear_rule(self, use: Use, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Rule:
        return self._linear(weight, bias)

    def _convolution_rule(
        self, use: Use, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Rule:  # fmt: skip
        window = Window(_pair(stride), _padding(padding, weight, _pair(dilation)), _pair(dilation), groups)
        kernel = Kernel(weight.detach(), _cut(bias), window, self._target(weight), self._target(bias))
        norm = self._statistics(*use.norm[0], **use.norm[1]) if use.norm else None
        layout = self.plan.memory_format
        return Convolution(kernel, norm, use.activation, use.output_kept, layout, self.precision)

    def _statistics(
        self, input: Tensor | None, mean: Tensor, variance: Tensor, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Statistics:  # fmt: skip
        return Statistics(mean, variance, _cut(weight), _cut(bias), eps, self._target(weight), self._target(bias))

    def _batch_norm_rule(self, use: Use, *args: Any, **kwargs: Any) -> Rule:
        return layers.BatchNorm(self._statistics(*args, **kwargs), use.activation)

    def _layer_norm_rule(
        self, use: Use, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
        bias: Tensor | None = None, eps: float = 1e-5,
    ) -> Rule:  # fmt: skip
        return layers.LayerNorm(
            normalized_shape, eps, _cut(weight), _cut(bias), self._target(weight), self._target(bias)
        )

    def _group_norm_rule(
        self, use: Use, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Rule:  # fmt: skip
        return layers.GroupNorm(num_groups, eps, _cut(weight), _cut(bias), self._target(weight), self._target(bias))


_BUILDERS: dict[object, Callable[..., Rule]] = {
    torch.conv2d: Replay._convolution_rule,
    F.linear: Replay._linear_rule,
    F.batch_norm: Replay._batch_norm_rule,
    F.layer_norm: Replay._layer_norm_rule,
    F.group_norm: Replay._group_norm_rule,
}


def _cut(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _known(given: Known | None) -> Known:
    assert given is not None
    return given


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _padding(value: Any, weight: Tensor, dilation: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns added on either side; "same" is planned only where that is as many before as after."""
    if value == "same":
        return dilation[0] * (weight.shape[2] // 2), dilation[1] * (weight.shape[3] // 2)
    return (0, 0) if value == "valid" else _pair(value)


def pull_back(tally: Tally, derived: Mapping[int, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Turns per-image gradients at computed weights into those at the parameters they were computed from."""
    roots = [
        (tensor, tally.gradients.pop(at).to(tensor.dtype)) for at, tensor in derived.items() if at in tally.gradients
    ]
    if not roots:
        return
    outputs, gradients = zip(*roots, strict=True)
    found = torch.autograd.grad(
        outputs, list(parameters.values()), gradients, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    for name, gradient in zip(parameters, found, strict=True):
        if gradient is not None:
            tally.add(Target(name, alone=False), gradient)


def unit_seeds(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Splits dH/dlogits [N, C] into seeds whose largest entry is 1, and scales [N]: a confident image's gradients would
    underflow when squared in float32."""
    scales = gradient.abs().amax(1)
    safe = torch.where(scales > 0, scales, math.inf)
    return gradient / safe.unsqueeze(1), scales

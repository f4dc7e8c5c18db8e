"""The first look at a network: which calls bring parameters to the images, and proof that none is missed.

The network runs once on two images, the second of them all NaN, while a TorchFunctionMode sees every call. It proves
three things that the rules rely on:
- *Nothing is missed.* Parameters enter every site detached. If the logits still require a gradient, a parameter reached
  them unseen.
- *The batch is where the rules look for it.* NaN must fill the second half of a site's tensors and none of the first.
- *Images do not mix.* NaN in the first half anywhere on the way, or in the first logits, would show it.
Whatever is not proved is reported as `Unproved`, and the caller takes the slow way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lplgrad_backend.lplgrad.gradnorm import calls
from lplgrad_backend.lplgrad.gradnorm.activation import Activation, activation_of
from lplgrad_backend.lplgrad.gradnorm.products import channels_last
from lplgrad_backend.lplgrad.gradnorm.tally import Key

IMAGES = 2


class Unproved(Exception):
    """Something about the network cannot be relied on; the message says what, and where."""


class Kind(Enum):
    """What is done instead of a call."""

    DERIVED = auto()  # nothing: it computes a weight from parameters alone
    SITE = auto()  # its rule
    MAPPED = auto()  # the rule for any function
    REPEAT = auto()  # a parameter is repeated for each image
    ATTENTION = auto()  # two sites with the attention between them
    TAKEN = auto()  # nothing: an earlier site did it, the argument is the result
    SUM = auto()  # an addition in place becomes one that spares its argument


@dataclass
class Use:
    """One call that matters, by its position in the sequence of calls.

    Attributes:
        inputs: positions, among the flattened arguments, of tensors that depend on the images.
        norm: the call of F.batch_norm that the site takes along, or that is taken: its arguments.
        output_kept: nobody overwrites the site's output.
    """

    func: object
    kind: Kind
    keys: tuple[Key, ...] = ()
    inputs: tuple[int, ...] = ()
    norm: tuple[calls.Args, calls.Kwargs] | None = None
    activation: Activation | None = None
    output_kept: bool = True


@dataclass(frozen=True)
class Plan:
    """How to run one network on images of one size.

    Attributes:
        memory_format: how the images are to lie in memory.
        bytes_per_image: what an image takes of the memory; known to whoever has run the plan, 0 before.
    """

    uses: dict[int, Use]
    alone: frozenset[Key]
    memory_format: torch.memory_format
    bytes_per_image: int = 0


@dataclass
class _Output:
    """A site's output and who reads it: (position, function, arguments)."""

    at: int
    tensor: Tensor
    version: int
    readers: list[tuple[int, object, calls.Args, calls.Kwargs]] = field(default_factory=list)


class Tracer(TorchFunctionMode):
    """Watches one forward pass and collects the uses."""

    def __init__(self, names: dict[int, str], images: Tensor) -> None:
        super().__init__()
        self.names, self.uses, self.count = names, dict[int, Use](), 0
        self.derived: dict[int, int] = {}
        self.dependent = {id(images)}
        self.outputs: dict[int, _Output] = {}
        self.alive: list[Any] = [images]  # an id means nothing once its object is gone

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        at, self.count = self.count, self.count + 1
        tracked = [one for one in calls.tensors_in(args, kwargs) if id(one) in self.names or id(one) in self.derived]
        if tracked or func in (torch.conv2d, F.batch_norm):
            result = self._weighted(at, func, args, kwargs, tracked)
        elif calls.name_of(func) in calls.SUMS_IN_PLACE and id(args[0]) in self.outputs:
            result = torch.add(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        self._note(at, func, args, kwargs, result)
        return result

    def _note(self, at: int, func: object, args: calls.Args, kwargs: calls.Kwargs, result: Any) -> None:
        results = calls.tensors_in((result,), {})
        depends = any(id(one) in self.dependent for one in calls.tensors_in(args, kwargs))
        if calls.works_in_place(func, kwargs) and depends:
            results.append(args[0])
        if not results:
            return
        for one in calls.tensors_in(args, kwargs):
            if id(one) in self.outputs:
                self.outputs[id(one)].readers.append((at, func, args, kwargs))
        for one in results:
            self.alive.append(one)
            if depends:
                self.dependent.add(id(one))

    def _weighted(self, at: int, func: Any, args: calls.Args, kwargs: calls.Kwargs, tracked: list[Tensor]) -> Any:
        leaves, spec = calls.flattened(args, kwargs)
        inputs = tuple(n for n, one in enumerate(leaves) if isinstance(one, Tensor) and id(one) in self.dependent)
        if not inputs:
            return self._derived(at, func, args, kwargs, tracked)
        ours = {id(one) for one in tracked}
        cut = [one.detach() if id(one) in ours else one for one in leaves]
        cut_args, cut_kwargs = calls.restored(cut, spec)
        result = func(*cut_args, **cut_kwargs)
        free = not tracked and inputs != (0,)  # a convolution with weights made from the images, none of them ours
        if free or not calls.tensors_in((result,), {}):
            return result
        use = Use(func, Kind.SITE, self._keys(tracked), inputs)
        if calls.is_self_attention(func, args, kwargs):
            use.kind = Kind.ATTENTION
            self._check_layout(use, args[0].transpose(0, 1), result[0].transpose(0, 1))
        else:
            self._check_site(use, leaves, spec, ours, result, calls.works_in_place(func, kwargs))
            self.outputs[id(result)] = _Output(at, result, result._version)
        self.uses[at] = use
        return result

    def _derived(self, at: int, func: Any, args: calls.Args, kwargs: calls.Kwargs, tracked: list[Tensor]) -> Any:
        result = func(*args, **kwargs)
        for one in calls.tensors_in((result,), {}):
            if not one.requires_grad:
                continue
            if calls.name_of(func) in calls.REPEATS and _repeats_per_image(tracked[0], one):
                self.uses[at] = Use(func, Kind.REPEAT, self._keys(tracked))
                marked = one.detach().clone()
                marked[1:] = torch.nan
                self.dependent.add(id(marked))
                return marked
            self.uses[at] = Use(func, Kind.DERIVED, self._keys(tracked))
            self.derived[id(one)] = at
        return result

    def _keys(self, tracked: list[Tensor]) -> tuple[Key, ...]:
        return tuple(self.names[id(one)] if id(one) in self.names else self.derived[id(one)] for one in tracked)

    def _check_site(self, use: Use, leaves: list[Any], spec: Any, ours: set[int], result: Any, in_place: bool) -> None:
        if in_place or not isinstance(result, Tensor):
            raise Unproved(f"{_place(use)} has no rule")
        self._check_layout(use, *(leaves[n] for n in use.inputs), result)
        if _has_rule(use, leaves, result):
            return
        use.kind = Kind.MAPPED
        first = [one[: len(one) // IMAGES] if n in use.inputs else one for n, one in enumerate(leaves)]
        args, kwargs = calls.restored([one.detach() if id(one) in ours else one for one in first], spec)
        alone = use.func(*args, **kwargs)  # type: ignore[operator]
        half = result[: len(result) // IMAGES]
        if alone.shape != half.shape or not torch.allclose(alone, half, rtol=1e-3, atol=1e-5):
            raise Unproved(f"{_place(use)} does not treat images one by one")

    def _check_layout(self, use: Use, *tensors: Tensor) -> None:
        for one in tensors:
            if not one.is_floating_point():
                continue
            if one.dim() == 0 or len(one) % IMAGES:
                raise Unproved(f"{_place(use)} does not have the images in its first dimension")
            half = len(one) // IMAGES
            if one[:half].isnan().any() or not one[half:].isnan().any():
                raise Unproved(f"{_place(use)} does not keep the images apart in its first dimension")


def _place(use: Use) -> str:
    names = ", ".join(str(key) for key in use.keys if isinstance(key, str)) or "a computed weight"
    return f"{calls.name_of(use.func)} of {names}"


def _repeats_per_image(parameter: Tensor, repeated: Tensor) -> bool:
    grown = repeated.dim() > parameter.dim() or parameter.shape[0] == 1
    same = tuple(parameter.shape)[-(repeated.dim() - 1) :] if repeated.dim() > 1 else ()
    return grown and len(repeated) == IMAGES and tuple(repeated.shape[1:]) == same


def _has_rule(use: Use, leaves: list[Any], result: Tensor) -> bool:
    if use.func in (torch.conv2d, F.linear, F.batch_norm, F.layer_norm, F.group_norm):
        return use.inputs == (0,) and (use.func is not torch.conv2d or _is_symmetric(leaves, result))
    if calls.name_of(use.func) not in calls.SUMS + calls.PRODUCTS or len(leaves) != 2 or len(use.inputs) != 1:
        return False
    x, weight = leaves[use.inputs[0]], leaves[1 - use.inputs[0]]
    fits = isinstance(weight, Tensor) and (weight.dim() < x.dim() or (weight.dim() == x.dim() and len(weight) == 1))
    return fits and result.shape == x.shape


def _is_symmetric(leaves: list[Any], result: Tensor) -> bool:
    """Whether a convolution is of a batch and adds as many places before as after: "same" may not, for even kernels."""
    odd = leaves[1].shape[-2] % 2 == 1 and leaves[1].shape[-1] % 2 == 1
    return result.dim() == 4 and ("same" not in [one for one in leaves if isinstance(one, str)] or odd)


def trace(model: nn.Module, images: Tensor) -> Plan:
    """Plans runs on images like these.

    On a processor channels come last where the network lets them: every rule for convolutions is as fast or faster.

    Args:
        images: [N, 3, H, W], N at least 1; only the first is looked at.

    Raises:
        Unproved: the network does something that the rules cannot follow.
    """
    own = torch.channels_last if channels_last(images) else torch.contiguous_format
    if images.dim() == 4 and images.device.type == "cpu":
        try:
            return _trace(model, images[:1], torch.channels_last)
        except RuntimeError:  # a view that only the other layout allows
            own = torch.contiguous_format
    return _trace(model, images[:1], own)


def _trace(model: nn.Module, image: Tensor, memory_format: torch.memory_format) -> Plan:
    names = {id(one): name for name, one in calls.trainable(model).items()}
    pair = torch.cat([image, torch.full_like(image, torch.nan)]).contiguous(memory_format=memory_format)
    tracer = Tracer(names, pair)
    with torch.enable_grad(), tracer:
        logits = model(pair)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != IMAGES:
        raise Unproved("the network's answer is not one tensor of logits [N, C]")
    if logits.requires_grad:
        raise Unproved("a parameter reaches the logits by a way that cannot be seen")
    if logits[0].isnan().any() or not logits[1].isnan().all():
        raise Unproved("the logits of one image depend on another's")
    _take_along(tracer)
    return Plan(tracer.uses, _used_once(tracer.uses), memory_format)


def _used_once(uses: dict[int, Use]) -> frozenset[Key]:
    counts = Counter(key for use in uses.values() for key in use.keys)
    return frozenset(key for key, count in counts.items() if count == 1 and isinstance(key, str))


def _take_along(tracer: Tracer) -> None:
    """Lets sites do the BatchNorm, the activation and the addition that alone read their output."""
    once = _used_once(tracer.uses)
    for output in list(tracer.outputs.values()):
        use = tracer.uses[output.at]
        if use.kind is not Kind.SITE or use.func not in (torch.conv2d, F.batch_norm):
            continue
        if use.func is torch.conv2d and set(use.keys) <= once:
            output = _take_norm(tracer, use, output, once)
        _take_activation(tracer, use, output)


def _take_norm(tracer: Tracer, use: Use, output: _Output, once: frozenset[Key]) -> _Output:
    if len(output.readers) != 1:
        return output
    at, func, args, kwargs = output.readers[0]
    norm = tracer.uses.get(at)
    if func is not F.batch_norm or args[0] is not output.tensor or norm is None or not set(norm.keys) <= once:
        return output
    if norm.kind is not Kind.SITE:
        return output
    norm.kind = Kind.TAKEN
    use.norm = norm.norm = (None, *args[1:]), kwargs
    return next(one for one in tracer.outputs.values() if one.at == at)


def _take_activation(tracer: Tracer, use: Use, output: _Output) -> None:
    use.output_kept = output.tensor._version == output.version
    if not output.readers:
        return
    at, func, args, kwargs = output.readers[0]
    activation = activation_of(func, args, kwargs)
    only = len(output.readers) == 1
    if activation is not None and (only or calls.works_in_place(func, kwargs)):
        use.activation, use.output_kept = activation, True
        tracer.uses[at] = Use(func, Kind.TAKEN)
    elif only and calls.name_of(func) in calls.SUMS_IN_PLACE and args[0] is output.tensor:
        tracer.uses[at] = Use(func, Kind.SUM)

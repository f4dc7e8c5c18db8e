"""Elementwise activations that a site takes along, so that one tensor less is written, read and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm.assembly import Numbers

aten = torch.ops.aten

InLanes = Callable[[Numbers, Numbers], Numbers]


@dataclass(frozen=True)
class Activation:
    """y = apply(z).

    Attributes:
        gradient: (gradient at y, y or z) -> gradient at z.
        of_output: the gradient is a function of y, so z need not be kept.
        in_lanes: the same gradient for machine code, where it has no more than arithmetic in it.
    """

    apply: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]
    of_output: bool
    in_lanes: InLanes | None = None


RELU = Activation(
    torch.relu_,
    lambda g, y: aten.threshold_backward.default(g, y, 0.0),
    of_output=True,
    in_lanes=lambda g, y: y.where_above(0.0, g, 0.0),
)
RELU6 = Activation(
    lambda z: aten.hardtanh_.default(z, 0.0, 6.0),
    lambda g, y: aten.hardtanh_backward.default(g, y, 0.0, 6.0),
    of_output=True,
    in_lanes=lambda g, y: y.where_above(0.0, (y * -1.0).where_above(-6.0, g, 0.0), 0.0),
)
HARDSWISH = Activation(
    aten.hardswish.default,
    aten.hardswish_backward.default,
    of_output=False,
    in_lanes=lambda g, z: z.where_above(-3.0, (z * -1.0).where_above(-3.0, g * (z * (1 / 3) + 0.5), g), 0.0),
)
SILU = Activation(aten.silu.default, aten.silu_backward.default, of_output=False)


def _in_rows(function: Callable[..., Tensor], *features: Tensor) -> Tensor:
    """An elementwise function of tensors as they lie in memory: torch's GELU takes 1.7 times as long where channels are last
    but not named last (measured)."""
    if all(one.dim() == 4 and one.is_contiguous(memory_format=torch.channels_last) for one in features):
        return function(*(one.permute(0, 2, 3, 1) for one in features)).permute(0, 3, 1, 2)
    return function(*features)


GELU = Activation(
    lambda z: _in_rows(aten.gelu.default, z),
    lambda g, z: _in_rows(aten.gelu_backward.default, g, z),
    of_output=False,
)


def activation_of(func: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Activation | None:
    """The activation that a call computes, where it is one of these."""
    if func in (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_):
        return RELU
    if func is F.hardswish:
        return HARDSWISH
    if func is F.silu:
        return SILU
    if func is F.gelu and kwargs.get("approximate", "none") == "none":
        return GELU
    if func is F.relu6:
        return RELU6
    if func is not F.hardtanh:
        return None
    given = {**dict(zip(("min_val", "max_val"), args[1:3], strict=False)), **kwargs}
    return RELU6 if (given.get("min_val"), given.get("max_val")) == (0.0, 6.0) else None

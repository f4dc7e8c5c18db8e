"""Calls of torch functions as plain data: which tensors they take, and what layout their tensors have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]

SUMS_IN_PLACE = ("add_", "__iadd__")
SUMS = ("add", "__add__", "__radd__")
PRODUCTS = ("mul", "multiply", "__mul__", "__rmul__")
REPEATS = ("expand", "repeat", "expand_as", "tile")


def name_of(func: object) -> str:
    """A torch function's own name."""
    return str(getattr(func, "__name__", func))


def tensors_in(args: Args, kwargs: Kwargs) -> list[Tensor]:
    """Every tensor among a call's arguments, also inside lists."""
    found = []
    for one in (*args, *kwargs.values()):
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, (list, tuple)):
            found.extend(inner for inner in one if isinstance(inner, Tensor))
    return found


def flattened(args: Args, kwargs: Kwargs) -> tuple[list[Any], Any]:
    """All arguments in one list, and what is needed to put them back."""
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    return leaves, spec


def restored(leaves: list[Any], spec: Any) -> tuple[Args, dict[str, Any]]:
    """The inverse of `flattened`."""
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return tuple(args), dict(kwargs)


def of_one_precision(func: object, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """The same call with all numbers as float32 where they differ, or as what it overwrites."""
    precisions = {one.dtype for one in tensors_in(args, kwargs) if one.is_floating_point()}
    if len(precisions) < 2:
        return args, kwargs
    precision = args[0].dtype if works_in_place(func, kwargs) else torch.float32
    leaves, spec = flattened(args, kwargs)
    return restored(
        [one.to(precision) if isinstance(one, Tensor) and one.is_floating_point() else one for one in leaves], spec
    )


def works_in_place(func: object, kwargs: Kwargs) -> bool:
    """Whether a call overwrites its first argument."""
    name = name_of(func)
    dunder = name.startswith("__") and name.endswith("__")
    return bool(kwargs.get("inplace")) or name.startswith(("__i", "__set")) or (name.endswith("_") and not dunder)


def is_self_attention(func: object, args: Args, kwargs: Kwargs) -> bool:
    """A call of torch's multi-head attention of a sequence [L, N, E] to itself, without masks or extra keys."""
    if func is not F.multi_head_attention_forward or len(args) < 13:
        return False
    unset = ("key_padding_mask", "attn_mask", "q_proj_weight", "k_proj_weight", "v_proj_weight", "static_k", "static_v")
    off = ("need_weights", "training", "use_separate_proj_weight", "is_causal")
    return (
        args[0] is args[1] is args[2]
        and args[7] is None
        and args[8] is None
        and not args[9]
        and all(kwargs.get(name) is None for name in unset)
        and not any(kwargs.get(name, name == "need_weights") for name in off)
    )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters whose gradient counts, by name."""
    return {name: one for name, one in model.named_parameters() if one.requires_grad}

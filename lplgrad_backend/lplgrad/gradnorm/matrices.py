"""Products of matrices, by the faster of the two libraries that torch has for them on a processor.

torch multiplies float32 matrices by MKL, which leaves half of AVX-512 idle on an AMD processor (measured on an EPYC: 100
thousand million operations a second, of 250). oneDNN, which does torch's convolutions, uses all of it on every make, but
takes one matrix at a time. So large products go there and small ones stay in a batch, and all do where vectors are no wider
than AVX2's, which MKL fills.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ONEDNN: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""(x, W, b, what follows and its two parameters) -> x W' + b. None where torch was built without it."""

LARGE = 2**21
"""Multiplications from which a product is worth a call of its own (measured: about equal from 2**19 to 2**22)."""


def has_wide_vectors() -> bool:
    """Whether torch computes in AVX-512."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., I] W' + b -> [..., O], of W [O, I] and b [O]."""
    if _is_for_onednn(x, x.numel() * len(weight)):
        return _onednn(x, weight, bias)
    # where x does not lie in one piece, torch may multiply it by the weight piece by piece (measured: twice as long)
    return F.linear(x.contiguous(), weight, bias)


def row_products(left: Tensor, right: Tensor) -> Tensor:
    """[M, P, C] and [M, Q, C] -> [M, P, Q]: every row times every other."""
    if _is_for_onednn(left, left[0].numel() * right.shape[1]):
        return torch.stack([_onednn(one, other) for one, other in zip(left, right, strict=True)])
    return torch.bmm(left, right.mT)


def outer_sums(a: Tensor, g: Tensor) -> Tensor:
    """sum_p g_p (x) a_p of a [M, P, I] and g [M, P, O] -> [M, O, I]."""
    if not _is_for_onednn(a, a[0].numel() * g.shape[2]):
        return torch.bmm(g.mT, a)
    if g.shape[2] > a.shape[2]:  # faster with the fewer rows (measured: by up to a third)
        return torch.stack([_onednn(a_n.mT, g_n.mT) for a_n, g_n in zip(a, g, strict=True)]).mT
    return torch.stack([_onednn(g_n.mT, a_n.mT) for a_n, g_n in zip(a, g, strict=True)])


def inner_products(left: Tensor, right: Tensor) -> Tensor:
    """Sum of the products of two [M, ...] that have as many numbers each -> [M], at least float32."""
    left, right = left.reshape(len(left), 1, -1), right.reshape(len(right), -1, 1)
    if left.dtype in (torch.bfloat16, torch.float16):  # bmm would round the sum
        left, right = left.float(), right.float()
    return torch.bmm(left, right).view(-1)


def _is_for_onednn(one: Tensor, multiplications: int) -> bool:
    return (
        multiplications >= LARGE
        and ONEDNN is not None
        and one.device.type == "cpu"
        and one.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and has_wide_vectors()
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    assert ONEDNN is not None
    return ONEDNN(x, weight, bias, "none", [], "")

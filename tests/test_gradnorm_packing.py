"""Packed convolutions against torch's own, in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm import packing
from lplgrad_backend.lplgrad.gradnorm.packing import Packed, Turned, pack, packable, turn, turnable, way_back

WIDE = 48  # 48 * 48 * 3 * 3 numbers are worth arranging


def numbers(*shape: int, seed: int = 0) -> Tensor:
    found = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return found.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else found


geometry = st.tuples(
    st.sampled_from([(1, 1), (3, 3), (3, 1), (5, 3)]), st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)), st.tuples(st.integers(1, 2), st.integers(1, 2)),
)  # fmt: skip


@given(geometry, st.integers(1, 3), st.booleans())
def test_a_packed_convolution_is_the_convolution(
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]], images: int, biased: bool
) -> None:
    kernel, stride, padding, dilation = geometry
    weight, bias = numbers(6, 5, *kernel), numbers(6) if biased else None
    packed = pack(weight, bias, stride, padding, dilation, numbers(2, 5, 12, 12))
    x = numbers(images, 5, 12, 12, seed=1)
    oracle = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), stride, padding, dilation)
    torch.testing.assert_close(packed(x).double(), oracle, rtol=1e-4, atol=1e-4)


@given(geometry)
def test_the_way_back_is_autograds(
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]],
) -> None:
    kernel, _, padding, dilation = geometry
    weight, x = numbers(6, 5, *kernel), numbers(2, 5, 12, 12, seed=1).double().requires_grad_()
    assume(turnable(weight, (1, 1), padding, dilation, 1))
    y = F.conv2d(x, weight.double(), None, 1, padding, dilation)
    g = numbers(*y.shape, seed=2)
    [oracle] = torch.autograd.grad(y, x, g.double())
    way = turn(weight, padding, dilation)
    for found in way(g), pack(way.weight, None, (1, 1), way.padding, dilation, g)(g):
        torch.testing.assert_close(found.double(), oracle, rtol=1e-4, atol=1e-4)


def test_what_is_packed() -> None:
    weight, x = numbers(WIDE, WIDE, 3, 3), numbers(1, WIDE, 8, 8)
    assert packable(x, weight)
    assert not packable(x.contiguous(), weight)
    assert not packable(x, numbers(4, WIDE, 3, 3))
    assert not packable(x.double(), weight.double())
    assert isinstance(way_back(weight, (1, 1), (1, 1), x), Packed)
    assert isinstance(way_back(numbers(WIDE, 4, 3, 3), (1, 1), (1, 1), x), Turned)


def test_what_can_be_turned_about() -> None:
    weight = numbers(2, 2, 3, 3)
    assert turnable(weight, (1, 1), (2, 2), (1, 1), 1)
    assert not turnable(weight, (1, 1), (3, 0), (1, 1), 1)
    assert not turnable(weight, (2, 1), (1, 1), (1, 1), 1)
    assert not turnable(weight, (1, 1), (1, 1), (1, 1), 2)


@pytest.mark.parametrize("missing", ["CONVOLVE", "ARRANGE"])
def test_a_torch_without_onednn_packs_nothing(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(packing, missing, None)
    assert not packable(numbers(1, WIDE, 8, 8), numbers(WIDE, WIDE, 3, 3))

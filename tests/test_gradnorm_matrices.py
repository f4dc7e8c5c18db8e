"""Products of matrices, small and large, against the same products in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm import matrices
from lplgrad_backend.lplgrad.gradnorm.matrices import inner_products, linear, outer_sums, row_products

SIZES = st.integers(1, 40)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def agree(found: Tensor, oracle: Tensor) -> None:
    assert found.shape == oracle.shape
    torch.testing.assert_close(found.double(), oracle, rtol=1e-4, atol=1e-4 * float(oracle.abs().max()))


@pytest.fixture(params=[1, matrices.LARGE, 2**60], ids=["one by one", "by size", "in a batch"])
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "LARGE", request.param)
    monkeypatch.setattr(matrices, "has_wide_vectors", lambda: True)


@pytest.mark.usefixtures("large")
class TestEitherWay:
    @pytest.mark.parametrize("shape", [(3, 1, 1), (2, 7, 5), (2, 300, 60), (1, 20, 400)])
    def test_products_are_those_of_double_precision(self, shape: tuple[int, int, int]) -> None:
        images, places, channels = shape
        a, g = numbers(*shape), numbers(images, places, 2 * channels)
        agree(row_products(a, a), a.double() @ a.double().mT)
        agree(row_products(a[:, :2], a), a[:, :2].double() @ a.double().mT)
        agree(outer_sums(a, g), g.double().mT @ a.double())
        agree(outer_sums(g, a), a.double().mT @ g.double())
        weight, bias = numbers(9, channels), numbers(9)
        agree(linear(a, weight, bias), a.double() @ weight.double().mT + bias.double())
        agree(linear(a, weight), a.double() @ weight.double().mT)

    def test_operands_may_lie_in_any_order(self) -> None:
        a, g = numbers(2, 60, 300).mT, numbers(2, 50, 300).mT
        agree(row_products(a, a), a.double() @ a.double().mT)
        agree(outer_sums(a, g), g.double().mT @ a.double())
        weight = numbers(60, 40).mT
        agree(linear(a, weight), a.double() @ weight.double().mT)


@given(SIZES, SIZES, SIZES)
def test_any_size(places: int, inputs: int, outputs: int) -> None:
    a, g = numbers(2, places, inputs), numbers(2, places, outputs)
    agree(outer_sums(a, g), g.double().mT @ a.double())


def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "ONEDNN", None)
    a = numbers(1, 300, 300)
    agree(row_products(a, a), a.double() @ a.double().mT)


def test_inner_products_add_up_in_single_precision_at_least() -> None:
    a, b = numbers(3, 50, 40), numbers(3, 40, 50)
    wanted = (a.double().flatten(1) * b.double().flatten(1)).sum(1)
    agree(inner_products(a, b), wanted)
    assert inner_products(a.double(), b.double()).dtype == torch.float64
    half = a.bfloat16()
    assert inner_products(half, half).dtype == torch.float32
    agree(inner_products(half, half), half.double().square().sum((1, 2)))


def test_narrow_vectors_leave_large_products_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "_onednn", lambda *_: pytest.fail("one matrix at a time"))
    monkeypatch.setattr(matrices, "has_wide_vectors", lambda: False)
    a = numbers(1, 300, 300)
    agree(row_products(a, a), a.double() @ a.double().mT)


def test_other_precisions_are_kept() -> None:
    for precision in (torch.float64, torch.bfloat16):
        a = numbers(1, 200, 200).to(precision)
        assert row_products(a, a).dtype == outer_sums(a, a).dtype == linear(a, a[0]).dtype == precision

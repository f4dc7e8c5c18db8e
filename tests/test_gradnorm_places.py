"""Sums over places and the way back through activations, against torch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm import activation, places
from lplgrad_backend.lplgrad.gradnorm.activation import Activation

ACTIVATIONS: dict[str, Activation | None] = {
    "none": None, "ReLU": activation.RELU, "ReLU6": activation.RELU6, "Hardswish": activation.HARDSWISH,
    "SiLU": activation.SILU, "GELU": activation.GELU,
}  # fmt: skip
LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}


def features(*shape: int, seed: int = 0) -> Tensor:
    """[N, C, H, W], channels last; some numbers where the activations have their kinks."""
    found = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    found.view(-1)[: found.numel() // 2] = found.view(-1)[: found.numel() // 2].round()
    return found.contiguous(memory_format=torch.channels_last)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", ACTIVATIONS)
@given(
    images=st.integers(1, 3), channels=st.integers(1, 45), size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    wanted=st.booleans(),
)  # fmt: skip
def test_the_way_back_and_its_sums(
    name: str, layout: torch.memory_format, images: int, channels: int, size: tuple[int, int], wanted: bool
) -> None:
    function = ACTIVATIONS[name]
    g, z = (features(images, channels, *size, seed=seed).contiguous(memory_format=layout) for seed in (1, 2))
    kept = g.clone()
    found, total, inner = places.back(function, g, z, wanted)
    expected = g if function is None else function.gradient(g, z)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert g.equal(kept)  # autograd may give it to others as well
    close(total, expected.double().sum((2, 3)))
    assert (inner is not None) is wanted
    if inner is not None:
        close(inner, (expected.double() * z.double()).sum((2, 3)))


def test_of_features_without_places() -> None:
    g, z = torch.randn(3, 7), torch.randn(3, 7)
    total, inner = places.sums(g, z)
    assert total.equal(g) and inner.equal(g * z)


def test_many_places_round_no_worse_than_torch() -> None:
    """One after the other, 50,000 equal numbers would be wrong in the fourth digit."""
    g = torch.full((1, 8, 224, 224), 0.1).contiguous(memory_format=torch.channels_last)
    total, inner = places.sums(g, g)
    exact = g[0, 0].double()
    torch.testing.assert_close(total.double(), exact.sum().expand(1, 8), rtol=2e-5, atol=0)
    torch.testing.assert_close(inner.double(), exact.square().sum().expand(1, 8), rtol=2e-5, atol=0)


@pytest.mark.parametrize("order", [(0, 4, 3, 1, 2), (0, 1, 2, 3, 4), (0, 1, 4, 2, 3)])
@pytest.mark.parametrize("shape", [(2, 3, 3, 2, 17), (2, 17, 2, 1, 1)])
def test_lengths_of_rows_in_any_order(order: tuple[int, ...], shape: tuple[int, ...]) -> None:
    gradients = torch.randn(shape, generator=torch.Generator().manual_seed(0)).permute(order)
    close(places.row_lengths(gradients), gradients.double().square().sum((2, 3, 4)).sqrt())

"""The matrices of Winograd's forms, against the sums that a convolution is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm.winograd_forms import POINTS, Way, form

SIDES = sorted(POINTS)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def joined(way: Way, places: Tensor, spread: Tensor) -> Tensor:
    """A tile [m, m] of places [k, k] and U [k, k]."""
    products = spread * (way.spreading @ places @ way.spreading.T)
    return way.joining @ products @ way.joining.T


def convolved(places: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(places[None, None].double(), kernel[None, None].double())[0, 0].float()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("seed", range(5))
class TestOneTile:
    def test_forwards_it_is_a_convolution(self, side: int, seed: int) -> None:
        places, kernel = numbers(side + 2, side + 2, seed=seed), numbers(3, 3, seed=seed + 100)
        found = joined(form(side).forwards, places, form(side).kernel @ kernel @ form(side).kernel.T)
        torch.testing.assert_close(found, convolved(places, kernel), rtol=1e-4, atol=1e-5)

    def test_backwards_the_kernel_is_turned_about(self, side: int, seed: int) -> None:
        places, kernel = numbers(side + 2, side + 2, seed=seed), numbers(3, 3, seed=seed + 100)
        found = joined(form(side).backwards, places, form(side).kernel @ kernel @ form(side).kernel.T)
        torch.testing.assert_close(found, convolved(places, kernel.flip(0, 1)), rtol=1e-4, atol=1e-5)


def test_tiles_of_two_take_no_more_than_halves() -> None:
    """Points 0, 1, -1 and infinity give the matrices of the paper, but for signs."""
    assert set(form(2).kernel.abs().flatten().tolist()) == {0.0, 0.5, 1.0}
    assert set(form(2).forwards.joining.flatten().tolist()) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize(("side", "most"), [(2, 5e-7), (4, 1.3e-6)])
def test_errors_are_of_the_size_of_roundings(side: int, most: float) -> None:
    """Of 128 channels, as the module's docstring says of one of them: the mean error over the mean length."""
    way, kernel = form(side).forwards, form(side).kernel
    places, kernels = numbers(500, 128, side + 2, side + 2).relu(), numbers(128, 3, 3, seed=1) / 34
    spread = kernel @ kernels @ kernel.T
    products = torch.einsum("ncij,cij->nij", way.spreading @ places @ way.spreading.T, spread)
    found = way.joining @ products @ way.joining.T
    wanted = F.conv2d(places.double(), kernels.double()[None]).squeeze(1)
    assert float((found - wanted).norm() / wanted.norm()) < most

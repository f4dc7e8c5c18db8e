"""Winograd's convolutions and their gradients, against torch's own in double precision."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lplgrad_backend.lplgrad.gradnorm import GradientNorms, winograd
from lplgrad_backend.lplgrad.gradnorm.products import Window
from tests import reference

PLAIN = Window((1, 1), (1, 1), (1, 1), 1)
LAST = torch.channels_last


def numbers(*shape: int, seed: int = 0) -> Tensor:
    found = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return found.contiguous(memory_format=LAST) if len(shape) == 4 else found


def agree(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


problems = st.tuples(
    st.integers(1, 5), st.tuples(st.integers(1, 5), st.integers(1, 5)), st.tuples(st.integers(3, 12), st.integers(3, 12)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
)  # fmt: skip
Problem = tuple[int, tuple[int, int], tuple[int, int], tuple[int, int]]
parts = st.sampled_from([1, 2**8, 2**10, winograd.LARGEST_PART])
"""From one row of tiles at a time to all images together."""


@given(problems, st.booleans(), parts)
def test_it_is_the_convolution_and_the_way_back_is_autograds(problem: Problem, biased: bool, part: int) -> None:
    images, (inputs, outputs), size, padding = problem
    x, weight, bias = numbers(images, inputs, *size), numbers(outputs, inputs, 3, 3, seed=1), numbers(outputs, seed=2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(winograd, "LARGEST_PART", part)
        convolution = winograd.Winograd(weight, bias if biased else None, padding)
        y = convolution(x)
        wanted_x = x.double().requires_grad_()
        wanted = F.conv2d(wanted_x, weight.double(), bias.double() if biased else None, 1, padding)
        agree(y, wanted.detach())
        assert y.is_contiguous(memory_format=LAST)
        g = numbers(*y.shape, seed=3)
        agree(convolution.input_gradient(g), torch.autograd.grad(wanted, wanted_x, g.double())[0])


@given(problems, parts)
def test_weight_gradients_are_autograds_image_by_image(problem: Problem, part: int) -> None:
    images, (inputs, outputs), size, padding = problem
    x, weight = numbers(images, inputs, *size), numbers(outputs, inputs, 3, 3, seed=1).double().requires_grad_()
    g = numbers(*F.conv2d(x.double(), weight, None, 1, padding).shape, seed=2)
    wanted = []
    for image, gradient in zip(x.double().split(1), g.double().split(1), strict=True):
        wanted += torch.autograd.grad(F.conv2d(image, weight, None, 1, padding), weight, gradient)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(winograd, "LARGEST_PART", part)
        agree(winograd.weight_gradients(x, g, padding), torch.stack(wanted))


class TestWhereItIsUsed:
    """Channels, images and sides at which it was measured to be faster, and slower."""

    @pytest.fixture(autouse=True)
    def _narrow_vectors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(winograd, "has_wide_vectors", lambda: False)

    @pytest.mark.parametrize(
        ("channels", "images", "side", "faster"),
        [
            (128, 16, 16, True), (256, 16, 8, True), (512, 16, 4, True), (128, 4, 28, True), (256, 4, 14, True),
            (512, 4, 7, True), (32, 16, 32, False), (64, 16, 32, False), (256, 4, 7, False), (512, 1, 4, False),
            (512, 1, 7, False), (256, 16, 3, False),
        ],
    )  # fmt: skip
    def test_convolutions(self, channels: int, images: int, side: int, faster: bool) -> None:
        x, weight = numbers(images, 1, side, side).expand(-1, channels, -1, -1), torch.empty(channels, channels, 3, 3)
        assert winograd.suits(x.contiguous(memory_format=LAST), weight, PLAIN) is faster

    @pytest.mark.parametrize(
        ("channels", "side", "faster"),
        [
            (64, 32, True),
            (64, 56, True),
            (128, 28, True),
            (128, 16, True),
            (48, 28, True),
            (32, 28, False),
            (64, 14, False),
        ],
    )
    def test_weight_gradients(self, channels: int, side: int, faster: bool) -> None:
        x, weight = numbers(1, channels, side, side), torch.empty(channels, channels, 3, 3)
        assert winograd.suits_weight_gradients(x, x, weight, PLAIN) is faster

    def test_nothing_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, weight = numbers(4, 128, 28, 28), numbers(128, 128, 3, 3)
        assert winograd.suits(x, weight, PLAIN)
        for window in (
            Window((2, 2), (1, 1), (1, 1), 1), Window((1, 1), (3, 1), (1, 1), 1), Window((1, 1), (1, 1), (2, 1), 1),
            Window((1, 1), (1, 1), (1, 1), 2),
        ):  # fmt: skip
            assert not winograd.suits(x, weight, window)
        assert not winograd.suits(x, numbers(128, 128, 5, 5), PLAIN)
        assert not winograd.suits(x.contiguous(), weight, PLAIN)
        assert not winograd.suits(x.double(), weight.double(), PLAIN)
        assert not winograd.suits(x.to("meta"), weight.to("meta"), PLAIN)
        monkeypatch.setattr(winograd, "has_wide_vectors", lambda: True)
        assert not winograd.suits(x, weight, PLAIN)
        assert not winograd.suits_weight_gradients(x, x, weight, PLAIN)


def test_a_network_with_them_has_the_oracles_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first batch suggested, so is a single image done later."""
    monkeypatch.setattr(winograd, "has_wide_vectors", lambda: False)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(),
        nn.Conv2d(128, 128, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 4),
    ).eval()  # fmt: skip
    images, used = numbers(4, 3, 16, 16), defaultdict[int, list[winograd.Winograd]](list)
    convolving = winograd.Winograd.__call__
    monkeypatch.setattr(
        winograd.Winograd, "__call__", lambda self, x: (used[len(x)].append(self), convolving(self, x))[1]
    )
    scorer, oracle = GradientNorms(network), reference.gradient_norms(network, images)
    for some in (slice(None), slice(1, 2)):
        agree(scorer.measure(images[some]).norms, oracle[some])
    assert len(used[4]) == 2
    assert used[1] == used[4]

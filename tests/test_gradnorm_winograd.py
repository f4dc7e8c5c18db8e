"""Winograd's convolutions and their gradients, against torch's own in double precision."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lplgrad_backend.lplgrad.gradnorm import GradientNorms, winograd, winograd_choice
from lplgrad_backend.lplgrad.gradnorm.winograd_forms import POINTS, Form, form
from tests import reference

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
forms = st.sampled_from(sorted(POINTS)).map(form)
together = st.sampled_from([1, 2**5, 2**7, winograd.TOGETHER])
"""From one row of tiles at a time to all images together."""


@given(forms, problems, st.booleans(), together)
def test_it_is_the_convolution_and_the_way_back_is_autograds(
    form: Form, problem: Problem, biased: bool, together: int
) -> None:
    images, (inputs, outputs), size, padding = problem
    x, weight, bias = numbers(images, inputs, *size), numbers(outputs, inputs, 3, 3, seed=1), numbers(outputs, seed=2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(winograd, "TOGETHER", together)
        convolution = winograd.Winograd(form, weight, bias if biased else None, padding)
        y = convolution(x)
        wanted_x = x.double().requires_grad_()
        wanted = F.conv2d(wanted_x, weight.double(), bias.double() if biased else None, 1, padding)
        agree(y, wanted.detach())
        assert y.is_contiguous(memory_format=LAST)
        g = numbers(*y.shape, seed=3)
        agree(convolution.input_gradient(g), torch.autograd.grad(wanted, wanted_x, g.double())[0])
        kept = winograd.tiles(form, x, outputs, padding)
        torch.testing.assert_close(convolution(x, kept), y)


@given(forms, problems, together, st.sampled_from([1, winograd.LARGEST_SPREAD]))
def test_weight_gradients_are_autograds_image_by_image_and_in_sum(
    form: Form, problem: Problem, together: int, spread: int
) -> None:
    images, (inputs, outputs), size, padding = problem
    x, weight = numbers(images, inputs, *size), numbers(outputs, inputs, 3, 3, seed=1).double().requires_grad_()
    g = numbers(*F.conv2d(x.double(), weight, None, 1, padding).shape, seed=2)
    wanted = []
    for image, gradient in zip(x.double().split(1), g.double().split(1), strict=True):
        wanted += torch.autograd.grad(F.conv2d(image, weight, None, 1, padding), weight, gradient)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(winograd, "TOGETHER", together)
        patched.setattr(winograd, "LARGEST_SPREAD", spread)
        agree(winograd.weight_gradients(form, x, g, padding), torch.stack(wanted))
        kept = winograd.tiles(form, x, outputs, padding)
        agree(winograd.weight_gradients(form, x, g, padding, kept), torch.stack(wanted))
        agree(winograd.weight_gradient(form, x, g, padding), torch.stack(wanted).sum(0))


@pytest.mark.parametrize("largest", [0, winograd_choice.LARGEST_KEPT])
def test_a_network_with_them_has_the_oracles_norms(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first batch suggested, so is a single image done later."""
    monkeypatch.setattr(winograd_choice, "has_wide_vectors", lambda: False)
    monkeypatch.setattr(winograd_choice, "LARGEST_KEPT", largest)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(),
        nn.Conv2d(128, 128, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 4),
    ).eval()  # fmt: skip
    images, used = numbers(4, 3, 16, 16), defaultdict[int, list[winograd.Winograd]](list)
    convolving = winograd.Winograd.__call__
    monkeypatch.setattr(
        winograd.Winograd, "__call__", lambda self, x, kept: (used[len(x)].append(self), convolving(self, x, kept))[1]
    )
    scorer, oracle = GradientNorms(network), reference.gradient_norms(network, images)
    for some in (slice(None), slice(1, 2)):
        agree(scorer.measure(images[some]).norms, oracle[some])
    assert len(used[4]) == 2
    assert used[1] == used[4]

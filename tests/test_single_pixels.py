"""Convolutions over maps of one pixel: what they give and their gradients, against the whole kernel; when it is kept out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lplgrad_backend.lplgrad.single_pixels import CentreTaps


def convolution(**others: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(6, 4, **{"kernel_size": 3, "padding": 1, **others}).double()


def given_and_gradients(layer: nn.Conv2d, images: Tensor) -> list[Tensor]:
    images = images.clone().requires_grad_()
    given = layer(images)
    sought = [images, *layer.parameters()]
    return [given, *torch.autograd.grad((given**2).sum(), sought)]


KINDS = [
    {},
    {"stride": 2},
    {"bias": False},
    {"groups": 2},
    {"kernel_size": (5, 1), "padding": (2, 0)},
    {"kernel_size": 1, "padding": 0},
    {"padding": 2},
    {"dilation": 2, "padding": 2},
    {"padding": "same"},
    {"padding_mode": "reflect", "padding": 0, "kernel_size": 1},
    {"padding_mode": "circular"},
]


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_nothing_changes(kind: dict[str, Any], side: int) -> None:
    layer = convolution(**kind)
    images = torch.randn(3, 6, side, side, dtype=torch.float64)
    expected = given_and_gradients(layer, images)
    with CentreTaps():
        found = given_and_gradients(layer, images)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("side", "all_met"), [(1, False), (2, True)])
def test_the_centre_alone_is_multiplied(side: int, all_met: bool) -> None:
    """Whatever meets a tap that is no number is none itself, the padding's zeros too."""
    layer = convolution()
    with torch.no_grad():
        centre = layer.weight[:, :, 1, 1].clone()
        layer.weight.fill_(torch.nan)[:, :, 1, 1] = centre
    with CentreTaps():
        assert bool(layer(torch.ones(1, 6, side, side, dtype=torch.float64)).isnan().any()) == all_met


def test_no_images_are_none() -> None:
    with CentreTaps():
        assert convolution()(torch.empty(0, 6, 1, 1, dtype=torch.float64)).shape == (0, 4, 1, 1)

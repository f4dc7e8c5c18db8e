"""Convolutions over maps of few pixels: what they give and their gradients, against torch's own; when it is kept out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lplgrad_backend.lplgrad import quick_convolutions
from lplgrad_backend.lplgrad.gradnorm import winograd_choice
from lplgrad_backend.lplgrad.quick_convolutions import QuickConvolutions, arranged


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
    with QuickConvolutions():
        found = given_and_gradients(layer, images)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("side", "all_met"), [(1, False), (2, True)])
def test_the_centre_alone_is_multiplied(side: int, all_met: bool) -> None:
    """Whatever meets a tap that is no number is none itself, the padding's zeros too."""
    layer = convolution()
    with torch.no_grad():
        centre = layer.weight[:, :, 1, 1].clone()
        layer.weight.fill_(torch.nan)[:, :, 1, 1] = centre
    with QuickConvolutions():
        assert bool(layer(torch.ones(1, 6, side, side, dtype=torch.float64)).isnan().any()) == all_met


def test_no_images_are_none() -> None:
    with QuickConvolutions():
        assert convolution()(torch.empty(0, 6, 1, 1, dtype=torch.float64)).shape == (0, 4, 1, 1)


class Calls(TorchDispatchMode):
    """Which operations torch carries out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class TestProducts:
    """Large kernels, of which float64 products are compared with torch's."""

    @staticmethod
    def large(**others: Any) -> nn.Conv2d:
        torch.manual_seed(0)
        return nn.Conv2d(256, 256, **{"kernel_size": 3, "padding": 1, **others}).double()

    @pytest.mark.parametrize(
        ("kind", "sides"),
        [
            ({}, (2, 2)),
            ({"stride": 2}, (4, 4)),
            ({"stride": (1, 2)}, (1, 8)),
            ({"bias": False}, (4, 1)),
            ({"padding": 0}, (4, 3)),
            ({"padding": (2, 1), "kernel_size": (5, 3)}, (1, 3)),
            ({"dilation": 2, "padding": 2}, (2, 2)),
            ({"padding": "same"}, (2, 2)),
            ({"padding_mode": "circular"}, (2, 2)),
            ({"groups": 2}, (2, 2)),
            ({}, (3, 3)),
        ],
        ids=str,
    )
    def test_nothing_changes(self, kind: dict[str, Any], sides: tuple[int, int]) -> None:
        layer = self.large(**kind)
        images = torch.randn(3, 256, *sides, dtype=torch.float64)
        expected = given_and_gradients(layer, images)
        with QuickConvolutions(multiplying=True):
            found = given_and_gradients(layer, images)
        torch.testing.assert_close(found, expected)
        assert found[0].is_contiguous()

    @pytest.mark.parametrize(
        ("others", "side", "product"),
        [({}, 2, True), ({"stride": 2}, 4, True), ({}, 3, False), ({"groups": 2}, 2, False),
         ({"kernel_size": 1, "padding": 0}, 2, False), ({"padding": "same"}, 2, False),
         ({"in_channels": 128, "out_channels": 128}, 2, False)],
    )  # fmt: skip
    def test_what_is_a_product(self, others: dict[str, Any], side: int, product: bool) -> None:
        layer = nn.Conv2d(**{"in_channels": 768, "out_channels": 768, "kernel_size": 3, "padding": 1, **others})
        calls = Calls()
        with QuickConvolutions(multiplying=True), calls:
            layer(torch.ones(1, layer.in_channels, side, side))
        assert ("aten.im2col.default" in calls.names, "aten.convolution.default" in calls.names) == (
            product,
            not product,
        )

    def test_no_images_are_none(self) -> None:
        with QuickConvolutions(multiplying=True):
            assert self.large()(torch.empty(0, 256, 2, 2, dtype=torch.float64)).shape == (0, 256, 2, 2)


class TestWinograd:
    """Where three products by 16 places of a tile are quicker, float32 is compared with torch's float64."""

    @pytest.fixture(autouse=True)
    def _narrow_vectors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(winograd_choice, "has_wide_vectors", lambda: False)

    @staticmethod
    def images(channels: int = 128, side: int = 8) -> Tensor:
        torch.manual_seed(1)
        return torch.randn(16, channels, side, side).contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("side", [8, 7, 6])
    @pytest.mark.parametrize("kind", [{}, {"bias": False}, {"padding": 0}, {"padding": (2, 1)}], ids=str)
    def test_nothing_changes(self, kind: dict[str, Any], side: int) -> None:
        torch.manual_seed(0)
        layer, images = nn.Conv2d(256, 256, **{"kernel_size": 3, "padding": 1, **kind}), self.images(256, side)
        with QuickConvolutions(multiplying=True):
            assert "_Spread" in layer(images).grad_fn.name()
            found = given_and_gradients(layer, images)
        expected = given_and_gradients(layer.double(), images.double())
        for one, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.detach().abs().max()))

    def test_only_what_is_trained_has_gradients(self) -> None:
        layer, images = nn.Conv2d(128, 128, 3, padding=1).requires_grad_(False), self.images().requires_grad_()
        with QuickConvolutions(multiplying=True):
            layer(images).sum().backward()
            layer.weight.requires_grad_()
            layer(images.detach()).sum().backward()
        assert images.grad is not None
        assert layer.weight.grad is not None
        assert layer.bias is not None
        assert layer.bias.grad is None

    def test_an_activation_in_place_may_follow(self) -> None:
        layer = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(inplace=True))
        with QuickConvolutions(multiplying=True):
            given = layer(self.images())
        given.sum().backward()
        assert bool((given >= 0).all())

    @pytest.mark.parametrize(
        ("channels", "side", "quick"),
        [
            (128, 8, True),
            (512, 4, True),
            (256, 2, False),
            (64, 8, True),
            (32, 16, True),
            (16, 8, False),
            (256, 7, True),
            (128, 7, True),
            (128, 3, False),
            (256, 3, False),
        ],
    )
    def test_where_it_is_used(self, channels: int, side: int, quick: bool) -> None:
        layer = nn.Conv2d(channels, channels, 3, padding=1)
        with QuickConvolutions(multiplying=True):
            assert ("_Spread" in layer(self.images(channels, side)).grad_fn.name()) is quick

    def test_nowhere_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer, images = nn.Conv2d(128, 128, 3, padding=1), self.images()
        with QuickConvolutions(multiplying=False):
            assert "_Spread" not in layer(images).grad_fn.name()
        with QuickConvolutions(multiplying=True):
            assert "_Spread" not in layer(images.contiguous()).grad_fn.name()
        monkeypatch.setattr(winograd_choice, "has_wide_vectors", lambda: True)
        with QuickConvolutions(multiplying=True):
            assert "_Spread" not in layer(images).grad_fn.name()


@pytest.mark.parametrize("wide", [False, True])
def test_channels_come_last_where_that_was_measured(monkeypatch: pytest.MonkeyPatch, wide: bool) -> None:
    monkeypatch.setattr(quick_convolutions, "has_wide_vectors", lambda: wide)
    images = torch.rand(2, 3, 8, 8)
    found = arranged(images)
    assert torch.equal(found, images)
    assert found.is_contiguous(memory_format=torch.channels_last) is not wide

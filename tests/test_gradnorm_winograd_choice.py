"""Channels, images and sides at which Winograd's forms were measured to be faster, and slower."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm import winograd_choice
from lplgrad_backend.lplgrad.gradnorm.products import Window
from lplgrad_backend.lplgrad.gradnorm.winograd_forms import Form

PLAIN = Window((1, 1), (1, 1), (1, 1), 1)
LAST = torch.channels_last


@pytest.fixture(autouse=True)
def _narrow_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd_choice, "has_wide_vectors", lambda: False)


def numbers(*shape: int) -> Tensor:
    return torch.zeros(shape).contiguous(memory_format=LAST)


def side(form: Form | None) -> int | None:
    return None if form is None else form.side


@pytest.mark.parametrize(
    ("channels", "images", "height", "wanted"),
    [
        (64, 16, 32, 4), (128, 16, 16, 4), (256, 16, 8, 4), (512, 16, 4, 2), (64, 4, 56, 4), (128, 4, 28, 4),
        (256, 4, 14, 4), (512, 4, 7, 2), (192, 16, 6, 2), (32, 16, 32, 4), (16, 16, 32, None), (256, 1, 7, None),
        (512, 1, 4, None), (512, 1, 7, None), (256, 16, 3, None),
    ],
)  # fmt: skip
def test_convolutions(channels: int, images: int, height: int, wanted: int | None) -> None:
    x, weight = numbers(images, channels, height, height), torch.empty(channels, channels, 3, 3)
    assert side(winograd_choice.convolution(x, weight, PLAIN)) == wanted


@pytest.mark.parametrize(
    ("channels", "height", "wanted"),
    [
        (64, 32, 4), (64, 56, 4), (128, 28, 4), (128, 16, 2), (96, 14, 2), (256, 14, 2), (48, 28, 4), (32, 14, None),
        (128, 8, None), (256, 8, None),
    ],
)  # fmt: skip
def test_weight_gradients(channels: int, height: int, wanted: int | None) -> None:
    x, weight = numbers(1, channels, height, height), torch.empty(channels, channels, 3, 3)
    assert side(winograd_choice.weight_gradient(x, x, weight, PLAIN)) == wanted


@pytest.mark.parametrize(
    ("channels", "images", "height", "wanted"),
    [
        (64, 16, 32, 4), (128, 16, 16, 4), (256, 16, 8, 4), (512, 16, 4, 2), (128, 4, 14, 2), (64, 16, 8, 4),
        (32, 16, 32, 4), (16, 16, 32, None), (512, 1, 7, None), (256, 16, 3, None),
    ],
)  # fmt: skip
def test_training(channels: int, images: int, height: int, wanted: int | None) -> None:
    x, weight = numbers(images, channels, height, height), torch.empty(channels, channels, 3, 3)
    assert side(winograd_choice.training(x, weight, PLAIN)) == wanted


def test_large_kernels_are_not_kept_four_times_over() -> None:
    x, weight = numbers(4, 512, 28, 28), torch.empty(512, 512, 3, 3)
    assert side(winograd_choice.convolution(x, weight, PLAIN)) == 2


@pytest.mark.parametrize(
    ("channels", "height", "wanted"),
    [(64, 32, 4), (64, 56, None), (128, 16, 2), (48, 28, 4), (256, 8, None), (32, 14, None)],
)
def test_tiles_of_small_maps_are_kept(channels: int, height: int, wanted: int | None) -> None:
    x, weight = numbers(1, channels, height, height), torch.empty(channels, channels, 3, 3)
    assert side(winograd_choice.kept(x, weight, PLAIN)) == wanted
    assert winograd_choice.kept(x, weight, Window((2, 2), (1, 1), (1, 1), 1)) is None


def test_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = numbers(4, 128, 28, 28), numbers(128, 128, 3, 3)

    def sides(x: Tensor, weight: Tensor, window: Window) -> set[int | None]:
        ways = winograd_choice.convolution, winograd_choice.training
        return {*(side(way(x, weight, window)) for way in ways), side(winograd_choice.weight_gradient(x, x, weight, window))}

    assert sides(x, weight, PLAIN) == {4}
    for window in (
        Window((2, 2), (1, 1), (1, 1), 1), Window((1, 1), (3, 1), (1, 1), 1), Window((1, 1), (1, 1), (2, 1), 1),
        Window((1, 1), (1, 1), (1, 1), 2),
    ):  # fmt: skip
        assert sides(x, weight, window) == {None}
    assert sides(x, numbers(128, 128, 5, 5), PLAIN) == {None}
    assert sides(x.contiguous(), weight, PLAIN) == {None}
    assert sides(x.double(), weight.double(), PLAIN) == {None}
    assert sides(x.to("meta"), weight.to("meta"), PLAIN) == {None}
    monkeypatch.setattr(winograd_choice, "has_wide_vectors", lambda: True)
    assert sides(x, weight, PLAIN) == {None}

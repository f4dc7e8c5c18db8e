"""Gradient norms of small networks, each about one kind of layer, against the float64 loop; and of random networks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import GEOMETRIES, NETWORKS, Body, Builder, Residual, Squeeze, build, pictures
from torch import Tensor, nn

from lplgrad_backend.lplgrad.gradnorm import SlowGradientNorms, gradient_norms


def check(network: nn.Module, images: Tensor, multiple: bool = False) -> None:
    """Each tensor's norm is within a thousandth, or a millionth of the batch's largest score."""
    found = gradient_norms(network, images, multiple=multiple, per_tensor=True)
    oracle = reference.gradient_norms(network, images, multiple=multiple, per_tensor=True)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, oracle, rtol=1e-3, atol=1e-6 * oracle.sum(1).max().item())


@pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS)
class TestLayers:
    def test_each_tensor_of_a_batch(self, builder: Builder) -> None:
        check(build(builder), pictures(4))

    def test_a_single_image(self, builder: Builder) -> None:
        check(build(builder, seed=3), pictures(1, seed=3))

    def test_any_number_of_classes_and_channels_last(self, builder: Builder) -> None:
        images = pictures(3, seed=5).contiguous(memory_format=torch.channels_last)
        check(build(builder, seed=5).to(memory_format=torch.channels_last), images, multiple=True)  # type: ignore[call-overload]

    def test_none_takes_the_slow_way(self, builder: Builder) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SlowGradientNorms)
            gradient_norms(build(builder), pictures(2))


@pytest.mark.parametrize("builder", GEOMETRIES.values(), ids=GEOMETRIES)
def test_geometries_of_convolutions(builder: Builder) -> None:
    check(build(builder), pictures(3))


@pytest.mark.parametrize("side", [4, 8, 20, 40])
@pytest.mark.parametrize("channels", [4, 48])
def test_whatever_is_cheapest_for_a_size_is_exact(side: int, channels: int) -> None:
    """Small maps with many channels take Gram matrices, large ones with few take the gradients themselves."""
    layers = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
    check(build(lambda: Body(*layers, nn.BatchNorm2d(channels), nn.ReLU(), channels=channels)), pictures(2, side))


def test_frozen_parameters_do_not_count() -> None:
    network = build(NETWORKS["residual"])
    whole = gradient_norms(network, pictures(3), per_tensor=True)
    names = [name for name, _ in network.named_parameters()]
    for name, one in network.named_parameters():
        one.requires_grad_(not name.startswith("layers.1"))
    kept = [at for at, name in enumerate(names) if not name.startswith("layers.1")]
    torch.testing.assert_close(gradient_norms(network, pictures(3), per_tensor=True), whole[:, kept])
    network.requires_grad_(False)
    assert gradient_norms(network, pictures(3)).tolist() == [0.0, 0.0, 0.0]


# Random networks


Layer = Callable[[], nn.Module]


@st.composite
def layers(draw: st.DrawFn) -> tuple[list[Layer], int]:
    """Up to five layers that keep at least 3 x 3 places of a picture of 12 x 12, and their channels."""
    found: list[Layer] = []
    channels, side, plain = 3, 12, False
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5)):
        # autograd itself refuses to overwrite what an activation has kept
        in_place = plain and draw(st.booleans())
        plain = kind in ("convolution", "batch norm")
        if kind == "convolution":
            geometry = draw(geometries(channels, side))
            found.append(partial(nn.Conv2d, channels, **geometry))
            channels = geometry["out_channels"]
            reach = (geometry["kernel_size"] - 1) * geometry["dilation"]
            side = (side + 2 * geometry["padding"] - reach - 1) // geometry["stride"] + 1
        elif kind == "pool" and side >= 6:
            found.append(partial(nn.MaxPool2d, 2))
            side //= 2
        elif kind == "activation":
            there = [partial(one, inplace=in_place) for one in (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)]
            found.append(draw(st.sampled_from([*there, nn.GELU])))
        elif kind in MADE_FOR:
            found.append(partial(MADE_FOR[kind], channels))
    return found, channels


def residual(channels: int) -> nn.Module:
    return Residual(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))


MADE_FOR = {
    "batch norm": nn.BatchNorm2d,
    "group norm": partial(nn.GroupNorm, 1),
    "residual": residual,
    "squeeze": Squeeze,
}
KINDS = ("convolution", "activation", "pool", *MADE_FOR)


@st.composite
def geometries(draw: st.DrawFn, channels: int, side: int) -> dict[str, Any]:
    """Arguments of a convolution of that many channels that leaves at least 3 x 3 places of `side` x `side`."""
    size, padding = draw(st.sampled_from([1, 2, 3])), draw(st.integers(0, 2))
    dilation = draw(st.integers(1, 2 if side + 2 * padding > 6 else 1))
    after = side + 2 * padding - (size - 1) * dilation
    padding += 1 if after < 3 else 0
    groups = draw(st.sampled_from([one for one in (1, 2, 3, channels) if channels % one == 0]))
    return {
        "out_channels": groups * draw(st.integers(2, 3)), "kernel_size": size, "padding": padding, "dilation": dilation,
        "stride": draw(st.integers(1, 2 if after >= 5 else 1)), "groups": groups, "bias": draw(st.booleans()),
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(layers(), st.integers(0, 10**6), st.integers(1, 4), st.booleans())
def test_random_networks(drawn: tuple[list[Layer], int], seed: int, count: int, multiple: bool) -> None:
    made, channels = drawn
    network = build(lambda: Body(*(layer() for layer in made), channels=channels), seed)
    check(network, pictures(count, 12, seed), multiple)

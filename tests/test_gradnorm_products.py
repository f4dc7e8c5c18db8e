"""Weight gradients of convolutions and their norms, each way, against autograd in float64 and one image at a time."""

from __future__ import annotations

import pytest
import torch
from convolution_problems import agree, oracle, pairs, problem, windows
from hypothesis import given
from hypothesis import strategies as st

from lplgrad_backend.lplgrad.gradnorm import products
from lplgrad_backend.lplgrad.gradnorm.products import (
    FEWEST_CHANNELS,
    FEWEST_HALVED,
    Window,
    are_images_cheaper_side_by_side,
    are_shifts_cheaper,
    gram_inner_products,
    gram_squares,
    outer_squares,
    shifted_weight_gradients,
    weight_gradients,
    weight_gradients_one_by_one,
    weight_gradients_side_by_side,
)


@given(
    images=st.integers(1, 3), channels=st.tuples(st.integers(1, 5), st.integers(1, 5)), kernel=pairs, window=windows,
    size=st.tuples(st.integers(7, 12), st.integers(7, 12)), last=st.booleans(),
)  # fmt: skip
def test_every_way_agrees_with_autograd(
    images: int, channels: tuple[int, int], kernel: tuple[int, int], window: Window, size: tuple[int, int], last: bool
) -> None:
    x, g, weight, window = problem(images, channels, size, kernel, window)
    layout = torch.channels_last if last else torch.contiguous_format
    x, g = x.contiguous(memory_format=layout), g.contiguous(memory_format=layout)
    wanted = oracle(x, g, weight, window)
    ways = shifted_weight_gradients, weight_gradients_one_by_one, weight_gradients_side_by_side, weight_gradients
    for way in ways:
        agree(way(x, g, weight, window), wanted)
    found, squares = gram_squares(x, g, kernel, window), wanted.square().sum((1, 2, 3, 4))
    lengths = x.double().square().sum((1, 2, 3)) * g.double().square().sum((1, 2, 3))  # of what is added, and rounded
    torch.testing.assert_close(found.double(), squares, rtol=1e-4, atol=1e-7 * float(lengths.max()))


@given(images=st.integers(1, 5), most=st.integers(1, 4), stride=st.integers(1, 2))
def test_side_by_side_are_as_many_images_as_fit(images: int, most: int, stride: int) -> None:
    x, g, weight, window = problem(images, (1, 1), (8, 8), (3, 3), Window((stride, stride), (1, 1), (1, 1), 24))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(products, "MOST_SIDE_BY_SIDE", most * (x[0].numel() + g[0].numel()))
        calls: list[int] = []
        whole = products.image_weight_gradient
        patched.setattr(products, "image_weight_gradient", lambda *one: (calls.append(one[0].shape[1]), whole(*one))[1])
        agree(weight_gradients_side_by_side(x, g, weight, window), oracle(x, g, weight, window))
    assert sum(calls) == 24 * images and max(calls) <= 24 * most


@pytest.mark.parametrize("positions", [1, 2, 49, FEWEST_HALVED, FEWEST_HALVED + 69])
def test_squares_of_sums_need_no_sum(positions: int) -> None:
    random = torch.Generator().manual_seed(positions)
    a, g = (torch.randn(3, positions, channels, generator=random) for channels in (20, 30))
    wanted = (g.double().mT @ a.double()).square().sum((1, 2))
    agree(gram_inner_products(a, g), wanted)
    agree(outer_squares(a, g), wanted)


class TestTheChoice:
    PLAIN = Window((1, 1), (1, 1), (1, 1), 1)

    def test_products_replace_onednn_where_vectors_are_narrow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, _, weight, window = problem(1, (FEWEST_CHANNELS, FEWEST_CHANNELS), (8, 8), (3, 3), self.PLAIN)
        for wide in (True, False):
            monkeypatch.setattr(products, "has_wide_vectors", lambda wide=wide: wide)
            assert are_shifts_cheaper(x, weight, window) is not wide

    def test_few_channels_and_groups_stay_with_onednn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(products, "has_wide_vectors", lambda: False)
        for channels, groups in (((3, 64), 1), ((64, 3), 1), ((64, 64), 2)):
            x, _, weight, window = problem(1, channels, (8, 8), (3, 3), Window((1, 1), (1, 1), (1, 1), groups))
            assert not are_shifts_cheaper(x, weight, window)

    @pytest.mark.parametrize(
        ("channels", "groups", "side", "expected"),
        [
            (1, 64, 14, True), (8, 8, 14, True), (16, 4, 14, False), (64, 1, 14, False), (1, 64, 56, False),
            (1, 16, 14, False),
        ],
    )  # fmt: skip
    def test_images_of_narrow_groups_and_small_maps_share_a_call(
        self, channels: int, groups: int, side: int, expected: bool
    ) -> None:
        x, g, weight, window = problem(
            2, (channels, channels), (side, side), (3, 3), Window((1, 1), (1, 1), (1, 1), groups)
        )
        assert are_images_cheaper_side_by_side(x, g, weight, window) is expected

    def test_a_gpu_is_not_asked_once_for_each_image(self) -> None:
        elsewhere, weight = torch.empty(1, 3, 8, 8, device="meta"), torch.empty(8, 3, 3, 3, device="meta")
        assert are_shifts_cheaper(elsewhere, weight, self.PLAIN)
        assert are_images_cheaper_side_by_side(elsewhere, elsewhere, weight, self.PLAIN)
